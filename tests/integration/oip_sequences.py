"""Steps of sequences as a test asks for them, on streams and by unary calls."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from nearmesh import tensors
from nearmesh.package import Batching, Sequence, State, TensorSpec
from nearmesh.rpc import from_rpc_error
from tests import tiny_models
from tests.gated_engine import Gate

# Sums, with rows that sequences may share a call for; the state's are along its second axis.
SUMMING = tiny_models.package(
    "summing",
    [tiny_models.spec("x", "FP32", -1), TensorSpec(name="before", dtype="FP64", shape=(1, -1), batch_axis=1)],
    [tiny_models.spec("sum", "FP32", -1), TensorSpec(name="after", dtype="FP64", shape=(1, -1), batch_axis=1)],
    batching=Batching(max_batch=16),
    sequence=Sequence(state=(State(input="before", output="after", dtype="FP64", shape=(1, 1)),)),
)


class Summing(Gate):
    def compute(self, inputs):
        total = inputs["before"][0] + inputs["x"]
        return {"sum": total.astype(np.float32), "after": total[None]}


def step(value, sequence, *, start=False, end=False, outputs=(), model="accumulator"):
    request = tensors.encode_request(model, {"x": np.array([value], np.float32)}, outputs=outputs, request_id="r")
    kind = "string_param" if isinstance(sequence, str) else "int64_param"
    setattr(request.parameters["sequence_id"], kind, sequence)
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    return request


async def send(call, request):
    """One answer on a stream: its outputs, or its error."""
    await call.write(request)
    response = await call.read()
    if response is grpc.aio.EOF:
        raise AssertionError(f"the stream ended: {await call.code()} {await call.details()}")
    if response.error_message:
        return response.error_message
    return {name: array.tolist() for name, array in tensors.decode_response(response.infer_response).items()}


async def lost(call, request):
    """The error that ends a stream."""
    await call.write(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return from_rpc_error(caught.value)


async def ask(stub, request, **more):
    """One unary answer: its outputs."""
    response = await stub.ModelInfer(request, **more)
    return {name: array.tolist() for name, array in tensors.decode_response(response).items()}


async def refused(stub, request, **more):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request, **more)
    return from_rpc_error(caught.value)
