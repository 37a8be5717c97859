"""A library of plans without a GPU: its plans are ONNX files, which ONNX Runtime runs."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from nearmesh_agent.engines.choice import Layout
from nearmesh_agent.engines.onnx.engine import OnnxEngine
from nearmesh_agent.engines.tensorrt.engine import THREAD

from nearmesh.errors import EngineFailure


class FakeRunner:
    """Runs a plan; `failing` makes it fail as a broken device would."""

    def __init__(self, engine, spans):
        self.engine, self.spans = engine, spans
        self.calls = self.closed = 0
        self.failing = False

    def takes(self, inputs):
        return inputs.keys() == self.spans.keys() and all(
            span.holds(inputs[name].shape) for name, span in self.spans.items()
        )

    def infer(self, inputs):
        self.calls += 1
        if self.failing:
            raise EngineFailure("the GPU fell off the bus")
        return self.engine.infer(inputs)

    def close(self):
        self.closed += 1
        self.engine.close()
        if self.failing:
            raise EngineFailure("the GPU is still off the bus")


class FakeBuild:
    def __init__(self, library, order):
        self.library, self.order = library, order

    def run(self):
        self.library.building.set()
        assert self.library.may_build.wait(20)
        if self.library.stopped:
            raise EngineFailure("building was stopped")
        if self.library.fails:
            raise EngineFailure(self.library.fails)
        shutil.copyfile(self.order.onnx, self.order.plan)

    def stop(self):
        self.library.stopped += 1
        self.library.may_build.set()


class FakeLibrary:
    """As TensorRt, on the CPU. `folder` is its own scratch space."""

    name, version, architecture = "tensorrt", "10.0", "sm_00"

    def __init__(self, folder, *, fails="", is_open=True):
        self.folder, self.fails = Path(folder), fails
        # A build waits for `may_build`.
        self.building, self.may_build = threading.Event(), threading.Event()
        if is_open:
            self.may_build.set()
        self.orders, self.runners = [], []
        self.stopped = 0
        self.opens = 0
        # A plan that begins so is of another GPU.
        self.foreign = b"foreign"

    def build(self, order):
        self.orders.append(order)
        return FakeBuild(self, order)

    def open(self, plan):
        self.opens += 1
        if plan.startswith(self.foreign):
            raise EngineFailure("the plan is not for this GPU and this library")
        file = self.folder / f"opened-{self.opens}.onnx"
        file.write_bytes(plan)
        engine = OnnxEngine.load(file, layout=Layout(threads=1))
        self.runners.append(FakeRunner(engine, self.orders[-1].profile))
        return self.runners[-1]


def wait_for_plans():
    """Until every plan that is being made ready is, or is known not to be."""
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD):
            thread.join(20)
            assert not thread.is_alive()
