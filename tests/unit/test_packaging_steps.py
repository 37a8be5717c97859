"""Packages with steps: their code is published with them, their graphs need not be the package's own signature."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_agent.engines.factory import OnnxEngines

from nearmesh.errors import PackageError
from nearmesh.oci import CODE_TYPE
from nearmesh.package import load
from nearmesh.packaging.build import build
from nearmesh.packaging.layout import lay_out, published_files
from nearmesh.packaging.warmup import read_warmup, record

onnx = pytest.importorskip("onnx", reason="packages are checked with onnx (extra build)")

MANIFEST = """
name = "shouter"
version = "1.0"
description = "Says it twice as loud"
licence = "Apache-2.0"
credit = "The project"
labels = "labels.txt"
inputs = [{ name = "text", dtype = "BYTES", shape = [-1] }]
outputs = [{ name = "shout", dtype = "BYTES", shape = [-1] }, { name = "length", dtype = "FP32", shape = [2] }]
warmup = [{ file = "warmup.npz" }]
[[steps]]
name = "count"
python = "steps.py:count"
[[steps]]
name = "double"
inputs = { x = "lengths" }
outputs = { y = "double" }
[[steps]]
name = "shout"
python = "steps.py:shout"
[[variants]]
name = "fp32"
step = "double"
source = { path = "double.onnx" }
"""
CODE = """
import numpy as np
from pathlib import Path

MARK = Path(__file__).with_name("labels.txt").read_text().strip()

def count(text):
    return {"lengths": np.array([len(t) for t in text], np.float32)}

def shout(text, double):
    shouts = [t.decode().upper() + MARK * int(n) for t, n in zip(text, double)]
    return {"shout": np.array(shouts, object), "length": np.array([double.sum(), 1 / 3], np.float32)}
