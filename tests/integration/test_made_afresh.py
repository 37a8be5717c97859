"""A new version by the very processes that make it: the other one, and a node's own program that runs its variants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nearmesh_controlplane.runs import published

from nearmesh.errors import PackageError
from nearmesh.lineage import LINEAGE_FILE
from nearmesh.package import load
from nearmesh.packaging.again import put, unpack
from nearmesh.packaging.build import build
from nearmesh.packaging.warmup import read_warmup
from tests.trainable import BIAS, EVALUATED, WEIGHT, trainable
from tests.unit.test_lineage import LINEAGE

# Whose metric prints, as code of one's own may.
MADE = (
    EVALUATED
    + 'metric = "judge.py:judge"\n'
    + '[[quantize]]\nvariant = "int8"\nkind = "int8-dynamic"\n\n[gate]\nsmallest_agreement = 0.5\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    author = trainable(tmp_path / "author", MADE)
    (author / "judge.py").write_text("def judge(outputs, expected):\n    print('judging')\n    return 1.0\n", "utf-8")
    artifact = build(author, tmp_path / "author-cache")
    blobs = {digest: held for digest, held in artifact.blobs.items() if isinstance(held, Path)}
    (tmp_path / "run" / "package").mkdir(parents=True)
    unpack(artifact.manifest, blobs, tmp_path / "run" / "package", "1.0-r7")
    (tmp_path / "run" / LINEAGE_FILE).write_bytes(LINEAGE.to_bytes())
    return tmp_path / "run"


async def test_variants_are_made_of_the_new_parameters_and_judged(folder: Path) -> None:
    package = load(folder / "package")
    put(package, folder / "package", {"weight": -WEIGHT, "bias": BIAS + 9})

    found = await published._made(folder)

    assert [(one.variant, one.passed) for one in found.judged] == [("fp32", True), ("int8", True)]
    assert found.packed
    files = {file.title: found.packed.blobs[file.digest] for file in found.packed.manifest.all_files}
    assert {"fp32.onnx", "int8.onnx", "report.json", LINEAGE_FILE, "training.py", "cases.npz"} <= files.keys()
    warmup = files["warmup.npz"]
    assert isinstance(warmup, Path)
    inputs, outputs = read_warmup(warmup)
    np.testing.assert_allclose(outputs["y"], inputs["x"] @ -WEIGHT + BIAS + 9, rtol=1e-6)


async def test_what_cannot_be_made_is_told_in_words(folder: Path) -> None:
    (folder / "package" / "cases.npz").unlink()
    with pytest.raises(PackageError, match=r"cases\.npz: no such file"):
        await published._made(folder)
