"""Plans that TensorRT really builds, in the builder's process; running them takes a GPU.

TensorRT for RTX builds without a GPU, so what a node does up to running the plan is tried wherever it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.engines.choice import Layout
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.engines.onnx.engine import OnnxEngine
from nearmesh_agent.engines.tensorrt.cuda import Gpu
from nearmesh_agent.engines.tensorrt.engine import TensorRt
from nearmesh_agent.engines.tensorrt.plan_build import MODULES, PlanBuild, PlanOrder
from nearmesh_agent.engines.tensorrt.plans import PlanStore
from nearmesh_agent.engines.tensorrt.shapes import Span

from nearmesh.errors import EngineFailure
from nearmesh.package import Source, Variant
from tests.plan_library import FakeLibrary, FakeRunner, wait_for_plans
from tests.tiny_models import adder, identity

RTX = "tensorrt-rtx"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec(MODULES[RTX]) is None, reason=f"{RTX} is not installed: pip install {RTX}"
)
EIGHT_ROWS = dict.fromkeys(("left", "right"), Span((1, 4), (4, 4), (8, 4)))


def order(tmp_path, **more):
    adder(tmp_path)
    onnx, plan = str(tmp_path / "fp32.onnx"), str(tmp_path / "plan")
    return PlanOrder(**{"library": RTX, "onnx": onnx, "plan": plan, "profile": EIGHT_ROWS, **more})


def stand_in(tmp_path, monkeypatch, code):
    """Another module in TensorRT's place, in the builder's process."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "tensorrt.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


@needs_rtx
def test_a_plan_is_built_without_a_gpu(tmp_path):
    wanted = order(tmp_path)
    PlanBuild(wanted).run()
    assert (tmp_path / "plan").stat().st_size > 1000
    PlanBuild(replace(wanted, precision="fp16")).run()


@needs_rtx
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"profile": {}}, "input 'left' has free dimensions, and no shapes are known for it"),
        ({"profile": dict.fromkeys(("left", "right"), Span((8, 4), (4, 4), (1, 4)))}, "building failed: "),
        ({"onnx": "/nowhere/model.onnx"}, "building failed: .*/nowhere/model.onnx"),
    ],
)
def test_a_build_that_cannot_work_says_why(tmp_path, change, said):
    with pytest.raises(EngineFailure, match=said):
        PlanBuild(order(tmp_path, **change)).run()
    assert not (tmp_path / "plan").exists()


@needs_rtx
def test_a_graph_that_tensorrt_cannot(tmp_path):
    identity(tmp_path, "BYTES")
    with pytest.raises(EngineFailure, match="building failed: "):
        PlanBuild(
            PlanOrder(library=RTX, onnx=str(tmp_path / "fp32.onnx"), plan=str(tmp_path / "plan"), profile={})
        ).run()


class BuildsForReal(FakeLibrary):
    """The library as it is, up to the GPU: what was built is answered by ONNX Runtime."""

    name = RTX

    def __init__(self, folder, onnx):
        super().__init__(folder)
        self.onnx = onnx
        self.plans = []

    def build(self, order):
        self.orders.append(order)
        return PlanBuild(order)

    def open(self, plan):
        self.plans.append(plan)
        self.runners.append(FakeRunner(OnnxEngine.load(self.onnx, layout=Layout(threads=1)), EIGHT_ROWS))
        return self.runners[-1]


@needs_rtx
def test_an_engine_gets_its_plan_aside_and_the_next_start_finds_it(tmp_path):
    variant = Variant(name="fp32", engine=RTX, source=Source(path="fp32.onnx"))
    package = adder(tmp_path, variants=(variant,))
    library = BuildsForReal(tmp_path, tmp_path / "fp32.onnx")
    engines = OnnxEngines(find_library=lambda name: library, plans=tmp_path / "plans")
    ones = np.ones((2, 4), np.float32)
    for _ in range(2):
        engine = engines(tmp_path, package)
        assert engine.infer({"left": ones, "right": ones})["total"].tolist() == (2 * ones).tolist()
        wait_for_plans()
        assert engine.name == "tensorrt_plan"
        assert engine.infer({"left": ones, "right": ones})["total"].tolist() == (2 * ones).tolist()
        engine.close()
    assert len(library.orders) == 1 and library.plans[0] == library.plans[1] and len(library.plans[0]) > 1000


def test_a_node_without_a_gpu_serves_with_onnx_runtime(tmp_path):
    try:
        Gpu.first()
    except EngineFailure:
        pass
    else:
        pytest.skip("this machine has a GPU")
    variant = Variant(name="fp32", engine=RTX, source=Source(path="fp32.onnx"))
    engine = OnnxEngines(plans=tmp_path / "plans")(tmp_path, adder(tmp_path, variants=(variant,)))
    assert engine.name == "onnxruntime_onnx" and "there is no GPU" in engine.detail
    engine.close()


