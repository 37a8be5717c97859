"""Streams as a test asks for them: models of its own on a server, single requests and their answers."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from nearmesh import tensors
from nearmesh.errors import EngineFailure
from nearmesh.package import Batching, Sequence, State, Step
from nearmesh.rpc import from_rpc_error
from tests import tiny_models
from tests.gated_engine import Gate
from tests.inference_server import serving
from tests.integration.oip_client import LEFT, activated, stub_of, until

DOUBLER = tiny_models.package(
    "doubler",
    [tiny_models.spec("x", "FP32", -1)],
    [tiny_models.spec("y", "FP32", -1)],
    batching=Batching(max_batch=8),
    queue=200,
)
HOLDER = tiny_models.package(
    "holder",
    [tiny_models.spec("x", "FP32", 1)],
    [tiny_models.spec("y", "FP32", 1)],
    sequence=Sequence(state=(State(input="x", output="y", shape=(1,)),)),
)
COUNTER = tiny_models.package(
    "counter",
    [tiny_models.spec("x", "INT64", -1)],
    [tiny_models.spec("y", "INT64", 1), tiny_models.spec("text", "BYTES", 1)],
    decoupled=True,
    variants=(),
    steps=(Step(name="count", python="count.py:count"),),
)


class Counter(Gate):
    """Gives 0, 1 ... up to `x` - 1, and fails at a second `x`; it waits for the gate before each answer."""

    begun = made = ended = 0

    def stream(self, inputs):
        self.begun += 1
        try:
            for number in range(inputs["x"][0]):
                self.running.release()
                assert self.open.wait(20)
                if number in inputs["x"][1:]:
                    raise EngineFailure(f"no {number}")
                self.made += 1
                yield {"y": np.array([number]), "text": np.array([b"n"], object)}
        finally:
            self.ended += 1


def double(value, request_id=""):
    return tensors.encode_request("doubler", {"x": np.array([value], np.float32)}, request_id=request_id)


def add(value, **more):
    return tensors.encode_request("adder", {"left": LEFT + value, "right": LEFT}, **more)


def count(*numbers, final=None, request_id="r"):
    request = tensors.encode_request("counter", {"x": np.array(numbers)}, outputs=["y"], request_id=request_id)
    if final is not None:
        request.parameters["triton_enable_empty_final_response"].bool_param = final
    return request


def go_on(sequence, model="accumulator", **more):
    request = tensors.encode_request(model, {"x": np.array([1], np.float32)}, **more)
    request.parameters["sequence_id"].int64_param = sequence
    return request


async def answer(call):
    """The next answer's first output as a number, or its error."""
    response = await call.read()
    if response is grpc.aio.EOF:
        raise AssertionError(f"the stream ended: {await call.code()} {await call.details()}")
    if response.error_message:
        return response.error_message
    return float(next(iter(tensors.decode_response(response.infer_response).values())).flat[0])


async def ended(call):
    """The error that ends a stream."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return from_rpc_error(caught.value)


def our_tasks():
    """Those of requests and streams; gRPC has some of its own."""
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("InferenceServicer.ModelStream", "Inference.", "_Work."))]


@asynccontextmanager
async def of(described, engine, *others):
    """A server with a model of the test's own, and a stub; nothing may be left of any request afterwards."""
    replica = await activated(described, engine)
    forgotten = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))
    async with serving([replica, *others]) as running, stub_of(running) as stub:
        try:
            yield running, stub, replica
        finally:
            engine.open.set()
        await until(lambda: replica.in_flight == 0 and len(replica.holds) == 0)
        await until(lambda: not running.servicer._streams and not our_tasks())
    # Neither an exception nor a task that nobody looked at.
    gc.collect()
    assert forgotten == []
