"""Runs one TensorRT plan on the GPU: arrays in, arrays out."""

from __future__ import annotations

import math
import queue
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearmesh.errors import EngineFailure
from nearmesh_agent.engines.base import Array
from nearmesh_agent.engines.choice import GPU_INSTANCES
from nearmesh_agent.engines.tensorrt.cuda import Gpu
from nearmesh_agent.engines.tensorrt.shapes import Span


@dataclass(slots=True)
class _Lane:
    """What one call at a time needs: a context, a stream, and memory on the GPU that grows with what passes."""

    context: Any
    stream: int
    # Address and size in bytes, for each tensor.
    rooms: dict[str, tuple[int, int]] = field(default_factory=dict)


class PlanRunner:
    """A plan in the GPU's memory. Thread-safe; calls beyond its lanes wait for each other."""

    def __init__(self, trt: Any, plan: bytes, gpu: Gpu, *, lanes: int = GPU_INSTANCES) -> None:
        """Raises EngineFailure for a plan of another GPU, driver or library, and for one that this cannot run."""
        self._trt, self._gpu = trt, gpu
        gpu.enter()
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineFailure("the plan is not for this GPU and this library")
        self._inputs: dict[str, tuple[np.dtype[Any], Span]] = {}
        self._outputs: dict[str, np.dtype[Any]] = {}
        self._read_tensors()
        self._free: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        # Streams come last: nothing that can fail leaves one behind.
        contexts = [self._new_context() for _ in range(lanes)]
        self._lanes = [_Lane(context, gpu.new_stream()) for context in contexts]
        for lane in self._lanes:
            self._free.put(lane)

    def takes(self, inputs: Mapping[str, Array]) -> bool:
        """Whether these are the plan's inputs, of its types, within the shapes that it was built for."""
        return inputs.keys() == self._inputs.keys() and all(
            inputs[name].dtype == dtype and span.holds(inputs[name].shape)
            for name, (dtype, span) in self._inputs.items()
        )

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output, for inputs that it `takes`. Blocks. Raises EngineFailure."""
        lane = self._free.get()
        try:
            self._gpu.enter()
            return self._infer(lane, inputs)
        finally:
            self._free.put(lane)

    def close(self) -> None:
        """Gives back the GPU's memory. Safe to repeat; no call is running or comes after."""
        self._gpu.enter()
        for lane in self._lanes:
            for address, _ in lane.rooms.values():
                self._gpu.free(address)
            self._gpu.drop_stream(lane.stream)
        # A context goes before its engine, the engine before its runtime.
        self._lanes, self._free = [], queue.SimpleQueue()
        self._engine = None
        self._runtime = None

    def _infer(self, lane: _Lane, inputs: Mapping[str, Array]) -> dict[str, Array]:
        held = {name: np.ascontiguousarray(inputs[name]) for name in self._inputs}
        for name, array in held.items():
            if not lane.context.set_input_shape(name, array.shape):
                raise EngineFailure(f"TensorRT refuses shape {list(array.shape)} of {name!r}")
            self._gpu.copy_in(self._room(lane, name, array.nbytes), array, lane.stream)
        shapes = {name: tuple(lane.context.get_tensor_shape(name)) for name in self._outputs}
        for name, shape in shapes.items():
            if -1 in shape:
                raise EngineFailure(f"the shape of output {name!r} depends on the inputs' values")
            self._room(lane, name, math.prod(shape) * self._outputs[name].itemsize)
        if not lane.context.execute_async_v3(lane.stream):
            raise EngineFailure("TensorRT did not run the plan")
        outputs = {
            name: self._gpu.copy_out(shape, self._outputs[name], lane.rooms[name][0], lane.stream)
            for name, shape in shapes.items()
        }
        self._gpu.wait(lane.stream)
        return outputs

    def _room(self, lane: _Lane, name: str, size_bytes: int) -> int:
        """The address of memory for a tensor, told to the context."""
        address, has_bytes = lane.rooms.get(name, (0, -1))
        if has_bytes < size_bytes:
            if has_bytes >= 0:
                del lane.rooms[name]
                self._gpu.free(address)
            address = self._gpu.allocate(size_bytes)
            lane.rooms[name] = (address, size_bytes)
            lane.context.set_tensor_address(name, address)
        return address

    def _read_tensors(self) -> None:
        trt, engine = self._trt, self._engine
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineFailure(f"{name!r} is a shape, which the plan takes from the host's memory")
            dtype = self._dtype(name)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                shapes = engine.get_tensor_profile_shape(name, 0)
                self._inputs[name] = (dtype, Span(*(tuple(shape) for shape in shapes)))
            else:
                self._outputs[name] = dtype

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name)
        try:
            dtype: np.dtype[Any] = np.dtype(self._trt.nptype(kind))
        except TypeError:
            raise EngineFailure(f"{name!r} has the type {kind}, which arrays have not") from None
        return dtype

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineFailure("there is not enough memory on the GPU for the plan")
        return context
