"""The control plane as operators and nodes meet it: publishing, the OCI pull API, its command line and its limits."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nearmesh import signature
from nearmesh.chunks import CHUNKS_TYPE, Chunk, ChunkIndex
from nearmesh.errors import AlreadyExists, DigestMismatch, InvalidInput, MeshError, NotFound, PackageError, TooLarge
from nearmesh.oci import WEIGHT_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.packaging.build import Artifact
from nearmesh.v1 import catalog_pb2, catalog_pb2_grpc
from tests.integration.adding_model import Tampered, adding, tampered
from tests.integration.mesh_processes import REGION, ControlPlane, control_plane
from tests.integration.refusals import nothing_changes, refused

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("control-plane"), max_blob_bytes=1_000_000) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def artifact(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A published version."""
    made = adding(tmp_path_factory.mktemp("package"), "adder", "1", 1.0)
    async with plane.operator() as operator:
        await operator.publish(made)
    return made


def index(plane: ControlPlane) -> list[str]:
    """The references in the OCI layout's index."""
    manifests = json.loads((plane.data / "oci" / "index.json").read_bytes())["manifests"]
    return [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in manifests]


# Publishing


async def test_what_was_published_is_an_oci_layout_as_it_was_built(plane: ControlPlane, artifact: Artifact) -> None:
    layout = plane.data / "oci"
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert "adder:1" in index(plane)
    for digest in [artifact.digest, *artifact.blobs]:
        blob = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
        assert digest_bytes(blob) == digest


async def test_publishing_a_version_again_changes_nothing(plane: ControlPlane, artifact: Artifact) -> None:
    async with nothing_changes(plane), plane.operator() as operator:
        before = index(plane)
        again = await operator.publish(artifact)
        assert (again.digest, index(plane)) == (artifact.digest, before)


@pytest.mark.parametrize("which", ["weights", "manifest"])
async def test_publishing_again_heals_what_the_disk_damaged(plane: ControlPlane, tmp_path: Path, which: str) -> None:
    made = adding(tmp_path, f"healed-{which}", "1", 1.0)
    weights = next(file.digest for file in made.manifest.files if file.title == "fp32.onnx")
    async with plane.operator() as operator:
        await operator.publish(made)
        digest = weights if which == "weights" else made.digest
        blob = plane.data / "oci" / "blobs" / "sha256" / digest.removeprefix("sha256:")
        good = blob.read_bytes()
        for damaged in (good[:-1] + b"~", b""):
            blob.write_bytes(damaged)
            async with nothing_changes(plane):
                assert (await operator.publish(made)).digest == made.digest
            assert blob.read_bytes() == good
        await plane.logged(f"replaced damaged blobs of model=healed-{which} version=1")


async def test_an_upload_that_ends_early_heals_nothing_and_harms_nothing(plane: ControlPlane, tmp_path: Path) -> None:
    made = adding(tmp_path, "half-healed", "1", 1.0)
    async with plane.operator() as operator:
        await operator.publish(made)
        weights = next(file.digest for file in made.manifest.files if file.title == "fp32.onnx")
        (plane.data / "oci" / "blobs" / "sha256" / weights.removeprefix("sha256:")).unlink()
        assert isinstance(await _upload(plane, *_all_parts(made)[:-1]), InvalidInput)
        assert [version.digest for version in (await operator.model("half-healed")).versions] == [made.digest]


async def test_a_version_never_changes(plane: ControlPlane, artifact: Artifact, tmp_path: Path) -> None:
    async with nothing_changes(plane), plane.operator() as operator:
        before = index(plane)
        with pytest.raises(AlreadyExists, match="adder@1 is published with other contents"):
            await operator.publish(adding(tmp_path, "adder", "1", 5.0))
        assert index(plane) == before


async def test_p5_wrong_bytes_are_not_published(plane: ControlPlane, tmp_path: Path) -> None:
    async with nothing_changes(plane), plane.operator() as operator:
        before = index(plane)
        with pytest.raises(DigestMismatch):
            await operator.publish(tampered(adding(tmp_path, "tampered", "1", 1.0)))
        with pytest.raises(NotFound):
            await operator.model("tampered")
        assert index(plane) == before
    assert not list((plane.data / "oci" / "blobs" / "sha256").glob(".incoming-*"))


