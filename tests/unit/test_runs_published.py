"""Published parents, and new versions into the catalog: over a real layout and catalog, without the other process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Version
from nearmesh_controlplane.catalog.publishing import Publisher
from nearmesh_controlplane.catalog.signing import Signing
from nearmesh_controlplane.runs import published as module
from nearmesh_controlplane.runs.published import Published
from nearmesh_controlplane.runs.run import Asked, Run

from nearmesh import rpc, signature
from nearmesh.chunks import ChunkIndex
from nearmesh.client.upload import requests, steps
from nearmesh.errors import AlreadyExists, NotFound, PackageError
from nearmesh.lineage import LINEAGE_FILE, Lineage, Parent
from nearmesh.oci import Manifest, digest_bytes
from nearmesh.oci_layout import Layout
from nearmesh.packaging import parameters
from nearmesh.packaging.afresh import Afresh, Judged, Packed, make
from nearmesh.packaging.build import build
from nearmesh.packaging.killed import Killed
from nearmesh.tls import new_key
from tests.control_plane_state import State, state
from tests.trainable import BIAS, WEIGHT, by_numpy, trainable
from tests.unit.test_lineage import LINEAGE

NEW = {"weight": WEIGHT * 2, "bias": BIAS + 1}


@dataclass(slots=True)
class Mesh:
    """As much of a control plane as makes and keeps versions."""

    folder: Path
    state: State
    layout: Layout
    publisher: Publisher
    audit: Audit
    parent: Version
    # How often a version was made.
    made: int = 0

    def candidates(self) -> Published:
        """As a control plane has it that starts now."""
        return Published(self.folder / "made", self.layout, self.state.catalog, self.publisher)

    def run(self) -> Run:
        return Run(
            id="r0000000a",
            model="linear",
            parent_version="1.0",
            parent_digest=self.parent.digest,
            asked=Asked(rounds=5),
            actor="operator/anna",
            created_at_s=1.0,
        )

    def lineage(self) -> Lineage:
        return replace(LINEAGE, run="r0000000a", parent=Parent(version="1.0", digest=self.parent.digest))

    def manifest(self, version: Version) -> Manifest:
        return Manifest.from_bytes(self.layout.path(version.digest).read_bytes())

    def file(self, version: Version, name: str) -> Path:
        (file,) = [file for file in self.manifest(version).all_files if file.title == name]
        return self.layout.path(file.digest)


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    async with state(tmp_path) as found:
        layout, audit = Layout(tmp_path / "oci"), Audit(found.db)
        publisher = Publisher(found.catalog, layout, Signing("mesh", new_key(), layout), audit, 2**20)
        parent = await _published(publisher, trainable(tmp_path / "author"), tmp_path)
        mesh = Mesh(tmp_path, found, layout, publisher, audit, parent)

        async def here(folder: Path) -> Afresh:
            mesh.made += 1
            (folder / "cache").mkdir(exist_ok=True)
            return make(folder / "package", folder / "cache", folder / LINEAGE_FILE, run=by_numpy)

        monkeypatch.setattr(module, "_made", here)
        yield mesh


async def _published(publisher: Publisher, folder: Path, cache: Path, *, workshop: bool = True) -> Version:
    artifact = build(folder, cache, workshop=workshop)
    packed = Packed(manifest=artifact.manifest, manifest_bytes=artifact.manifest_bytes, blobs=artifact.blobs)

    async def upload() -> Version:
        rpc.answering(rpc.Identity("author", "operator"))

        async def parts():
            for part in requests(packed, steps(packed.manifest, ChunkIndex(), None), lambda sent, total: None):
                yield part

        return await publisher.publish(parts())

    return await asyncio.create_task(upload())


async def test_a_parent_is_what_was_published(mesh: Mesh) -> None:
    parent = await mesh.candidates().parent("linear", "1.0")
    assert parent.recipe == b"def train(arrays, data, settings): ...\n"
    assert list(parent.arrays) == ["weight", "bias"]
    np.testing.assert_array_equal(parent.arrays["weight"], WEIGHT)
    assert (parent.metric, parent.tolerance, parent.settings) == ("accuracy", 1e-4, {"epochs": 3})
    assert (parent.limits.largest_change, parent.limits.largest_site_loss) == (3.0, 0.02)
    assert parent.digest == mesh.parent.digest

    await mesh.candidates().write_graph(parent, mesh.folder / "graph.onnx")
    assert parameters.check(mesh.folder / "graph.onnx", ["weight", "bias"]) == 9

    with pytest.raises(NotFound, match=r"no version '2' of 'linear'"):
        await mesh.candidates().parent("linear", "2")


async def test_a_version_without_training_is_no_parent(mesh: Mesh) -> None:
    text = (mesh.folder / "author" / "model.toml").read_text("utf-8")
    plain = text[: text.index("[training]")].replace('"1.0"', '"0.9"')
    (mesh.folder / "author" / "model.toml").write_text(plain, "utf-8")
    await _published(mesh.publisher, mesh.folder / "author", mesh.folder)
    with pytest.raises(PackageError, match=r"linear@0\.9 has no \[training\] in its model\.toml"):
        await mesh.candidates().parent("linear", "0.9")


async def test_a_version_that_lacks_what_new_ones_are_made_with_is_no_parent(mesh: Mesh) -> None:
    text = (mesh.folder / "author" / "model.toml").read_text("utf-8")
    (mesh.folder / "author" / "model.toml").write_text(text.replace('"1.0"', '"0.9"'), "utf-8")
    await _published(mesh.publisher, mesh.folder / "author", mesh.folder, workshop=False)
    with pytest.raises(PackageError, match=r"linear@0\.9 was published without training\.py, cases\.npz: raise"):
        await mesh.candidates().parent("linear", "0.9")


async def test_a_version_that_no_run_could_be_called_after_is_no_parent(mesh: Mesh) -> None:
    """Told before the rounds, not after."""
    long = "1" * 60
    text = (mesh.folder / "author" / "model.toml").read_text("utf-8")
    (mesh.folder / "author" / "model.toml").write_text(text.replace("1.0", long), "utf-8")
    await _published(mesh.publisher, mesh.folder / "author", mesh.folder)
    with pytest.raises(PackageError, match="has too long a version: what a run makes is called after it"):
        await mesh.candidates().parent("linear", long)


async def test_a_new_version_is_made_signed_and_in_the_catalog(mesh: Mesh) -> None:
    built = await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())
    assert built.version == "1.0-r0000000a"
    assert [(check.name, check.passed) for check in built.checks] == [("variant fp32", True)]

    version = await mesh.candidates().publish(built, "operator/anna")

    assert mesh.state.catalog.version("linear", "1.0-r0000000a") == version
    for name, array in parameters.read(mesh.file(version, "fp32.onnx"), list(NEW)).items():
        np.testing.assert_array_equal(array, NEW[name])
    # It can be a parent itself: nothing got lost on the way.
    titles = {file.title for file in mesh.manifest(mesh.parent).all_files}
    assert {file.title for file in mesh.manifest(version).all_files} == {*titles, LINEAGE_FILE, "report.json"}
    assert (await mesh.candidates().parent("linear", version.version)).recipe
    # Signed, and said by whom.
    assert mesh.layout.named(f"linear:{signature.tag(version.digest)}")
    (entry, _) = await mesh.audit.latest(5)
    assert (entry.actor, entry.action, entry.subject) == ("operator/anna", "publish", "linear@1.0-r0000000a")
    assert Lineage.from_bytes((await mesh.publisher.lineages.text(version.digest)).encode()) == mesh.lineage()
    assert await mesh.publisher.lineages.text(mesh.parent.digest) == ""
    assert list((mesh.folder / "made").iterdir()) == []


async def test_a_version_that_is_made_again_after_a_death_is_the_same_one(mesh: Mesh) -> None:
    """Killed before it was published: the next one comes to the same bytes. Killed after: it is taken as it is."""
    first = await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())
    second = await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())
    assert first.artifact[0].manifest_bytes == second.artifact[0].manifest_bytes and mesh.made == 2

    version = await mesh.candidates().publish(second, "operator/anna")

    third = await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())
    assert mesh.made == 2 and third.version == version.version and all(check.passed for check in third.checks)
    assert await mesh.candidates().publish(third, "operator/anna") == version
    assert len(mesh.state.catalog.versions("linear")) == 2


async def test_another_control_plane_may_have_published_it_from_other_measurements(mesh: Mesh) -> None:
    """A version of the same run that differs in bytes is the one; there are not two."""
    mine = await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())
    other = await mesh.candidates().build(mesh.run(), {**NEW, "bias": BIAS + 1.000001}, mesh.lineage())
    version = await mesh.candidates().publish(other, "operator/anna")
    # What the first was packed from has gone with the run's folder, and is not needed.
    assert await mesh.candidates().publish(mine, "operator/anna") == version


async def test_a_name_that_something_else_has_is_not_taken_for_the_runs_version(mesh: Mesh) -> None:
    text = (mesh.folder / "author" / "model.toml").read_text("utf-8")
    (mesh.folder / "author" / "model.toml").write_text(text.replace('"1.0"', '"1.0-r0000000a"'), "utf-8")
    await _published(mesh.publisher, mesh.folder / "author", mesh.folder)
    built = await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())
    with pytest.raises(AlreadyExists, match="is published with other contents"):
        await mesh.candidates().publish(built, "operator/anna")


async def test_a_variant_that_fails_its_gate_is_a_failed_check_and_is_not_published(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failed(folder: Path) -> Afresh:
        return Afresh(judged=(Judged(variant="int8", passed=False, detail="accuracy 0.5"),), packed=None)

    monkeypatch.setattr(module, "_made", failed)
    built = await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())
    assert [(check.name, check.passed, check.detail) for check in built.checks] == [
        ("variant int8", False, "accuracy 0.5")
    ]
    with pytest.raises(PackageError, match=r"1\.0-r0000000a is not published: variant int8: accuracy 0\.5"):
        await mesh.candidates().publish(built, "operator/anna")
    assert len(mesh.state.catalog.versions("linear")) == 1


@pytest.mark.parametrize("kills", [2, 3])
async def test_a_process_that_is_killed_at_it_is_begun_again_and_not_for_ever(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """Nobody's package is refused for it."""
    here, left = module._made, [kills]

    async def killed(folder: Path) -> Afresh:
        if left[0]:
            left[0] -= 1
            raise Killed("nearmesh-agent was ended from outside (signal 9)")
        return await here(folder)

    monkeypatch.setattr(module, "_made", killed)
    if kills < 3:
        assert (await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())).checks[0].passed
        return
    with pytest.raises(PackageError, match=r"1\.0-r0000000a could not be made in 3 attempts: nearmesh-agent was ended"):
        await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())


async def test_a_lineage_that_is_none_is_not_published(mesh: Mesh) -> None:
    built = await mesh.candidates().build(mesh.run(), NEW, mesh.lineage())
    packed, lineage = built.artifact
    (file,) = [file for file in packed.manifest.files if file.title == LINEAGE_FILE]
    data = b"[]"
    wrong = replace(file, digest=digest_bytes(data), size_bytes=len(data))
    manifest = replace(packed.manifest, files=tuple(wrong if f == file else f for f in packed.manifest.files))
    blobs = {**packed.blobs, wrong.digest: data}
    bad = Packed(manifest=manifest, manifest_bytes=manifest.to_bytes(), blobs=blobs)
    with pytest.raises(PackageError, match=r"lineage\.json: expected an object, got list"):
        await mesh.candidates().publish(replace(built, artifact=(bad, lineage)), "operator/anna")
