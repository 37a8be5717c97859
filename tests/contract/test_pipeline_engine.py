"""What every engine does, done by pipelines over real graphs: dtypes, threads, errors, close."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.engines.factory import OnnxEngines
from onnx import helper

from nearmesh.errors import EngineFailure, InvalidInput, MeshError, PackageError
from nearmesh.package import Source, Step, Variant
from tests.tiny_models import SAMPLES, adder, identity, package, spec, write_graph

CODE = """
def same(x):
    return {"x": x}

def parts(y):
    for row in y:
        yield {"y": row[None]}
"""


def piped(folder, described, *, steps, **more):
    """The package of one graph as a pipeline whose step `g` is that graph."""
    (folder / "fp32.onnx").rename(folder / "g.fp32.onnx")
    (folder / "steps.py").write_text(CODE)
    variants = (Variant(name="fp32", step="g", source=Source(path="g.fp32.onnx")),)
    return replace(described, steps=tuple(steps), variants=variants, **more)


GRAPH = Step(name="g")
SAME = Step(name="same", python="steps.py:same")
SHAPES = {
    "a graph alone": [GRAPH],
    "a graph after a function": [SAME, GRAPH],
    "a graph before a function": [GRAPH, Step(name="same", python="steps.py:same", inputs={"x": "y"})],
    "a graph in parts": [Step(name="g", max_rows=1)],
}


@pytest.fixture
def load(tmp_path):
    opened = []

    def loaded(described):
        opened.append(OnnxEngines(threads=1)(tmp_path, described))
        return opened[-1]

    yield loaded
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("steps", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("datatype", SAMPLES)
def test_every_dtype(load, tmp_path, datatype, steps):
    engine = load(piped(tmp_path, identity(tmp_path, datatype), steps=steps))
    found = engine.infer({"x": SAMPLES[datatype]})
    assert list(found) == ["y"]
    assert found["y"].dtype == SAMPLES[datatype].dtype and found["y"].shape == (2, 3)
    assert found["y"].tolist() == SAMPLES[datatype].tolist()
    assert engine.infer({"x": SAMPLES[datatype][:0]})["y"].shape == (0, 3)


def test_threads(load, tmp_path):
    engine = load(piped(tmp_path, adder(tmp_path), steps=[Step(name="g", max_rows=2)]))

    def one(number):
        array = np.full((3, 4), number, np.float32)
        return (engine.infer({"left": array, "right": array})["total"] == 2 * number).all()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(200)))


def test_names(load, tmp_path):
    engine = load(piped(tmp_path, adder(tmp_path), steps=[GRAPH], instances=3))
    assert (engine.name, engine.variant) == ("nearmesh_pipeline", "g:fp32")
    assert (engine.providers, engine.instances) == (("CPUExecutionProvider",), 3)
    kept = set(sys.modules)
    engine.close()
    engine.close()
    assert set(sys.modules) <= kept


def test_a_failure_is_one_of_ours_names_the_step_and_leaves_the_engine_whole(load, tmp_path):
    engine = load(piped(tmp_path, adder(tmp_path), steps=[GRAPH]))
    with pytest.raises(MeshError, match=r"^step 'g': ") as caught:
        engine.infer({"left": np.zeros((2, 4), np.float32), "right": np.zeros((3, 4), np.float32)})
    assert isinstance(caught.value, EngineFailure | InvalidInput)
    ones = np.ones((1, 4), np.float32)
    assert engine.infer({"left": ones, "right": ones}, alone=True)["total"].tolist() == [[2] * 4]


def test_read_only_and_strided_inputs(load, tmp_path):
    engine = load(piped(tmp_path, adder(tmp_path), steps=[Step(name="g", max_rows=1)]))
    left = np.frombuffer(np.arange(8, dtype=np.float32).tobytes(), np.float32).reshape(2, 4)
    right = np.arange(8, dtype=np.float32).reshape(4, 2).T
    assert engine.infer({"left": left, "right": right})["total"].tolist() == (left + right).tolist()


def test_several_answers(load, tmp_path):
    parts = Step(name="parts", python="steps.py:parts")
    engine = load(piped(tmp_path, identity(tmp_path, "INT64"), steps=[GRAPH, parts], decoupled=True))
    x = SAMPLES["INT64"]
    assert [answer["y"].tolist() for answer in engine.stream({"x": x})] == [[row] for row in x.tolist()]
    assert engine.infer({"x": x})["y"].tolist() == x.tolist()


def test_two_graphs_with_tensors_of_one_name(load, tmp_path):
    """Both call their tensors x and y; model.toml says which is which."""
    described = package("twice", [spec("x", "FP32", -1, 2)], [spec("y", "FP32", -1, 2)])
    for name in ("one", "two"):
        write_graph(tmp_path, described, [helper.make_node("Add", ["x", "x"], ["y"])])
        (tmp_path / "fp32.onnx").rename(tmp_path / f"{name}.fp32.onnx")
    variants = tuple(Variant(name="fp32", step=s, source=Source(path=f"{s}.fp32.onnx")) for s in ("one", "two"))
    steps = (Step(name="one", outputs={"y": "between"}), Step(name="two", inputs={"x": "between"}))
    engine = load(replace(described, steps=steps, variants=variants))
    assert engine.variant == "one:fp32,two:fp32"
    assert engine.infer({"x": np.ones((3, 2), np.float32)})["y"].tolist() == [[4, 4]] * 3


def test_a_step_without_its_graph(load, tmp_path):
    described = piped(tmp_path, identity(tmp_path, "FP32"), steps=[SAME, GRAPH])
    (tmp_path / "g.fp32.onnx").write_bytes(b"no model")
    kept = set(sys.modules)
    with pytest.raises(PackageError, match=r"g\.fp32\.onnx"):
        load(described)
    assert not [name for name in set(sys.modules) - kept if name.startswith("_nearmesh_step_")]
