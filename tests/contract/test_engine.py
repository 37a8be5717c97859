"""What every engine does: dtypes, threads, close; and what ONNX Runtime's refuses to load."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.engines.onnx import CPU, OnnxEngine, OnnxEngines, choose_variant

from nearmesh.errors import ConfigError, EngineFailure, InvalidInput, MeshError, PackageError
from nearmesh.package import Source, Variant
from tests.tiny_models import SAMPLES, accumulator, adder, identity, spec


class FakeEngine:
    """Computes in NumPy what the tiny models compute."""

    name, variant, providers, thread_safe = "fake", "fp32", ("CPUExecutionProvider",), True

    def __init__(self, package):
        self._package = package

    def infer(self, inputs):
        if "left" in inputs:
            left, right = inputs["left"], inputs["right"]
            if left.shape != right.shape:
                raise EngineFailure("shapes differ")
            return {"total": left + right, "less": left - right}
        array = inputs["x"]
        if array.ndim != 2:
            raise InvalidInput("rank")
        return {"y": array}

    def close(self):
        self._package = None


def load_onnx(folder, package):
    return OnnxEngine.load(folder / "fp32.onnx", package)


@pytest.fixture(params=[lambda folder, package: FakeEngine(package), load_onnx], ids=["fake", "onnx"])
def load(request):
    return request.param


@pytest.mark.parametrize("datatype", SAMPLES)
def test_every_dtype(load, tmp_path, datatype):
    engine = load(tmp_path, identity(tmp_path, datatype))
    found = engine.infer({"x": SAMPLES[datatype]})
    assert list(found) == ["y"]
    assert found["y"].dtype == SAMPLES[datatype].dtype and found["y"].shape == (2, 3)
    assert found["y"].tolist() == SAMPLES[datatype].tolist()
    assert engine.infer({"x": SAMPLES[datatype][:0]})["y"].shape == (0, 3)
    engine.close()


def test_read_only_and_strided_inputs(load, tmp_path):
    engine = load(tmp_path, adder(tmp_path))
    left = np.frombuffer(np.arange(8, dtype=np.float32).tobytes(), np.float32).reshape(2, 4)
    right = np.arange(8, dtype=np.float32).reshape(4, 2).T
    assert engine.infer({"left": left, "right": right})["total"].tolist() == (left + right).tolist()
    engine.close()


def test_threads(load, tmp_path):
    engine = load(tmp_path, adder(tmp_path))
    assert engine.thread_safe

    def one(number):
        array = np.full((3, 4), number, np.float32)
        return (engine.infer({"left": array, "right": array})["total"] == 2 * number).all()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(200)))
    engine.close()


def test_names(load, tmp_path):
    engine = load(tmp_path, adder(tmp_path))
    assert engine.variant == "fp32" and engine.providers == (CPU,) and engine.name
    engine.close()
    engine.close()


def test_a_failure_is_one_of_ours_and_leaves_the_engine_whole(load, tmp_path):
    engine = load(tmp_path, adder(tmp_path))
    with pytest.raises(EngineFailure):
        engine.infer({"left": np.zeros((2, 4), np.float32), "right": np.zeros((3, 4), np.float32)})
    ones = np.ones((1, 4), np.float32)
    assert engine.infer({"left": ones, "right": ones})["total"].tolist() == [[2] * 4]
    engine.close()


def test_wrong_rank(load, tmp_path):
    engine = load(tmp_path, identity(tmp_path, "FP32"))
    with pytest.raises(MeshError):
        engine.infer({"x": np.zeros(3, np.float32)})
    engine.close()


def test_bytes_that_are_no_text(tmp_path):
    engine = load_onnx(tmp_path, identity(tmp_path, "BYTES"))
    with pytest.raises(InvalidInput, match="tensor 'x': element 1 is not UTF-8"):
        engine.infer({"x": np.array([[b"a", b"\xff", b""]], object)})
    engine.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": (spec("left", "FP32", -1, 4),)}, r"its inputs \['right'\] are not in model.toml"),
        ({"inputs": (spec("up", "FP32", -1, 4),)}, r"model.toml has the input 'up', the graph has \['left', 'right'\]"),
        ({"outputs": (spec("sum", "FP32", -1, 4),)}, "model.toml has the output 'sum'"),
        ({"outputs": (spec("total", "INT64", -1, 4),)}, "'total' is INT64 in model.toml, FP32 in the graph"),
        ({"outputs": (spec("total", "FP32", -1, 5),)}, r"'total' has shape \[-1, 5\] in model.toml, .* in the graph"),
        (
            {"inputs": (spec("left", "FP32", -1, -1), spec("right", "FP32", -1, 4))},
            r"'left' has shape \[-1, -1\] in model.toml",
        ),
        ({"inputs": (spec("left", "FP32", 4), spec("right", "FP32", -1, 4))}, r"'left' has shape \[4\]"),
    ],
)
def test_a_package_that_describes_another_graph(tmp_path, changes, said):
    package = replace(adder(tmp_path), **changes)
    with pytest.raises(PackageError, match=said):
        load_onnx(tmp_path, package)


def test_a_file_that_is_no_model(tmp_path):
    package = adder(tmp_path)
    (tmp_path / "fp32.onnx").write_bytes(b"no model")
    with pytest.raises(PackageError, match=r"fp32\.onnx: ONNX Runtime cannot load it"):
        load_onnx(tmp_path, package)
    (tmp_path / "fp32.onnx").unlink()
    with pytest.raises(PackageError, match=r"fp32\.onnx"):
        load_onnx(tmp_path, package)


def test_a_provider_that_is_not_there_is_never_swapped_for_the_cpu(tmp_path):
    package = accumulator(tmp_path)
    with pytest.raises(ConfigError, match=r"'CUDAExecutionProvider' is asked for; .*CPUExecutionProvider"):
        OnnxEngine.load(tmp_path / "fp32.onnx", package, providers=["CUDAExecutionProvider", CPU])


def test_a_provider_that_does_not_start(tmp_path, monkeypatch):
    package = accumulator(tmp_path)
    real = OnnxEngine.load(tmp_path / "fp32.onnx", package)._session
    monkeypatch.setattr(real, "get_providers", lambda: ["SomethingElse"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: real)
    with pytest.raises(EngineFailure, match="'CPUExecutionProvider' is asked for and did not start; running are Some"):
        OnnxEngine.load(tmp_path / "fp32.onnx", package)


def test_variants(tmp_path):
    fast = Variant(name="fast", hardware="CUDAExecutionProvider", source=Source(path="fast.onnx"))
    package = adder(tmp_path)
    both = replace(package, variants=(fast, *package.variants))
    assert choose_variant(both, [CPU]).name == "fp32"
    assert choose_variant(both, ["CUDAExecutionProvider", CPU]).name == "fast"
    with pytest.raises(PackageError, match=r"no variant of 'adder' runs here: it has fast \(CUDA"):
        choose_variant(replace(package, variants=(fast,)), [CPU])
    engine = OnnxEngines(threads=1)(tmp_path, both)
    assert engine.variant == "fp32"
    engine.close()


@pytest.mark.parametrize(
    ("threads", "instances", "expected"), [(0, 1, 8), (0, 2, 4), (0, 0, 1), (0, 16, 1), (3, 1, 3), (3, 0, 3)]
)
def test_instances_share_the_cores(tmp_path, monkeypatch, threads, instances, expected):
    given = []
    monkeypatch.setattr("nearmesh_agent.engines.onnx.os.cpu_count", lambda: 8)
    monkeypatch.setattr(OnnxEngine, "load", lambda *_, threads, **__: given.append(threads))
    OnnxEngines(threads=threads)(tmp_path, replace(adder(tmp_path), instances=instances))
    assert given == [expected]