"""
TEXT = np.array([b"hi", b"you"], object)


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "shouter"
    found.mkdir()
    (found / "model.toml").write_text(MANIFEST, "utf-8")
    (found / "steps.py").write_text(CODE, "utf-8")
    (found / "labels.txt").write_text("!\n", "utf-8")
    value = onnx.helper.make_tensor_value_info
    values = [value("x", onnx.TensorProto.FLOAT, ["n"])], [value("y", onnx.TensorProto.FLOAT, ["n"])]
    body = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "double", *values)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save_model(onnx.helper.make_model(body, opset_imports=[opset], ir_version=9), str(found / "double.onnx"))
    return found


def as_a_node(folder, package, inputs):
    engine = OnnxEngines(threads=1)(folder, package)
    answer = engine.infer(inputs)
    engine.close()
    return answer


def recorded(folder, inputs=TEXT):
    return record(folder, {"text": inputs}, decimals=2, run=as_a_node)


def test_a_recorded_warmup_is_what_the_pipeline_says(folder):
    inputs, outputs = read_warmup(recorded(folder))
    assert inputs["text"].tolist() == TEXT.tolist()
    assert outputs["shout"].tolist() == [b"HI!!!!", b"YOU!!!!!!"] and outputs["shout"].dtype.kind == "S"
    assert outputs["length"].tolist() == np.array([10, 0.33], np.float32).tolist()


def test_a_recorded_warmup_without_entries(folder):
    _, outputs = read_warmup(recorded(folder, TEXT[:0]))
    assert outputs["shout"].shape == (0,)


def test_bytes_that_an_archive_would_cut_are_refused(folder):
    with pytest.raises(PackageError, match="'text' has an element that ends in a zero byte"):
        recorded(folder, np.array([b"hi\0"], object))


def test_steps_are_not_run_by_the_library_alone(folder):
    with pytest.raises(PackageError, match=r"'shouter' has steps, which the agent's engines run: give record\(\)"):
        record(folder, {"text": TEXT}, decimals=2)


def test_an_artifact_holds_the_code(folder, tmp_path):
    recorded(folder)
    artifact = build(folder, tmp_path)
    titles = [layer.title for layer in artifact.manifest.files]
    assert titles == ["double.fp32.onnx", "labels.txt", "model.toml", "steps.py", "warmup.npz"]
    assert artifact.manifest.files[3].media_type == CODE_TYPE
    assert build(folder, tmp_path).digest == artifact.digest
    (folder / "steps.py").write_text(CODE.replace("upper", "lower"), "utf-8")
    assert build(folder, tmp_path).digest != artifact.digest


def test_what_was_built_is_what_a_node_runs(folder, tmp_path):
    recorded(folder)
    artifact = build(folder, tmp_path)
    (tmp_path / "node").mkdir()
    lay_out({layer.title: artifact.blobs[layer.digest] for layer in artifact.manifest.files}, tmp_path / "node")
    assert as_a_node(tmp_path / "node", artifact.package, {"text": TEXT[:1]})["shout"].tolist() == [b"HI!!!!"]


def test_functions_find_assets_beside_them(folder, tmp_path):
    """By the names that model.toml gives them, wherever they come from."""
    (folder / "mark-2026.txt").write_text("?\n", "utf-8")
    (folder / "steps.py").write_text(CODE.replace("labels.txt", "mark.txt"), "utf-8")
    asset = '[[assets]]\nname = "mark.txt"\nsource = { path = "mark-2026.txt" }\n'
    (folder / "model.toml").write_text(MANIFEST + asset, "utf-8")
    recorded(folder)
    artifact = build(folder, tmp_path)
    assert "mark.txt" in [layer.title for layer in artifact.manifest.files]
    (tmp_path / "node").mkdir()
    lay_out({layer.title: artifact.blobs[layer.digest] for layer in artifact.manifest.files}, tmp_path / "node")
    assert as_a_node(tmp_path / "node", artifact.package, {"text": TEXT[:1]})["shout"].tolist() == [b"HI????"]


def test_a_file_may_be_left_out_while_it_is_made(folder, tmp_path):
    package = load(folder)
    assert "warmup.npz" not in published_files(package, folder, tmp_path, without=["warmup.npz"])
    with pytest.raises(PackageError, match=r"warmup\.npz: no such file"):
        published_files(package, folder, tmp_path)


def replace(folder, right, wrong):
    text = (folder / "model.toml").read_text("utf-8")
    assert right in text
    (folder / "model.toml").write_text(text.replace(right, wrong, 1), "utf-8")


def add_asset(folder, name, path="labels.txt"):
    asset = f'[[assets]]\nname = "{name}"\nsource = {{ path = "{path}" }}\n'
    (folder / "model.toml").write_text(MANIFEST + asset, "utf-8")


MISTAKES = {
    "the code is missing": (lambda f: (f / "steps.py").unlink(), r"steps\.py: no such file; model.toml names it"),
    "code that is no Python": (lambda f: (f / "steps.py").write_text("def f(:"), r"steps\.py is not Python: invalid"),
    "code of zero bytes": (lambda f: (f / "steps.py").write_bytes(b"a\0"), r"steps\.py is not Python"),
    "code in a folder": (lambda f: replace(f, "steps.py:count", "../steps.py:count"), "without folders"),
    "weights that are no ONNX": (lambda f: (f / "double.onnx").write_bytes(b"\xff" * 99), "is not an ONNX model"),
    "weights that are empty": (lambda f: (f / "double.onnx").write_bytes(b""), "an ONNX model without nodes"),
    "an asset in a folder": (lambda f: add_asset(f, "up/mark.txt"), "'up/mark.txt': the package's files lie beside"),
    "an asset named as another file": (lambda f: add_asset(f, "steps.py"), "would be named 'steps.py'"),
    "an asset that is missing": (lambda f: add_asset(f, "m.txt", "n.txt"), r"n\.txt: no such file"),
    "a warm-up of something else": (
        lambda f: np.savez(f / "warmup.npz", **{"input.text": np.array([b"a"]), "output.shout": np.ones(2)}),
        r"output.shout is float64 \[2\], model.toml says BYTES \[-1\]",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_package_with_a_mistake_is_not_built(folder, tmp_path, spoil, said):
    recorded(folder)
    spoil(folder)
    with pytest.raises(PackageError, match=said):
        build(folder, tmp_path)
