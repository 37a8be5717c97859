"""Variants are made once, by the libraries' own tools, and from the same input come the same bytes."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.package import load
from nearmesh.packaging import convert, quantize
from nearmesh.packaging.quantize import make
from nearmesh.packaging.sets import read_set, set_file
from tests.variants_package import QUANTIZE, write_package

KINDS = ("int8", "light", "half")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_package(tmp_path_factory.mktemp("package"), QUANTIZE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def made(folder, cache):
    return {found.variant.name: found for found in make(load(folder), folder, cache)}


def answers(path, x):
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]


def initializers(path):
    return {constant.data_type for constant in onnx.load(str(path)).graph.initializer if len(constant.dims) == 2}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_made_says_nearly_the_same(folder, made, name):
    inputs, expected = read_set(folder / "evaluation.npz")
    found = answers(made[name].path, inputs["x"])
    assert found.dtype == np.float32, "clients see no difference"
    assert (found.argmax(axis=1) == expected["y"]).mean() > 0.9


def test_what_is_made_is_what_was_asked_for(folder, made):
    assert {name: (found.of, found.kind) for name, found in made.items()} == {
        "int8": ("fp32", "int8-static"),
        "light": ("fp32", "int8-dynamic"),
        "half": ("fp32", "fp16"),
    }
    assert initializers(made["half"].path) == {onnx.TensorProto.FLOAT16}
    assert initializers(made["int8"].path) == initializers(made["light"].path) == {onnx.TensorProto.INT8}
    kinds = [node.op_type for node in onnx.load(str(made["int8"].path)).graph.node]
    assert "QuantizeLinear" in kinds and "DequantizeLinear" in kinds
    for found in made.values():
        onnx.checker.check_model(str(found.path))


def test_the_same_input_gives_the_same_bytes(folder, made, tmp_path):
    for found in make(load(folder), folder, tmp_path):
        assert found.path.name == made[found.variant.name].path.name
        assert found.path.read_bytes() == made[found.variant.name].path.read_bytes(), found.kind


def test_weights_that_an_old_exporter_listed_among_the_inputs(tmp_path):
    """With a bias of [1, n], which folding makes of some, and which the tools take as [n] alone."""
    folder = write_package(tmp_path / "p", QUANTIZE)
    model = onnx.load(str(folder / "weights.onnx"))
    graph = model.graph
    graph.node[2].CopyFrom(onnx.helper.make_node("Gemm", ["r", "second", "bias"], ["y"], name="two"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 8), np.float32), "bias"))
    graph.input.extend(
        onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        for weight in graph.initializer
    )
    model.ir_version = 3
    onnx.save(model, str(folder / "weights.onnx"))
    found = {each.variant.name: each.path for each in make(load(folder), folder, tmp_path / "cache")}
    inputs, expected = read_set(folder / "evaluation.npz")
    for name in KINDS:
        assert (answers(found[name], inputs["x"]).argmax(axis=1) == expected["y"]).mean() > 0.9, name
        assert [given.name for given in onnx.load(str(found[name])).graph.input] == ["x"], name
    assert initializers(found["half"]) == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("file", "said"),
    [("weights.onnx", "is not an ONNX model"), ("calibration.npz", "it is no archive, or has Python objects in it")],
)
def test_a_file_that_is_something_else_is_told_so(tmp_path, file, said):
    folder = write_package(
        tmp_path / "p", '[[quantize]]\nvariant = "int8"\nkind = "int8-static"\ncalibration = "calibration.npz"\n'
    )
    (folder / file).write_text("something else")
    with pytest.raises(PackageError, match=said):
        list(make(load(folder), folder, tmp_path / "cache"))


def test_what_is_there_is_not_made_again(folder, cache, made, monkeypatch):
    monkeypatch.setattr(quantize, "_convert", lambda *_: pytest.fail("it is made again"))
    assert {found.path for found in make(load(folder), folder, cache)} == {found.path for found in made.values()}


def test_other_input_is_another_file(folder, cache, made, tmp_path):
    other = write_package(tmp_path, QUANTIZE, cases=70)
    found = {f.variant.name: f.path for f in make(load(other), other, cache)}
    assert found["int8"] != made["int8"].path, "other samples"
    skipping = write_package(
        tmp_path / "skip", QUANTIZE.replace('kind = "int8-dynamic"', 'kind = "int8-dynamic"\nskip = ["one"]')
    )
    (light,) = make(load(skipping), skipping, cache, only=["light"])
    assert light.path != made["light"].path
    assert initializers(light.path) == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}


def test_one_that_is_made_from_a_made_one(folder, cache, tmp_path):
    chained = (
        '[[quantize]]\nvariant = "half"\nkind = "fp16"\n[[quantize]]\nvariant = "both"\nof = "half"\nkind = "fp16"\n'
    )
    other = write_package(tmp_path, chained)
    (found,) = make(load(other), other, cache, only=["both"])
    assert found.of == "half" and found.path.is_file()


def test_only_some_and_none_of_that_name(folder, cache, made):
    (found,) = make(load(folder), folder, cache, only=["light"])
    assert found.path == made["light"].path
    with pytest.raises(InvalidInput, match=r"no \[\[quantize\]\] makes 'int4'; 'classes' has half, int8, light"):
        list(make(load(folder), folder, cache, only=["int4"]))


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_without_a_builder_is_passed_over_unless_asked_for(tmp_path, monkeypatch, kind):
    folder = write_package(tmp_path / "p", f'[[quantize]]\nvariant = "plan"\nkind = "{kind}"\n')
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "tensorrt" in name else real(name))
    (found,) = make(load(folder), folder, tmp_path)
    assert found.path is None and found.skipped.startswith("skipped: no builder here")
    with pytest.raises(PackageError, match="variant 'plan': skipped: no builder here"):
        list(make(load(folder), folder, tmp_path, only=["plan"]))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx (development only)")
def test_a_plans_variant_is_the_graph_that_the_builder_could_read(tmp_path):
    folder = write_package(tmp_path / "p", '[[quantize]]\nvariant = "plan"\nkind = "tensorrt-rtx"\n')
    (found,) = make(load(folder), folder, tmp_path)
    assert found.path.read_bytes() == (folder / "weights.onnx").read_bytes()
    assert found.variant.engine == "tensorrt-rtx"
    (folder / "weights.onnx").write_bytes(b"no graph")
    with pytest.raises(PackageError, match=r"'plan' \(tensorrt-rtx\) could not be made"):
        list(make(load(folder), folder, tmp_path))


def test_a_tool_that_fails_is_named_with_its_last_words(tmp_path):
    folder = write_package(tmp_path / "p", QUANTIZE)
    np.savez(folder / "calibration.npz", **{"input.z": np.ones((3, 16), np.float32)})
    with pytest.raises(PackageError, match=r"'int8' \(int8-static\) could not be made: .*the graph wants \['x'\]"):
        list(make(load(folder), folder, tmp_path))


def test_libraries_that_are_missing_are_named(tmp_path, monkeypatch):
    folder = write_package(tmp_path / "p", QUANTIZE)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(PackageError, match=r"needs onnxruntime: pip install 'nearmesh\[build\]' onnxruntime"):
        list(make(load(folder), folder, tmp_path))


@pytest.mark.parametrize(
    ("shapes", "calls"),
    [
        # Rows, eight to a call.
        ({"a": (20, 3), "b": (20, 5)}, [{"a": (8, 3), "b": (8, 5)}] * 2 + [{"a": (4, 3), "b": (4, 5)}]),
        # Whole inputs of one rank more, one to a call.
        ({"a": (2, 7, 3), "b": (2, 9, 5)}, [{"a": (7, 3), "b": (9, 5)}] * 2),
        ({"a": (2, 3), "b": (2, 9, 5)}, [{"a": (1, 3), "b": (9, 5)}] * 2),
    ],
)
def test_samples_become_calls(shapes, calls):
    samples = {name: np.zeros(shape) for name, shape in shapes.items()}
    found = list(convert._calls(samples, {"a": 2, "b": 2}))
    assert [{name: array.shape for name, array in call.items()} for call in found] == calls


# ---- evaluation and calibration files


def test_a_file_that_is_not_there_is_made_by_its_script_and_kept(tmp_path):
    (tmp_path / "make_some.py").write_text(
        "import sys, numpy\nnumpy.savez(sys.argv[1], **{'input.x': numpy.ones((3, 2))})\n"
    )
    kept = set_file("some.npz", tmp_path, tmp_path / "cache")
    before = kept.stat().st_mtime_ns
    assert read_set(kept)[0]["x"].shape == (3, 2) and not (tmp_path / "some.npz").exists()
    assert set_file("some.npz", tmp_path, tmp_path / "cache").stat().st_mtime_ns == before
    (tmp_path / "make_some.py").write_text((tmp_path / "make_some.py").read_text().replace("3", "4"))
    assert len(read_set(set_file("some.npz", tmp_path, tmp_path / "cache"))[0]["x"]) == 4
    # A file of the folder wins.
    np.savez(tmp_path / "some.npz", **{"input.x": np.zeros((1, 2))})
    assert set_file("some.npz", tmp_path, tmp_path / "cache") == tmp_path / "some.npz"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "some.npz: no such file, nor make_some.py"),
        ("raise SystemExit('no fonts here')", "make_some.py did not write the file .* no fonts here"),
        ("pass", "it says nothing"),
    ],
)
def test_a_file_that_nobody_makes(tmp_path, script, said):
    if script:
        (tmp_path / "make_some.py").write_text(script)
    with pytest.raises(PackageError, match=said):
        set_file("some.npz", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.ones(3)}, "arrays are named input.NAME or expected.NAME, not 'x'"),
        ({"expected.y": np.ones(3)}, "expected input.NAME arrays"),
        ({"input.x": np.ones(3), "expected.y": np.ones(2)}, "input.x 3, expected.y 2"),
        ({"input.x": np.ones((0, 3))}, "input.x 0"),
        ({"input.x": np.float32(1)}, "input.x 0"),
    ],
)
def test_cases_that_are_none(tmp_path, arrays, said):
    np.savez(tmp_path / "cases.npz", **arrays)
    with pytest.raises(PackageError, match=said):
        read_set(tmp_path / "cases.npz")


def test_cases_in_no_archive(tmp_path):
    (tmp_path / "cases.npz").write_bytes(b"text")
    with pytest.raises(PackageError, match=r"is no \.npz of plain arrays"):
        read_set(tmp_path / "cases.npz")


def test_sections_that_say_the_same_are_the_same(folder, cache, made):
    package = load(folder)
    renamed = replace(package, quantize=tuple(replace(q, variant=f"other-{q.variant}") for q in package.quantize))
    assert [f.path for f in make(renamed, folder, cache)] == [made[name].path for name in KINDS]