async def _upload(plane: ControlPlane, *parts: catalog_pb2.PublishRequest) -> MeshError:
    async def stream() -> AsyncIterator[catalog_pb2.PublishRequest]:
        for part in parts:
            yield part

    return await refused(catalog_pb2_grpc.CatalogServiceStub(plane.channel("operator")).Publish(stream()))


def _part(digest: str, data: bytes) -> catalog_pb2.PublishRequest:
    return catalog_pb2.PublishRequest(blob=catalog_pb2.BlobPart(digest=digest, data=data))


def _all_parts(artifact: Artifact) -> list[catalog_pb2.PublishRequest]:
    found = [catalog_pb2.PublishRequest(manifest_json=artifact.manifest_bytes)]
    # Its weights last: other packages have the same warm-up, which then is there already.
    weights = next(file.digest for file in artifact.manifest.files if file.title == "fp32.onnx")
    for digest, blob in sorted(artifact.blobs.items(), key=lambda item: item[0] == weights):
        found.append(_part(digest, blob if isinstance(blob, bytes) else blob.read_bytes()))
    return found


async def test_an_upload_that_ends_early_publishes_nothing(plane: ControlPlane, tmp_path: Path) -> None:
    artifact = adding(tmp_path, "truncated", "1", 1.0)
    parts = _all_parts(artifact)
    last = parts[-1].blob
    async with nothing_changes(plane):
        before = index(plane)
        assert isinstance(await _upload(plane), InvalidInput)
        for stop in range(1, len(parts)):
            error = await _upload(plane, *parts[:stop])
            assert isinstance(error, InvalidInput) and "nothing was published" in error.message
        error = await _upload(plane, *parts[:-1], _part(last.digest, last.data[:-1]))
        assert isinstance(error, DigestMismatch)
        assert index(plane) == before
    assert not list((plane.data / "oci" / "blobs" / "sha256").glob(".incoming-*"))
    # What did arrive does no harm to the next attempt.
    async with plane.operator() as operator:
        assert (await operator.publish(artifact)).digest == artifact.digest


async def test_a_publisher_that_goes_away_leaves_nothing(plane: ControlPlane, tmp_path: Path) -> None:
    parts = _all_parts(adding(tmp_path, "abandoned", "1", 1.0))
    asked = asyncio.Event()

    async def stream() -> AsyncIterator[catalog_pb2.PublishRequest]:
        for part in parts[:-1]:
            yield part
        yield _part(parts[-1].blob.digest, parts[-1].blob.data[:10])
        asked.set()
        await asyncio.get_running_loop().create_future()

    async with nothing_changes(plane):
        call = catalog_pb2_grpc.CatalogServiceStub(plane.channel("operator")).Publish(stream())
        waiting = asyncio.ensure_future(_ended(call))
        await asked.wait()
        call.cancel()
        await waiting
    assert "abandoned:1" not in index(plane)


async def _ended(call: Any) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_two_who_publish_one_version_at_once_agree(plane: ControlPlane, tmp_path: Path) -> None:
    artifact = adding(tmp_path, "together", "1", 1.0)
    async with plane.operator() as one, plane.operator() as other:
        results = await asyncio.gather(*(client.publish(artifact) for client in (one, other) * 4))
    assert {result.digest for result in results} == {artifact.digest}
    assert index(plane).count("together:1") == 1


async def test_of_two_who_publish_other_bytes_under_one_name_one_wins(plane: ControlPlane, tmp_path: Path) -> None:
    rivals = [adding(tmp_path / str(add), "contested", "1", float(add)) for add in range(6)]
    async with plane.operator() as operator:
        results = await asyncio.gather(*map(operator.publish, rivals), return_exceptions=True)
        won = [result.digest for result in results if not isinstance(result, BaseException)]
        assert len(won) == 1
        assert [type(result) for result in results].count(AlreadyExists) == 5
        assert [version.digest for version in (await operator.model("contested")).versions] == won
    manifests = json.loads((plane.data / "oci" / "index.json").read_bytes())["manifests"]
    assert [entry["digest"] for entry in manifests if "contested:1" in entry["annotations"].values()] == won


async def test_many_who_publish_at_once_all_stand_in_the_index(plane: ControlPlane, tmp_path: Path) -> None:
    artifacts = [adding(tmp_path / str(number), "many", str(number), 1.0) for number in range(12)]
    async with plane.operator() as operator:
        await asyncio.gather(*map(operator.publish, artifacts))
    expected = {f"many:{number}" for number in range(12)} | {f"many:{signature.tag(made.digest)}" for made in artifacts}
    assert {entry for entry in index(plane) if entry.startswith("many:")} == expected