def test_a_library_that_is_not_there(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "raise ImportError('libnvinfer.so.10 is missing')")
    with pytest.raises(EngineFailure, match=r"tensorrt cannot be loaded: libnvinfer\.so\.10 is missing"):
        PlanBuild(order(tmp_path, library="tensorrt")).run()


def test_a_builder_that_crashes(tmp_path, monkeypatch):
    code = """
        import os, sys
        print("Assertion failed: too bad", file=sys.stderr, flush=True)
        os.abort()
    """
    stand_in(tmp_path, monkeypatch, code)
    with pytest.raises(EngineFailure, match="the builder was ended by signal 6: Assertion failed: too bad"):
        PlanBuild(order(tmp_path, library="tensorrt")).run()


def begun(fifo):
    """Waits until the builder has begun; its process id."""
    with fifo.open() as pipe:
        return int(pipe.read())


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """An order whose build hangs, and a pipe that the builder writes to when it does."""
    fifo = tmp_path / "begun"
    os.mkfifo(fifo)
    code = f"""
        import os, threading
        with open({str(fifo)!r}, "w") as pipe:
            pipe.write(str(os.getpid()))
        threading.Event().wait()
    """
    stand_in(tmp_path, monkeypatch, code)
    return order(tmp_path, library="tensorrt"), fifo


def test_stopping_a_build(hanging):
    wanted, fifo = hanging
    build, said = PlanBuild(wanted), []

    def run():
        try:
            build.run()
        except EngineFailure as error:
            said.append(error.message)

    thread = threading.Thread(target=run)
    thread.start()
    builder = os.pidfd_open(begun(fifo))
    build.stop()
    build.stop()
    thread.join(20)
    assert said == ["building was stopped"]
    assert select.select([builder], [], [], 0)[0]
    os.close(builder)


def test_a_build_that_does_not_end(hanging, monkeypatch):
    monkeypatch.setattr("nearmesh_agent.engines.tensorrt.plan_build.TIMEOUT_S", 0.1)
    with pytest.raises(EngineFailure, match=r"ended by signal 9: it said nothing \(at most 0 s"):
        PlanBuild(hanging[0]).run()


def test_a_build_that_was_stopped_before_it_began(tmp_path):
    build = PlanBuild(order(tmp_path))
    build.stop()
    with pytest.raises(EngineFailure, match="building was stopped"):
        build.run()


def test_the_builder_follows_an_agent_that_was_killed(hanging):
    wanted, fifo = hanging
    code = f"""if True:
        from nearmesh_agent.engines.tensorrt.plan_build import PlanBuild, PlanOrder
        PlanBuild(PlanOrder(library="tensorrt", onnx={wanted.onnx!r}, plan={wanted.plan!r})).run()
    """
    agent = subprocess.Popen([sys.executable, "-c", code])
    builder = os.pidfd_open(begun(fifo))
    agent.kill()
    agent.wait(20)
    # The descriptor of a process is readable when it has ended.
    assert select.select([builder], [], [], 20)[0]
    os.close(builder)


def gpu_and(name):
    """The library on this machine's GPU; the test is skipped where one of them is missing."""
    try:
        return TensorRt.find(name)
    except EngineFailure as error:
        pytest.skip(error.message)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODULES)
def test_a_plan_runs_on_the_gpu(tmp_path, name):
    gpu_and(name)
    variant = Variant(name="fp32", engine=name, source=Source(path="fp32.onnx"))
    package = adder(tmp_path, variants=(variant,))
    engines = OnnxEngines(plans=tmp_path / "plans")
    for _ in range(2):
        engine = engines(tmp_path, package)
        wait_for_plans()
        assert engine.name == "tensorrt_plan", engine.detail
        for rows in (1, 8, 3):
            left = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
            found = engine.infer({"left": left, "right": left})
            np.testing.assert_allclose(found["total"], 2 * left, rtol=1e-3)
            assert found["less"].tolist() == (0 * left).tolist()
        engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODULES)
def test_a_plan_of_another_gpu_is_built_anew(tmp_path, name):
    library = gpu_and(name)
    variant = Variant(name="fp32", engine=name, source=Source(path="fp32.onnx"))
    package = adder(tmp_path, variants=(variant,))
    engines = OnnxEngines(plans=tmp_path / "plans")
    engine = engines(tmp_path, package)
    wait_for_plans()
    key = engine._source.key
    engine.close()
    PlanStore(tmp_path / "plans").put(key, b"no plan at all" * 100)
    with pytest.raises(EngineFailure, match="not for this GPU"):
        library.open(b"no plan at all" * 100)
    engine = engines(tmp_path, package)
    wait_for_plans()
    assert engine.name == "tensorrt_plan", engine.detail
    engine.close()
