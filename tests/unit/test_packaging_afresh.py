"""From a published version to the next one: nothing but the artifact and new parameters is needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nearmesh.errors import PackageError
from nearmesh.lineage import LINEAGE_FILE
from nearmesh.oci import Manifest, digest_file
from nearmesh.package import Package, Source, load
from nearmesh.packaging import parameters
from nearmesh.packaging.afresh import Afresh, from_json, make, to_json
from nearmesh.packaging.again import put, unpack
from nearmesh.packaging.agent_run import Ran
from nearmesh.packaging.build import build
from nearmesh.packaging.killed import Killed, check_not_killed
from nearmesh.packaging.warmup import read_warmup
from tests.trainable import BIAS, EVALUATED, WEIGHT, by_numpy, trainable
from tests.unit.test_lineage import LINEAGE

NEW = {"bias": BIAS + 1, "weight": WEIGHT * 2}


@pytest.fixture
def published(tmp_path: Path) -> tuple[Manifest, dict[str, Path]]:
    """As the control plane has it: a manifest and blobs, and no author's folder."""
    artifact = build(trainable(tmp_path / "author"), tmp_path / "author-cache")
    blobs = {}
    for digest, held in artifact.blobs.items():
        blobs[digest] = tmp_path / digest.removeprefix("sha256:")
        blobs[digest].write_bytes(held if isinstance(held, bytes) else held.read_bytes())
    return artifact.manifest, blobs


@pytest.fixture
def folder(tmp_path: Path, published: tuple[Manifest, dict[str, Path]]) -> Path:
    (tmp_path / "again").mkdir()
    unpack(*published, tmp_path / "again", "1.0-r7")
    return tmp_path / "again"


def made(folder: Path, cache: Path, run: object = by_numpy) -> Afresh:
    cache.mkdir(exist_ok=True)
    (cache / "said.json").write_bytes(LINEAGE.to_bytes())
    return make(folder, cache, cache / "said.json", run=run)  # type: ignore[arg-type]


def test_a_published_version_is_a_folder_again_under_another_name(folder: Path, tmp_path: Path) -> None:
    package, author = load(folder), load(tmp_path / "author")
    assert (package.name, package.version, package.training) == ("linear", "1.0-r7", author.training)
    assert package.variants[0].source == Source(path="fp32.onnx")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("cases.npz", "fp32.onnx", "model.toml", "training.py", "warmup.npz")
    ]
    # It is whole: it can be built without anything of the author's.
    assert build(folder, tmp_path / "cache").manifest.workshop[1].title == "training.py"


def test_the_new_version_has_the_new_parameters_and_expects_what_they_give(folder: Path, tmp_path: Path) -> None:
    put(load(folder), folder, NEW)
    found = made(folder, tmp_path / "cache")

    assert found.packed and found.packed.manifest.version == "1.0-r7"
    files = {file.title: found.packed.blobs[file.digest] for file in found.packed.manifest.all_files}
    assert {*files} == {
        *("model.toml", "fp32.onnx", "warmup.npz", "report.json", LINEAGE_FILE, "training.py", "cases.npz")
    }
    graph, warmup, lineage = (files[name] for name in ("fp32.onnx", "warmup.npz", LINEAGE_FILE))
    assert isinstance(graph, Path) and isinstance(warmup, Path) and isinstance(lineage, Path)
    for name, array in parameters.read(graph, list(NEW)).items():
        np.testing.assert_array_equal(array, NEW[name])
    inputs, outputs = read_warmup(warmup)
    np.testing.assert_array_equal(outputs["y"], inputs["x"] @ NEW["weight"] + NEW["bias"])
    assert lineage.read_bytes() == LINEAGE.to_bytes()
    (judged,) = found.judged
    assert (judged.variant, judged.passed, judged.detail) == ("fp32", True, "accuracy 1.0000 of 2 cases")


def test_the_same_parameters_give_the_same_version_and_what_is_measured_is_kept(folder: Path, tmp_path: Path) -> None:
    """So that one which is made again after a death is the one that may be in the catalog already."""
    put(load(folder), folder, NEW)
    first = made(folder, tmp_path / "cache")

    def otherwise(node: Path, variants: dict[str, str], cases: Path) -> Ran:
        ran = by_numpy(node, variants, cases)
        return Ran(outputs=ran.outputs, ms_p50=77.0)

    again = made(folder, tmp_path / "cache", otherwise)
    assert first.packed and again.packed and again.packed.manifest_bytes == first.packed.manifest_bytes