def _with_files(artifact: Artifact, *files: Descriptor, version: str = "1") -> bytes:
    manifest = replace(artifact.manifest, files=(*artifact.manifest.files, *files), version=version)
    assert isinstance(manifest, Manifest)
    return manifest.to_bytes()


async def test_what_is_no_version_is_not_published(plane: ControlPlane, artifact: Artifact) -> None:
    huge = Descriptor(WEIGHT_TYPE, "sha256:" + "0" * 64, 1_000_001, "huge.bin")
    toml = next(file for file in artifact.manifest.files if file.title == "model.toml")
    without = replace(artifact.manifest, version="2", files=tuple(f for f in artifact.manifest.files if f is not toml))
    longer = replace(without, files=(*without.files, replace(toml, size_bytes=2**20 + 1)))
    cases: list[tuple[type[MeshError], str, list[catalog_pb2.PublishRequest]]] = [
        (InvalidInput, "begins with the manifest", [_part(toml.digest, b"x")]),
        (PackageError, "not the OCI manifest", [catalog_pb2.PublishRequest(manifest_json=b"{}")]),
        (TooLarge, "max_blob_bytes is 1000000", [_manifest(_with_files(artifact, huge, version="2"))]),
        (PackageError, "is of adder@1, the manifest of adder@2", [_manifest(_with_files(artifact, version="2"))]),
        (TooLarge, "model.toml has 1048577 bytes", [_manifest(longer.to_bytes())]),
        (PackageError, "has no model.toml", [_manifest(without.to_bytes())]),
    ]
    async with nothing_changes(plane):
        for kind, said, parts in cases:
            error = await _upload(plane, *parts)
            assert (type(error), said in error.message) == (kind, True), error


async def test_a_chunk_index_that_does_not_fit_its_files_is_not_published(
    plane: ControlPlane, artifact: Artifact
) -> None:
    weights = next(file for file in artifact.manifest.files if file.media_type == WEIGHT_TYPE)
    too_long = Chunk(0, weights.size_bytes + 1, weights.digest)
    for data, said in (
        (ChunkIndex({weights.digest: (too_long,)}).to_bytes(), f"the file has {weights.size_bytes}"),
        (b"[]", "not a chunk index"),
    ):
        chunks = Descriptor(CHUNKS_TYPE, digest_bytes(data), len(data), "nearmesh.chunks.json")
        manifest = replace(artifact.manifest, version="2", chunks=chunks)
        assert isinstance(manifest, Manifest)
        async with nothing_changes(plane):
            error = await _upload(plane, _manifest(manifest.to_bytes()), _part(chunks.digest, data))
            assert (type(error), said in error.message) == (PackageError, True), error


def _manifest(data: bytes) -> catalog_pb2.PublishRequest:
    return catalog_pb2.PublishRequest(manifest_json=data)


async def test_a_blob_longer_than_announced_is_cut_off(plane: ControlPlane, artifact: Artifact) -> None:
    data = b"x" * 1000
    announced = Descriptor(WEIGHT_TYPE, digest_bytes(data), 10, "long.bin")
    async with nothing_changes(plane):
        error = await _upload(
            plane, _manifest(_with_files(artifact, announced, version="3")), _part(announced.digest, data)
        )
        assert isinstance(error, TooLarge) and "exceeds the 10 bytes announced" in error.message


async def test_deploying_and_rolling_back_what_is_not_there(plane: ControlPlane, artifact: Artifact) -> None:
    async with nothing_changes(plane), plane.operator() as operator:
        with pytest.raises(NotFound, match=r"no model 'nothing'; published are .*adder"):
            await operator.deploy("nothing", "1")
        with pytest.raises(NotFound, match="no version '9' of 'adder'; published are 1"):
            await operator.deploy("adder", "9")
        with pytest.raises(NotFound, match="no site 'nowhere'"):
            await operator.deploy("adder", "1", ["nowhere"])
        with pytest.raises(InvalidInput, match="never been deployed"):
            await operator.rollback("adder")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
