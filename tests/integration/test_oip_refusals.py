"""What a node refuses over the Open Inference Protocol, and how it says so; it goes on serving right requests."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.replica_config import ReplicaConfig
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from nearmesh import tensors
from nearmesh.errors import Overloaded
from nearmesh.rpc import REASON_KEY, from_rpc_error
from tests import tiny_models
from tests.gated_engine import Gate
from tests.inference_server import load, serving
from tests.integration.oip_client import LEFT, RIGHT, client_of, given, message
from tests.tiny_models import SAMPLES

BAD = [
    ({"model_name": "faces"}, "NOT_FOUND", "no model 'faces' on this node; it has 'accumulator', 'adder'"),
    ({"model_name": "x" * 100_000}, "NOT_FOUND", "no model 'xxxx"),
    ({"model_version": "9"}, "NOT_FOUND", "model 'adder' has no version '9' on this node; it has '1'"),
    ({"name": "up"}, "INVALID_ARGUMENT", "input 'up' is given; 'adder' expects 'left', 'right'"),
    ({"name": "right"}, "INVALID_ARGUMENT", "input 'right' is given twice"),
    ({"datatype": "INT32"}, "INVALID_ARGUMENT", "input 'left': datatype 'INT32' given, expected FP32"),
    ({"datatype": "BF16"}, "INVALID_ARGUMENT", "'BF16' given, expected FP32"),
    ({"shape": [2, 5]}, "INVALID_ARGUMENT", "input 'left': shape [2, 5] given, expected [-1, 4] (-1 is any size)"),
    ({"shape": [8]}, "INVALID_ARGUMENT", "shape [8] given, expected [-1, 4]"),
    ({"shape": [-2, 4]}, "INVALID_ARGUMENT", "shape [-2, 4] has the dimension -2, expected 0 or more"),
    ({"shape": [2**62, 4]}, "INVALID_ARGUMENT", f"is {2**66} bytes, given 32 bytes"),
    ({"shape": [3, 4]}, "INVALID_ARGUMENT", "FP32 of shape [3, 4] is 48 bytes, given 32 bytes"),
    ({"shape": [0, 4], "raw": b""}, "INVALID_ARGUMENT", "'left' has 0, 'right' has 2; expected the same number"),
    ({"raw": b"\0" * 31}, "INVALID_ARGUMENT", "is 32 bytes, given 31 bytes"),
    ({"raw": b"\0" * 33}, "INVALID_ARGUMENT", "is 32 bytes, given 33 bytes"),
]


@pytest.mark.parametrize(("changes", "status", "said"), BAD, ids=[said[:30] for _, _, said in BAD])
async def test_bad_requests(stub, changes, status, said):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(message(**changes))
    assert caught.value.code().name == status
    assert said in caught.value.details()
    assert dict(caught.value.trailing_metadata())[REASON_KEY] in ("INVALID_INPUT", "NOT_FOUND")

    golden = tensors.decode_response(await stub.ModelInfer(message()))
    assert golden["total"].tolist() == (LEFT + RIGHT).tolist()


async def test_bad_structures(stub):
    missing = message()
    del missing.inputs[0], missing.raw_input_contents[0]
    one_raw = message()
    del one_raw.raw_input_contents[0]
    mixed = message()
    mixed.inputs[1].contents.fp32_contents.append(1)
    output = message()
    output.outputs.add(name="sum")
    for request, said in (
        (missing, "input 'left' is missing; 'adder' expects 'left'"),
        (one_raw, "1 raw input contents given, expected 2"),
        (mixed, "tensor 'right': raw and typed contents are both given"),
        (output, "output 'sum' is asked for; 'adder' has 'total', 'less'"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert said in caught.value.details()


async def test_bytes_that_are_no_message(running):
    async with grpc.aio.insecure_channel(running.address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the 3 bytes of the request cannot be parsed" in caught.value.details()
        answer = service_pb2.ModelInferResponse.FromString(await call(message().SerializeToString()))
        assert tensors.decode_response(answer)["total"].tolist() == (LEFT + RIGHT).tolist()


async def test_what_is_not_offered(client, stub):
    with pytest.raises(InferenceServerException, match="classification is not offered"):
        await client.infer("adder", given(left=LEFT), outputs=[triton.InferRequestedOutput("total", class_count=2)])
    for call, said in (
        (stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest()), "shared memory is not offered"),
        (stub.CudaSharedMemoryRegister(service_pb2.CudaSharedMemoryRegisterRequest()), "shared memory is not offered"),
        (stub.TraceSetting(service_pb2.TraceSettingRequest()), "trace settings"),
        (stub.LogSettings(service_pb2.LogSettingsRequest()), "log settings"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert said in caught.value.details()


async def test_message_size_limit(tmp_path):
    package = tiny_models.identity(tmp_path, "UINT8")
    async with (
        serving([await load(tmp_path, package)], max_message_bytes=100_000) as running,
        client_of(running) as client,
    ):
        with pytest.raises(InferenceServerException, match="100000 are allowed here") as caught:
            await client.infer(package.name, given(x=np.zeros((40_000, 3), np.uint8)))
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        answer = await client.infer(package.name, given(x=SAMPLES["UINT8"]))
        assert answer.as_numpy("y").tolist() == SAMPLES["UINT8"].tolist()


async def test_draining(running, client):
    running.servicer.draining = True
    assert not await client.is_server_ready()
    assert not await client.is_model_ready("adder")
    assert await client.is_server_live()
    with pytest.raises(InferenceServerException, match="'node-1' is leaving") as caught:
        await client.infer("adder", given(left=LEFT))
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    running.servicer.draining = False
    assert (await client.infer("adder", given(left=LEFT))).as_numpy("total").tolist() == LEFT.tolist()


async def test_deadline_in_the_request(client):
    assert (await client.infer("adder", given(left=LEFT), timeout=10_000_000)).as_numpy("total") is not None
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("adder", given(left=LEFT), timeout=1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def test_p7_a_client_that_gives_up_never_reaches_the_engine():
    engine = Gate(is_open=False)
    described = tiny_models.package("doubler", [tiny_models.spec("x", "FP32", -1)], [tiny_models.spec("y", "FP32", -1)])
    replica = Replica(described, "sha256:1", make=lambda: engine, config=ReplicaConfig())
    await replica.activate()
    request = tensors.encode_request("doubler", {"x": np.ones(2, np.float32)})
    async with serving([replica]) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        first = asyncio.ensure_future(stub.ModelInfer(request))
        await engine.entered()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(request, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        engine.open.set()
        assert tensors.decode_response(await first)["y"].tolist() == [2, 2]
        assert tensors.decode_response(await stub.ModelInfer(request))["y"].tolist() == [2, 2]
        assert engine.calls == 2


async def test_p6_overload_is_refused_on_the_wire(running, stub, monkeypatch):
    replica = running.table.get("adder")

    async def full(*args, **kwargs):
        raise Overloaded("full", retry_after_ms=25)

    monkeypatch.setattr(replica, "infer", full)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(message())
    error = from_rpc_error(caught.value)
    assert isinstance(error, Overloaded) and error.retry_after_ms == 25
