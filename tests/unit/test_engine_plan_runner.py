"""How a plan is run, with a driver and a TensorRT made up of the machine's own memory: `y` = `x` + 1, int32."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from nearmesh_agent.engines.tensorrt.cuda import Gpu
from nearmesh_agent.engines.tensorrt.plan_runner import PlanRunner

from nearmesh.errors import EngineFailure


def target(reference):
    """What a `ctypes.byref` refers to."""
    return reference._obj


class FakeDriver:
    """libcuda, whose GPU memory is buffers of this process."""

    def __init__(self):
        self.memory, self.streams, self.entered = {}, set(), set()
        self.fails = {}
        self.lock = threading.Lock()

    def __getattribute__(self, name):
        if name.startswith("cu") and name in self.fails:
            return lambda *_: self.fails[name]
        return super().__getattribute__(name)

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, device, index):
        target(device).value = index
        return 0

    def cuDeviceGetAttribute(self, value, which, device):
        target(value).value = {75: 8, 76: 9}[which]
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        target(context).value = 4711
        return 0

    def cuCtxSetCurrent(self, context):
        self.entered.add(threading.get_ident())
        return 0

    def cuStreamCreate(self, stream, flags):
        assert flags == 1
        target(stream).value = 100 + len(self.streams)
        self.streams.add(target(stream).value)
        return 0

    def cuStreamSynchronize(self, stream):
        return 0

    def cuStreamDestroy_v2(self, stream):
        self.streams.remove(stream.value)
        return 0

    def cuMemAlloc_v2(self, address, size):
        assert size.value > 0
        buffer = ctypes.create_string_buffer(size.value)
        with self.lock:
            self.memory[ctypes.addressof(buffer)] = buffer
        target(address).value = ctypes.addressof(buffer)
        return 0

    def cuMemFree_v2(self, address):
        del self.memory[address.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, address, source, size, stream):
        assert size.value <= len(self.memory[address.value]) and stream.value in self.streams
        ctypes.memmove(address.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, destination, address, size, stream):
        assert size.value <= len(self.memory[address.value]) and stream.value in self.streams
        ctypes.memmove(destination.value, address.value, size.value)
        return 0

    def cuGetErrorName(self, status, text):
        target(text).value = {2: b"CUDA_ERROR_OUT_OF_MEMORY"}.get(status)
        return 0


class FakeContext:
    """Adds one. Its shapes and addresses are what it was told."""

    def __init__(self, engine):
        self.engine, self.shape, self.addresses = engine, None, {}

    def set_input_shape(self, name, shape):
        self.shape = shape
        return self.engine.accepts

    def get_tensor_shape(self, name):
        return self.engine.output_shape or self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if self.engine.output_shape:
            # Not the shape that adding one gives; there is nothing to write.
            return self.engine.runs
        size = int(np.prod(self.shape)) * 4
        given = np.frombuffer(ctypes.string_at(self.addresses["x"], size), np.int32)
        ctypes.memmove(self.addresses["y"], (given + 1).tobytes(), size)
        return self.engine.runs


class FakePlan:
    """What TensorRT makes of a plan."""

    num_io_tensors = 2

    def __init__(self):
        self.accepts = self.runs = True
        self.output_shape = None
        self.location, self.kind = "device", "int32"
        self.contexts = 2

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_location(self, name):
        return self.location

    def get_tensor_mode(self, name):
        return "in" if name == "x" else "out"

    def get_tensor_profile_shape(self, name, profile):
        return (1, 2), (4, 2), (8, 2)

    def get_tensor_dtype(self, name):
        return self.kind

    def create_execution_context(self):
        self.contexts -= 1
        return FakeContext(self) if self.contexts >= 0 else None


def fake_trt(plan):
    def nptype(kind):
        if kind != "int32":
            raise TypeError
        return np.int32

    class Logger:
        ERROR = 1

        def __init__(self, severity):
            self.severity = severity

    return SimpleNamespace(
        Logger=Logger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: plan if data == b"plan" else None),
        TensorLocation=SimpleNamespace(DEVICE="device"),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        nptype=nptype,
    )


@pytest.fixture
def driver():
    return FakeDriver()


@pytest.fixture
def plan():
    return FakePlan()


@pytest.fixture
def runner(driver, plan):
    return PlanRunner(fake_trt(plan), b"plan", Gpu(driver))


def rows(count, start=0):
    return np.arange(start, start + count * 2, dtype=np.int32).reshape(count, 2)


def test_the_architecture(driver):
    assert Gpu(driver).architecture == "sm_89"


def test_arrays_in_arrays_out(runner):
    for count in (1, 8, 3, 4):
        found = runner.infer({"x": rows(count, start=count)})
        assert list(found) == ["y"] and found["y"].dtype == np.int32
        assert found["y"].tolist() == (rows(count, start=count) + 1).tolist()


def test_strided_and_read_only_inputs(runner):
    wide = np.arange(24, dtype=np.int32).reshape(4, 6)[:, ::3]
    wide.flags.writeable = False
    assert runner.infer({"x": wide})["y"].tolist() == (wide + 1).tolist()


def test_an_output_without_elements(runner, plan):
    plan.output_shape = (0, 2)
    assert runner.infer({"x": rows(4)})["y"].shape == (0, 2)


def test_threads_take_turns_and_each_enters_the_gpu(runner, driver):
    seen = set()

    def one(number):
        seen.add(threading.get_ident())
        return (runner.infer({"x": rows(4, start=number)})["y"] == rows(4, start=number) + 1).all()

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(300)))
    assert seen <= driver.entered
    # Two lanes with two tensors each, however many called.
    assert len(driver.memory) <= 4 and len(driver.streams) == 2


@pytest.mark.parametrize(
    ("inputs", "taken"),
    [
        ({"x": rows(1)}, True),
        ({"x": rows(8)}, True),
        ({"x": rows(0)}, False),
        ({"x": rows(9)}, False),
        ({"x": rows(2).T[:1]}, True),
        ({"x": rows(2).reshape(-1)}, False),
        ({"x": rows(2).astype(np.int64)}, False),
        ({"z": rows(2)}, False),
        ({"x": rows(2), "z": rows(2)}, False),
        ({}, False),
    ],
)
def test_what_it_takes(runner, inputs, taken):
    assert runner.takes(inputs) is taken


def test_close_gives_everything_back(runner, driver):
    runner.infer({"x": rows(4)})
    runner.close()
    runner.close()
    assert driver.memory == {} and driver.streams == set()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accepts": False}, r"TensorRT refuses shape \[4, 2\] of 'x'"),
        ({"runs": False}, "TensorRT did not run the plan"),
        ({"output_shape": (-1, 2)}, "the shape of output 'y' depends on the inputs' values"),
    ],
)
def test_a_call_that_fails_frees_its_lane(runner, plan, change, said):
    for name, value in change.items():
        setattr(plan, name, value)
    for _ in range(3):
        with pytest.raises(EngineFailure, match=said):
            runner.infer({"x": rows(4)})
    plan.accepts = plan.runs = True
    plan.output_shape = None
    assert runner.infer({"x": rows(4)})["y"].tolist() == (rows(4) + 1).tolist()


def test_memory_that_is_not_there(runner, driver):
    driver.fails["cuMemAlloc_v2"] = 2
    with pytest.raises(EngineFailure, match="CUDA: cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY"):
        runner.infer({"x": rows(4)})
    driver.fails["cuMemAlloc_v2"] = 12345
    with pytest.raises(EngineFailure, match="CUDA: cuMemAlloc_v2 failed: error 12345"):
        runner.infer({"x": rows(4)})
    driver.fails.clear()
    assert runner.infer({"x": rows(4)})["y"].tolist() == (rows(4) + 1).tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"location": "host"}, "'x' is a shape, which the plan takes from the host's memory"),
        ({"kind": "fp8"}, "'x' has the type fp8, which arrays have not"),
        ({"contexts": 1}, "not enough memory on the GPU"),
    ],
)
def test_plans_that_it_cannot_run(driver, plan, change, said):
    for name, value in change.items():
        setattr(plan, name, value)
    with pytest.raises(EngineFailure, match=said):
        PlanRunner(fake_trt(plan), b"plan", Gpu(driver))
    assert driver.streams == set()


def test_a_foreign_plan(driver, plan):
    with pytest.raises(EngineFailure, match="the plan is not for this GPU and this library"):
        PlanRunner(fake_trt(plan), b"another's plan", Gpu(driver))


def test_a_driver_without_a_gpu(driver):
    driver.fails["cuInit"] = 100
    with pytest.raises(EngineFailure, match="CUDA: cuInit failed: error 100"):
        Gpu(driver)