async def test_numbers_that_are_none_are_refused(
    plane: ControlPlane, artifact: Artifact, value: float, tmp_path: Path
) -> None:
    await plane.machine(tmp_path, "number")
    async with nothing_changes(plane), plane.operator() as operator:
        for call in (
            operator.set_price("number", value),
            operator.set_policy("adder", deadline_ms=value),
            operator.join_token("another", "site", REGION, lifetime_s=value),
            operator.issue_token("me", "client", lifetime_s=value),
        ):
            with pytest.raises(InvalidInput):
                await call


async def test_a_policy_set_by_an_operator_outlives_the_next_package(plane: ControlPlane, tmp_path: Path) -> None:
    route = '\n[route]\nobjective = "{}"\ndeadline_ms = {}\n'
    async with plane.operator() as operator:

        async def publish(version: str, objective: str, deadline_ms: int) -> tuple[str, float]:
            await operator.publish(
                adding(tmp_path / version, "policy", version, 1.0, more=route.format(objective, deadline_ms))
            )
            model = await operator.model("policy")
            return model.objective, model.deadline_ms

        assert await publish("1", "nearest", 100) == ("nearest", 100.0)
        assert await publish("2", "cheapest", 200) == ("cheapest", 200.0)
        answer = await operator.set_policy("policy", deadline_ms=50.0)
        assert (answer.objective, answer.deadline_ms) == ("cheapest", 50.0)
        assert await publish("3", "nearest", 100) == ("cheapest", 50.0)
        with pytest.raises(InvalidInput, match="'best' is not one of"):
            await operator.set_policy("policy", objective="best")


# The process


async def _run(*arguments: str, within_s: float = 30.0) -> tuple[int, str, str]:
    program = str(Path(sys.executable).with_name("nearmesh-controlplane"))
    process = await asyncio.create_subprocess_exec(
        program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, error = await asyncio.wait_for(process.communicate(), within_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), error.decode()


async def test_a_second_control_plane_on_one_folder_says_so_in_one_line(plane: ControlPlane) -> None:
    code, _, said = await _run("--config", str(plane.config))
    assert code == 1
    assert said.splitlines() == [f"Error: a control plane in {plane.data} is running already (pid {plane.child.pid})"]


@pytest.mark.parametrize("listener", ["public", "http"])
async def test_a_port_that_is_taken_is_one_clear_line(plane: ControlPlane, tmp_path: Path, listener: str) -> None:
    second = ControlPlane(tmp_path)
    text = second.config.read_text().replace(f'"{getattr(second, listener)}"', f'"{plane.public}"')
    second.config.write_text(text)
    code, _, said = await _run("--config", str(second.config), "--log-level", "error")
    assert code == 1
    lines = [line for line in said.splitlines() if ".cc:" not in line]
    assert len(lines) == 1 and lines[0].startswith("Error: cannot ") and plane.public in lines[0]


async def test_a_wrong_configuration_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text('mesh = "m"\ndata = "d"\nleases = 1')
    code, _, error = await _run("--config", str(tmp_path / "mesh.toml"))
    assert code == 1
    assert error.splitlines() == [f"Error: {tmp_path}/mesh.toml:3: unknown key 'leases'; did you mean 'lease_s'?"]


async def test_the_first_operators_token_comes_from_the_machine_itself(plane: ControlPlane) -> None:
    code, token, _ = await _run("--config", str(plane.config), "token", "--subject", "root")
    assert code == 0
    async with type(plane.operator())(plane.public, plane.authority.ca_pem, token.strip()) as operator:
        await operator.nodes()
    code, ca, _ = await _run("--config", str(plane.config), "ca")
    assert (code, ca.encode()) == (0, plane.authority.ca_pem)


async def test_sigterm_ends_it_in_order_and_it_starts_again_where_it_was(tmp_path: Path) -> None:
    async with control_plane(tmp_path / "plane") as plane:
        await plane.machine(tmp_path / "machine", "kept")
        plane.child.signal(signal.SIGTERM)
        assert await plane.exit_code(10) == 0
        assert "Traceback" not in plane.log
        await plane.start()
        async with plane.operator() as operator:
            assert [one.id for one in await operator.nodes()] == ["kept"]


async def test_the_tampered_artifact_is_tampered(tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    found = tampered(adding(tmp_path, "x", "1", 1.0))
    assert isinstance(found, Tampered)
    wrong = [digest for digest, blob in found.blobs.items() if isinstance(blob, bytes) and digest_bytes(blob) != digest]
    assert len(wrong) == 1