def test_what_came_of_it_reaches_the_other_process(folder: Path, tmp_path: Path) -> None:
    found = made(folder, tmp_path / "cache")
    heard = from_json(json.loads(json.dumps(to_json(found, tmp_path))))
    assert found.packed and heard.packed and heard.judged == found.judged
    assert heard.packed.manifest == found.packed.manifest
    for digest, path in heard.packed.blobs.items():
        assert isinstance(path, Path) and digest_file(path) == digest
    with pytest.raises(PackageError, match="no such variant"):
        from_json({"error": "no such variant"})
    with pytest.raises(Killed, match="by somebody"):
        from_json({"killed": "by somebody"})


@pytest.mark.parametrize(("code", "killed"), [(0, False), (1, False), (-11, False), (-9, True), (-15, True)])
def test_a_crash_is_the_packages_own_and_being_killed_is_not(code: int, killed: bool) -> None:
    if not killed:
        check_not_killed("it", code)
        return
    with pytest.raises(Killed, match=f"it was ended from outside \\(signal {-code}\\)"):
        check_not_killed("it", code)


def test_a_variant_that_fails_its_gate_makes_no_version(folder: Path, tmp_path: Path) -> None:
    """One that is made from the new parameters and says other things than they do."""
    text = (folder / "model.toml").read_text("utf-8")
    (folder / "model.toml").write_text(text + '\n[[quantize]]\nvariant = "half"\nkind = "fp16"\n', "utf-8")

    def run(node: Path, variants: dict[str, str], cases: Path) -> Ran:
        ran = by_numpy(node, {"": "fp32"}, cases)
        wrong = {name: [-one for one in answers] for name, answers in ran.outputs.items()}
        return Ran(outputs=wrong) if variants[""] == "half" else ran

    found = made(folder, tmp_path / "cache", run)
    assert found.packed is None and [(one.variant, one.passed) for one in found.judged] == [
        *(("fp32", True), ("half", False))
    ]
    assert "accuracy 0.0000 of 2 cases, agrees in 0.00%: " in found.judged[1].detail
    assert from_json(json.loads(json.dumps(to_json(found, tmp_path)))) == found


def test_p5_parameters_that_give_no_numbers_make_no_version(folder: Path, tmp_path: Path) -> None:
    put(load(folder), folder, {**NEW, "bias": np.full(3, np.inf, np.float32)})
    with pytest.raises(PackageError, match=r"output 'y' is not finite for the inputs of warmup\.npz"):
        made(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"weight": WEIGHT}, r"others than those of \[training\] in model.toml: 'bias'"),
        ({**NEW, "more": BIAS}, r"others than those of \[training\] in model.toml: 'more'"),
        ({**NEW, "bias": BIAS[:2]}, r"array 'bias' has shape \[2\], the initializer \[3\]"),
    ],
)
def test_other_parameters_are_refused(folder: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    before = (folder / "fp32.onnx").read_bytes()
    with pytest.raises(PackageError, match=said):
        put(load(folder), folder, arrays)
    assert (folder / "fp32.onnx").read_bytes() == before


def test_a_version_without_training_has_no_parameters(tmp_path: Path) -> None:
    package: Package = load(trainable(tmp_path / "author"))
    text = (tmp_path / "author" / "model.toml").read_text("utf-8")
    (tmp_path / "author" / "model.toml").write_text(text[: text.index("[training]")] + EVALUATED, "utf-8")
    with pytest.raises(PackageError, match=r"linear@1\.0 has no \[training\]"):
        put(load(tmp_path / "author"), tmp_path / "author", NEW)
    assert package.training


def test_a_version_that_was_published_without_its_sets_cannot_be_made_anew(tmp_path: Path) -> None:
    artifact = build(trainable(tmp_path / "author"), tmp_path, workshop=False)
    blobs = {file.digest: tmp_path / "author" / file.title for file in artifact.manifest.files}
    with pytest.raises(PackageError, match=r"linear@1\.0 was published without training\.py, cases\.npz"):
        unpack(artifact.manifest, blobs, tmp_path, "2")
