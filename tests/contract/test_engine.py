"""What every engine does: dtypes, threads, lone calls, close; and what ONNX Runtime's refuses to load."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from nearmesh_agent.engines.choice import CPU, Layout, candidates
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.engines.onnx import wide
from nearmesh_agent.engines.onnx.engine import OnnxEngine
from nearmesh_agent.engines.onnx.session import Session

from nearmesh.errors import ConfigError, EngineFailure, InvalidInput, MeshError, PackageError
from nearmesh.package import Batching, Source, Step, Variant
from tests.plan_library import FakeLibrary, wait_for_plans
from tests.tiny_models import SAMPLES, accumulator, adder, identity, spec

WIDE = Layout(instances=2, threads=1, wide=2)


class FakeEngine:
    """Computes in NumPy what the tiny models compute."""

    name, variant, providers, instances = "fake", "fp32", (CPU,), 2

    def __init__(self, package):
        self._package = package

    def infer(self, inputs, *, alone=False):
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


def wait_for_wide():
    for thread in threading.enumerate():
        if thread.name.startswith(wide.THREAD):
            thread.join(20)
            assert not thread.is_alive()


def with_wide(worth):
    """A second session that is there at once, is kept if any gain is worth it (0), and never is for an endless one."""

    def load(folder, package):
        engine = OnnxEngine.load(folder / "fp32.onnx", package, layout=WIDE)
        engine._wide._begin()
        wait_for_wide()
        return engine

    return load, worth


def with_plan(folder, package, library):
    variant = Variant(name="fp32", engine="tensorrt", source=Source(path="fp32.onnx"))
    package = replace(package, variants=(variant,), batching=Batching(max_batch=8))
    engine = OnnxEngines(find_library=lambda name: library, plans=folder / "plans")(folder, package)
    wait_for_plans()
    return engine


def planned(folder, package):
    engine = with_plan(folder, package, FakeLibrary(folder))
    assert engine.name == "tensorrt_plan"
    return engine


def plan_not_built(folder, package):
    return with_plan(folder, package, FakeLibrary(folder, fails="no such operator"))


def plan_fails(folder, package):
    library = FakeLibrary(folder)
    engine = with_plan(folder, package, library)
    library.runners[0].failing = True
    return engine


ENGINES = {
    "fake": (lambda folder, package: FakeEngine(package), None),
    "onnx": (load_onnx, None),
    "onnx-wide-measured": with_wide(1.25),
    "onnx-wide-kept": with_wide(0.0),
    "onnx-wide-dropped": with_wide(float("inf")),
    "tensorrt": (planned, None),
    "tensorrt-not-built": (plan_not_built, None),
    "tensorrt-fails": (plan_fails, None),
}


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def load(request, monkeypatch):
    load, worth = request.param
    if worth is not None:
        monkeypatch.setattr(wide, "WORTH", worth)
    return load


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
    assert engine.instances >= 1

    def one(number):
        array = np.full((3, 4), number, np.float32)
        found = engine.infer({"left": array, "right": array}, alone=number % 3 == 0)
        return list(found) == ["total", "less"] and (found["total"] == 2 * number).all()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(200)))
    engine.close()


def test_a_lone_call_gives_what_any_gives(load, tmp_path):
    engine = load(tmp_path, adder(tmp_path))
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    for alone in (True, False) * 10:
        found = engine.infer({"left": array, "right": array}, alone=alone)
        assert found["total"].tolist() == (2 * array).tolist() and not found["less"].any()
    engine.close()


def test_names(load, tmp_path):
    engine = load(tmp_path, adder(tmp_path))
    assert engine.variant == "fp32" and engine.providers[-1] == CPU and engine.name
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
    real = OnnxEngine.load(tmp_path / "fp32.onnx", package)._session._session
    monkeypatch.setattr(real, "get_providers", lambda: ["SomethingElse"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: real)
    with pytest.raises(EngineFailure, match="'CPUExecutionProvider' is asked for and did not start; running are Some"):
        OnnxEngine.load(tmp_path / "fp32.onnx", package)


def test_cuda_that_does_not_start_is_never_swapped_for_the_cpu(tmp_path, monkeypatch):
    # A GPU build of ONNX Runtime without CUDA's libraries prints a line and goes on with the CPU.
    package = accumulator(tmp_path)
    real = OnnxEngine.load(tmp_path / "fp32.onnx", package)._session._session
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: real)
    with pytest.raises(EngineFailure, match=r"'CUDAExecutionProvider' is asked for and did not start.*CUDA, cuDNN"):
        OnnxEngines(providers=("CUDAExecutionProvider", CPU))(tmp_path, package)


def test_variants(tmp_path):
    fast = Variant(name="fast", hardware="CUDAExecutionProvider", source=Source(path="fast.onnx"))
    package = adder(tmp_path)
    both = replace(package, variants=(fast, *package.variants))
    assert [variant.name for variant in candidates(both, [CPU])] == ["fp32"]
    engine = OnnxEngines(threads=1)(tmp_path, both)
    assert engine.variant == "fp32"
    engine.close()


@pytest.mark.parametrize(
    ("settings", "instances", "expected"),
    [
        ({}, 0, Layout(instances=8, threads=1, wide=8)),
        ({"wide": False}, 0, Layout(instances=8, threads=1)),
        ({"threads": 3}, 0, Layout(instances=2, threads=3)),
        ({}, 2, Layout(instances=2, threads=4)),
        ({"wide": True}, 2, Layout(instances=2, threads=4, wide=8)),
    ],
)
def test_engines_share_the_cores(tmp_path, monkeypatch, settings, instances, expected):
    given = []
    monkeypatch.setattr("nearmesh_agent.engines.factory.usable_cores", lambda: 8)
    monkeypatch.setattr(OnnxEngine, "load", lambda *_, layout, **__: given.append(layout))
    OnnxEngines(**settings)(tmp_path, replace(adder(tmp_path), instances=instances))
    assert given == [expected]


def test_sessions_have_the_threads_of_the_layout(tmp_path, monkeypatch):
    opened = []
    real = Session.open

    def note(path, providers, *, threads=0, spinning=False):
        opened.append((threads, spinning))
        return real(path, providers, threads=threads, spinning=spinning)

    monkeypatch.setattr(Session, "open", note)
    engine = OnnxEngine.load(tmp_path / "fp32.onnx", adder(tmp_path), layout=WIDE)
    ones = np.ones((1, 4), np.float32)
    assert engine.sessions == 1 and opened == [(1, False)]
    engine.infer({"left": ones, "right": ones}, alone=True)
    wait_for_wide()
    assert engine.sessions == 2 and opened == [(1, False), (2, True)]
    assert engine.detail == (
        "2 calls at a time, threads of each: 1; a second session for lone calls, of 2 threads: being measured"
    )
    engine.close()
    assert engine.sessions == 0


@pytest.mark.parametrize(
    ("settings", "entries"),
    [
        ({"threads": 1}, {"session.intra_op.allow_spinning": "0"}),
        (
            {"threads": 2, "spinning": True},
            {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"},
        ),
    ],
)
def test_threads_never_spin_between_calls(tmp_path, settings, entries):
    adder(tmp_path)
    options = Session.open(tmp_path / "fp32.onnx", [CPU], **settings)._session.get_session_options()
    assert options.intra_op_num_threads == settings["threads"]
    assert {entry: options.get_session_config_entry(entry) for entry in entries} == entries


def test_a_device_that_fails_later_is_not_swapped_for_the_cpu(tmp_path, monkeypatch):
    adder(tmp_path)
    real, asked = onnxruntime.InferenceSession.disable_fallback, []
    monkeypatch.setattr("onnxruntime.InferenceSession.disable_fallback", lambda self: asked.append(real(self)))
    Session.open(tmp_path / "fp32.onnx", [CPU])
    assert asked == [None]


def test_the_second_session_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(wide, "WORTH", 0.0)
    engine = OnnxEngine.load(tmp_path / "fp32.onnx", adder(tmp_path), layout=WIDE)
    ones = np.ones((1, 4), np.float32)
    engine.infer({"left": ones, "right": ones}, alone=True)
    wait_for_wide()
    for _ in range(2 * wide.CALLS):
        engine.infer({"left": ones, "right": ones}, alone=True)
    assert engine.sessions == 2 and engine.detail.endswith("times as fast")
    monkeypatch.setattr(engine._wide._kept, "run", lambda outputs, inputs: "wide")
    assert engine.infer({"left": ones, "right": ones}, alone=True) == "wide"
    assert engine.infer({"left": ones, "right": ones})["total"].tolist() == [[2] * 4]
    engine.close()


def test_a_graph_without_a_package(tmp_path):
    package = adder(tmp_path)
    (tmp_path / "fp32.onnx").rename(tmp_path / "add.fp32.onnx")
    step = Step(name="add")
    variant = Variant(name="fp32", step="add", source=Source(path="x.onnx"))
    # What the package's own inputs are does not matter to a step.
    package = replace(package, steps=(step,), variants=(variant,), inputs=(spec("image", "UINT8", -1),))
    engine = OnnxEngines(wide=False).graph(tmp_path, package, step)
    assert (engine.input_names, engine.output_names) == (("left", "right"), ("total", "less"))
    ones = np.ones((3, 4), np.float32)
    assert engine.infer({"left": ones, "right": ones})["less"].tolist() == (0 * ones).tolist()
    engine.close()


def test_a_graph_of_text_without_a_package(tmp_path):
    identity(tmp_path, "BYTES")
    engine = OnnxEngine.load(tmp_path / "fp32.onnx")
    assert engine.infer({"x": SAMPLES["BYTES"]})["y"].tolist() == SAMPLES["BYTES"].tolist()
    engine.close()


def test_a_package_with_steps_is_a_pipeline(tmp_path):
    package = adder(tmp_path)
    (tmp_path / "fp32.onnx").rename(tmp_path / "add.fp32.onnx")
    variant = Variant(name="fp32", step="add", source=Source(path="x.onnx"))
    package = replace(package, steps=(Step(name="add"),), variants=(variant,))
    engine = OnnxEngines(wide=False)(tmp_path, package)
    ones = np.ones((3, 4), np.float32)
    assert engine.infer({"left": ones, "right": ones})["total"].tolist() == (2 * ones).tolist()
    assert engine.variant == "add:fp32"
    engine.close()


@pytest.mark.parametrize("overflow", [True, False])
def test_p5_sums_of_8_bits_are_exact_where_the_processor_would_not_be(tmp_path, monkeypatch, overflow):
    adder(tmp_path)
    monkeypatch.setattr("nearmesh_agent.engines.onnx.session.eight_bits_overflow", lambda: overflow)
    options = Session.open(tmp_path / "fp32.onnx", [CPU])._session.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == str(int(overflow))
