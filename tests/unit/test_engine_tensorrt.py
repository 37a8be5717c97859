"""When ONNX Runtime answers and when the plan does; the library is made up, its plans run on the CPU."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.engines.choice import CPU, CUDA
from nearmesh_agent.engines.factory import OnnxEngines, tensorrt_options
from nearmesh_agent.engines.onnx.engine import OnnxEngine
from nearmesh_agent.engines.tensorrt.engine import TensorRt, TensorRtEngine
from nearmesh_agent.engines.tensorrt.plan_build import PlanOrder
from nearmesh_agent.engines.tensorrt.plans import PlanKey
from nearmesh_agent.engines.tensorrt.shapes import Span

from nearmesh.errors import EngineFailure, InvalidInput
from nearmesh.package import Batching, Source, Step, Variant, Warmup
from tests.plan_library import FakeLibrary, wait_for_plans
from tests.tiny_models import adder, write_warmup

ROWS = {"left": np.ones((2, 4), np.float32), "right": np.full((2, 4), 2, np.float32)}
# More rows than the adder's plan is built for.
MANY = {name: np.repeat(array, 5, axis=0) for name, array in ROWS.items()}


@pytest.fixture
def library(tmp_path):
    return FakeLibrary(tmp_path)


@pytest.fixture
def load(tmp_path, library):
    """Loads the adder with a TensorRT variant; closes what it loaded."""
    loaded = []

    def load(*, find=lambda name: library, plans=tmp_path / "plans", **more):
        folder = tmp_path / "model"
        plan = Variant(name="fp32", engine="tensorrt", source=Source(path="fp32.onnx"))
        package = adder(folder, variants=(plan,), **more)
        loaded.append(OnnxEngines(find_library=find, plans=plans)(folder, package))
        return loaded[-1]

    yield load
    library.may_build.set()
    wait_for_plans()
    for engine in loaded:
        engine.close()


def total(engine, inputs=ROWS):
    return engine.infer(inputs, alone=True)["total"].tolist()


def expected(inputs=ROWS):
    return (inputs["left"] + inputs["right"]).tolist()


def test_onnx_runtime_answers_until_the_plan_is_built(load, library, caplog):
    caplog.set_level(logging.INFO)
    library.may_build.clear()
    engine = load()
    assert library.building.wait(20)
    assert total(engine) == expected()
    assert (engine.name, engine.providers, engine.sessions) == ("onnxruntime_onnx", (CPU,), 1)
    assert engine.detail.startswith("ONNX Runtime serves: its plan is being built")
    library.may_build.set()
    wait_for_plans()
    assert total(engine) == expected() and library.runners[0].calls == 1
    assert (engine.name, engine.providers, engine.sessions) == ("tensorrt_plan", ("tensorrt", CPU), 2)
    assert engine.detail.startswith("tensorrt 10.0 on sm_00; other shapes: ")
    assert "switched to its plan variant=fp32" in caplog.text


def test_the_order_says_what_to_build(load, library, tmp_path):
    load()
    wait_for_plans()
    spans = dict.fromkeys(("left", "right"), Span((1, 4), (8, 4), (8, 4)))
    order = library.orders[0]
    assert order == PlanOrder(
        library="tensorrt", onnx=str(tmp_path / "model" / "fp32.onnx"), plan=order.plan, profile=spans
    )


def test_requests_go_on_while_the_engine_switches(load, library):
    library.may_build.clear()
    engine = load()

    def one(number):
        if number == 200:
            library.may_build.set()
        return total(engine) == expected()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(400)))
    wait_for_plans()
    assert total(engine) == expected() and library.runners[0].calls


def test_the_second_start_takes_the_stored_plan(load, library):
    load()
    wait_for_plans()
    again = load()
    wait_for_plans()
    assert again.name == "tensorrt_plan" and total(again) == expected()
    assert len(library.orders) == 1 and len(library.runners) == 2


@pytest.mark.parametrize("change", [{"version": "10.1"}, {"architecture": "sm_01"}, {"name": "tensorrt-rtx"}])
def test_another_library_or_gpu_builds_its_own(load, library, change):
    load()
    wait_for_plans()
    for name, value in change.items():
        setattr(library, name, value)
    load()
    wait_for_plans()
    assert len(library.orders) == 2


def test_a_foreign_plan_is_built_anew(load, library, caplog):
    load()
    wait_for_plans()
    stored = load()._source
    wait_for_plans()
    stored.store.put(stored.key, b"foreign")
    again = load()
    wait_for_plans()
    assert again.name == "tensorrt_plan" and len(library.orders) == 2
    assert "discarding a plan" in caplog.text
    assert stored.store.get(stored.key) != b"foreign"


def test_a_foreign_plan_that_cannot_be_built_anew_is_gone(load, library):
    stored = load()._source
    wait_for_plans()
    stored.store.put(stored.key, b"foreign")
    library.fails = "no such operator"
    load()
    wait_for_plans()
    assert stored.store.get(stored.key) is None


def test_a_build_that_fails(load, library, caplog):
    library.fails = "no such operator: FancyOp"
    engine = load()
    wait_for_plans()
    assert total(engine) == expected()
    assert engine.name == "onnxruntime_onnx" and "ONNX Runtime serves: no such operator: FancyOp" in engine.detail
    assert caplog.text.count("no such operator: FancyOp") == 1


def test_a_plan_that_fails_gives_way_and_the_request_is_answered(load, library, caplog):
    engine = load()
    wait_for_plans()
    runner = library.runners[0]
    runner.failing = True
    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected() for found in pool.map(lambda _: total(engine), range(20)))
    assert engine.name == "onnxruntime_onnx" and engine.providers == (CPU,)
    assert "ONNX Runtime serves: its plan failed: the GPU fell off the bus" in engine.detail
    assert caplog.text.count("the GPU fell off the bus") == 1
    # Another thread could still be inside; its memory is given back at the end.
    assert runner.closed == 0
    engine.close()
    assert runner.closed == 1 and engine.sessions == 0
    assert "a plan's memory was not given back: the GPU is still off the bus" in caplog.text


def test_two_threads_that_see_it_fail_report_it_once(load, library, caplog):
    engine = load()
    wait_for_plans()
    for _ in range(2):
        engine._give_up(library.runners[0], "the GPU fell off the bus")
    assert caplog.text.count("the GPU fell off the bus") == 1 and engine.sessions == 2


@pytest.mark.parametrize("inputs", [MANY, {name: array[:0] for name, array in ROWS.items()}])
def test_other_shapes_are_onnx_runtimes(load, library, inputs):
    engine = load()
    wait_for_plans()
    assert total(engine, inputs) == expected(inputs) and library.runners[0].calls == 0
    assert engine.name == "tensorrt_plan"
    with pytest.raises(InvalidInput):
        engine.infer({name: array.reshape(-1) for name, array in ROWS.items()})
    assert engine.name == "tensorrt_plan"


def missing(name):
    raise EngineFailure(f"{name} cannot be loaded: No module named 'tensorrt'")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"find": missing}, "tensorrt cannot be loaded: No module named 'tensorrt'"),
        ({"plans": None}, "this node has no folder for plans"),
    ],
)
def test_why_there_is_no_plan(load, library, caplog, more, why):
    engine = load(**more)
    assert isinstance(engine, TensorRtEngine) and total(engine) == expected()
    assert engine.detail.startswith(f"ONNX Runtime serves: {why}") and why in caplog.text
    assert library.orders == [] and engine.sessions == 1


def test_shapes_that_nothing_shows_leave_it_to_onnx_runtime(load, library):
    engine = load(batching=Batching())
    assert "dimension 0 of input 'left' may have any size" in engine.detail and library.orders == []


def test_warmups_show_the_shapes(load, library, tmp_path):
    (tmp_path / "model").mkdir()
    write_warmup(tmp_path / "model", input_left=np.ones((3, 4), np.float32), output_total=np.ones((3, 4), np.float32))
    load(batching=Batching(), warmup=(Warmup(file="warmup.npz"),))
    wait_for_plans()
    assert library.orders[0].profile == {"left": Span(*[(3, 4)] * 3), "right": Span(*[(1, 4)] * 3)}


def test_close_stops_the_build(load, library):
    library.may_build.clear()
    engine = load()
    assert library.building.wait(20)
    engine.close()
    engine.close()
    wait_for_plans()
    assert library.stopped and library.runners == [] and engine.name == "onnxruntime_onnx"


def test_a_plan_that_comes_after_close_is_given_back(load, library, monkeypatch):
    engine = load()
    wait_for_plans()
    late = engine._source.stored()
    engine.close()
    monkeypatch.setattr(type(engine._source), "stored", lambda self: late)
    engine._get_ready()
    assert late.closed == 1 and engine.name == "onnxruntime_onnx"


def test_a_full_disk_keeps_no_plan_from_serving(load, library, tmp_path, caplog):
    (tmp_path / "plans").write_text("a file where the folder should be")
    engine = load()
    wait_for_plans()
    assert engine.name == "tensorrt_plan" and "cannot be kept" in caplog.text


def test_a_step_of_a_pipeline(tmp_path, library):
    package = adder(tmp_path)
    (tmp_path / "fp32.onnx").rename(tmp_path / "add.fp16.onnx")
    step = Step(name="add", max_rows=6)
    variant = Variant(name="fp16", engine="tensorrt", step="add", source=Source(path="x.onnx"))
    package = replace(package, steps=(step,), variants=(variant,))
    engine = OnnxEngines(find_library=lambda name: library, plans=tmp_path / "plans").graph(tmp_path, package, step)
    wait_for_plans()
    assert (engine.input_names, engine.output_names) == (("left", "right"), ("total", "less"))
    assert library.orders[0].precision == "fp16" and library.orders[0].profile["left"] == Span((1, 4), (6, 4), (6, 4))
    assert total(engine) == expected() and library.runners[0].calls == 1
    engine.close()


def test_a_node_without_a_gpu_has_no_tensorrt(monkeypatch):
    monkeypatch.setattr("nearmesh_agent.engines.tensorrt.cuda._DRIVER", "libnosuchdriver.so.1")
    with pytest.raises(EngineFailure, match=r"there is no GPU: libnosuchdriver\.so\.1"):
        TensorRt.find("tensorrt")


def test_options_of_onnx_runtimes_own_tensorrt(tmp_path):
    key = PlanKey(
        onnx_sha256="0" * 64,
        architecture="sm_90",
        library="onnxruntime",
        version="1.31",
        precision="fp16",
        profile={"x": Span((1, 3), (4, 3), (8, 3))},
    )
    assert tensorrt_options(key, tmp_path) == {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
        "trt_fp16_enable": "1",
        "trt_profile_min_shapes": "x:1x3",
        "trt_profile_opt_shapes": "x:4x3",
        "trt_profile_max_shapes": "x:8x3",
    }
    assert tensorrt_options(replace(key, precision="graph", profile={}), tmp_path)["trt_fp16_enable"] == "0"


@pytest.mark.parametrize(("plans", "optioned"), [(True, True), (False, False)])
def test_onnx_runtimes_own_tensorrt_keeps_what_it_built(tmp_path, monkeypatch, plans, optioned):
    package, given = adder(tmp_path), []
    monkeypatch.setattr(OnnxEngine, "load", lambda *_, providers, **__: given.append(providers))
    providers = ("TensorrtExecutionProvider", CUDA, CPU)
    OnnxEngines(providers=providers, plans=tmp_path / "plans" if plans else None)(tmp_path, package)
    first, *others = given[0]
    assert others == [CUDA, CPU]
    if optioned:
        name, options = first
        assert name == "TensorrtExecutionProvider" and options["trt_profile_max_shapes"] == "left:8x4,right:8x4"
        assert [str(path) for path in (tmp_path / "plans").iterdir()] == [options["trt_engine_cache_path"]]
    else:
        assert first == "TensorrtExecutionProvider"
