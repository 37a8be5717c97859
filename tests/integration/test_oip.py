"""The Open Inference Protocol as stock tritonclient speaks it, against a real server in this process."""

from __future__ import annotations

import asyncio
import queue
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as sync_triton
import tritonclient.grpc.aio as triton
from nearmesh_agent.serving.replica import Replica, ReplicaConfig
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from nearmesh import __version__, tensors
from nearmesh.errors import DeadlineExceeded, Overloaded, SequenceLost
from nearmesh.package import Sequence, State
from nearmesh.rpc import REASON_KEY, from_rpc_error
from tests import tiny_models
from tests.gated_engine import Gate
from tests.inference_server import load, serving
from tests.tiny_models import SAMPLES

LEFT = np.arange(8, dtype=np.float32).reshape(2, 4)
RIGHT = np.full((2, 4), 10, np.float32)


@asynccontextmanager
async def client_of(running, **options):
    async with triton.InferenceServerClient(running.address, **options) as client:
        yield client


@pytest.fixture
async def running(tmp_path):
    """`adder` and `accumulator`."""
    replicas = [
        await load(tmp_path / "adder", tiny_models.adder(tmp_path / "adder")),
        await load(tmp_path / "accumulator", tiny_models.accumulator(tmp_path / "accumulator")),
    ]
    async with serving(replicas) as running:
        yield running


@pytest.fixture
async def client(running):
    async with client_of(running) as client:
        yield client


@pytest.fixture
async def stub(running):
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def given(library=triton, **arrays):
    found = []
    for name, array in arrays.items():
        found.append(library.InferInput(name, array.shape, tensors.datatype_of(array)))
        found[-1].set_data_from_numpy(array)
    return found


@pytest.mark.parametrize("datatype", SAMPLES)
async def test_every_dtype(tmp_path, datatype):
    package = tiny_models.identity(tmp_path, datatype)
    async with serving([await load(tmp_path, package)]) as running, client_of(running) as client:
        result = await client.infer(package.name, given(x=SAMPLES[datatype]))
        assert result.as_numpy("y").tolist() == SAMPLES[datatype].tolist()
        assert result.get_response().raw_output_contents

        metadata = await client.get_model_metadata(package.name)
        assert (metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == (datatype, [-1, 3])


async def test_typed_contents(stub):
    request = service_pb2.ModelInferRequest(model_name="adder", id="42")
    contents = service_pb2.InferTensorContents(fp32_contents=[1, 2, 3, 4])
    request.inputs.add(name="left", datatype="FP32", shape=[1, 4], contents=contents)
    response = await stub.ModelInfer(request)
    assert tensors.decode_response(response)["total"].tolist() == [[1, 2, 3, 4]]
    assert (response.model_name, response.model_version, response.id) == ("adder", "1", "42")


async def test_the_sync_client(running):
    def use():
        with sync_triton.InferenceServerClient(running.address) as client:
            assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("adder")
            return client.infer("adder", given(sync_triton, left=LEFT, right=RIGHT), request_id="a").as_numpy("total")

    assert (await asyncio.to_thread(use)).tolist() == (LEFT + RIGHT).tolist()


async def test_requested_outputs_and_version(client):
    outputs = [triton.InferRequestedOutput("less")]
    result = await client.infer("adder", given(left=LEFT, right=RIGHT), model_version="1", outputs=outputs)
    assert [output.name for output in result.get_response().outputs] == ["less"]
    assert result.as_numpy("less").tolist() == (LEFT - RIGHT).tolist()


async def test_description(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("adder")
    assert not await client.is_model_ready("adder", "9")
    assert not await client.is_model_ready("faces")
    server = await client.get_server_metadata()
    assert (server.name, server.version) == ("nearmesh", __version__)
    index = await client.get_model_repository_index()
    assert {(m.name, m.version, m.state) for m in index.models} == {
        ("adder", "1", "READY"),
        ("accumulator", "1", "READY"),
    }


async def test_model_config(client):
    adder = (await client.get_model_config("adder")).config
    assert (adder.platform, adder.max_batch_size) == ("onnxruntime_onnx", 8)
    assert [(i.name, list(i.dims), i.data_type, i.optional) for i in adder.input] == [
        ("left", [4], 11, False),
        ("right", [4], 11, True),
    ]
    accumulator = (await client.get_model_config("accumulator")).config
    assert [i.name for i in accumulator.input] == ["x"]
    assert [o.name for o in accumulator.output] == ["sum"]
    assert [(s.input_name, s.output_name) for s in accumulator.sequence_batching.state] == [("before", "after")]
    assert accumulator.sequence_batching.max_sequence_idle_microseconds == 60_000_000


async def test_statistics(client):
    for _ in range(3):
        await client.infer("adder", given(left=LEFT))
    with pytest.raises(InferenceServerException):
        await client.infer("adder", given(left=LEFT[:, :2]))
    (found,) = (await client.get_inference_statistics("adder")).model_stats
    assert (found.inference_count, found.execution_count) == (6, 3)
    assert found.inference_stats.success.count == 3 and found.inference_stats.fail.count == 1
    assert found.inference_stats.compute_infer.ns > 0 and found.last_inference > 0
    assert len((await client.get_inference_statistics()).model_stats) == 2


async def test_receipt(client):
    result = await client.infer("adder", given(left=LEFT), parameters={"nearmesh_receipt": True, "unknown": "ignored"})
    receipt = result.get_response().parameters
    assert receipt["nearmesh_node"].string_param == "node-1"
    assert receipt["nearmesh_site"].string_param == "site-1"
    assert receipt["nearmesh_region"].string_param == "europe-west1"
    assert receipt["nearmesh_variant"].string_param == "fp32"
    assert receipt["nearmesh_digest"].string_param.startswith("sha256:")
    compute_ms, service_ms = receipt["nearmesh_compute_ms"].double_param, receipt["nearmesh_service_ms"].double_param
    assert 0 < compute_ms < service_ms
    assert receipt["nearmesh_queue_ms"].double_param >= 0
    assert not (await client.infer("adder", given(left=LEFT))).get_response().parameters


def message(**changes):
    """A right request to `adder`, changed."""
    request = tensors.encode_request("adder", {"left": LEFT, "right": RIGHT})
    for name, value in changes.items():
        target = request.inputs[0] if name in ("name", "datatype", "shape") else request
        if name == "shape":
            target.shape[:] = value
        elif name == "raw":
            request.raw_input_contents[0] = value
        else:
            setattr(target, name, value)
    return request


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
        (stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="adder")), "nearmesh model deploy"),
        (stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest()), "nearmesh model deploy"),
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
    options = [("grpc.max_receive_message_length", 100_000)]
    async with serving([await load(tmp_path, package)], options) as running, client_of(running) as client:
        with pytest.raises(InferenceServerException, match=r"larger than max \(.* vs\. 100000\)") as caught:
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


async def test_p4_a_swap_fails_nothing(tmp_path):
    """The old version answers what it had; requests without a version go to the new one."""
    old = await load(tmp_path, tiny_models.adder(tmp_path))
    new = await load(tmp_path, tiny_models.adder(tmp_path, version="2"))
    async with serving([old]) as running, client_of(running) as client:
        versions = set()

        async def ask():
            for _ in range(50):
                result = await client.infer("adder", given(left=LEFT, right=RIGHT))
                versions.add(result.get_response().model_version)
                assert result.as_numpy("total").tolist() == (LEFT + RIGHT).tolist()

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            await client.infer("adder", given(left=LEFT))
            replaced = running.table.put(new)
            running.table.remove(replaced.digest)
            await replaced.close()
        assert versions == {"1", "2"} or versions == {"2"}
        assert (await client.get_model_metadata("adder")).versions == ["2"]
    await new.close()


async def test_metrics(running, client):
    await client.infer("adder", given(left=LEFT))
    with pytest.raises(InferenceServerException):
        await client.infer("faces", given(left=LEFT))
    running.servicer.draining = True
    with pytest.raises(InferenceServerException):
        await client.infer("adder", given(left=LEFT))
    value = running.metrics.registry.get_sample_value
    assert value("nearmesh_requests_total", {"model": "adder", "status": "OK"}) == 1
    assert value("nearmesh_requests_total", {"model": "unknown", "status": "NOT_FOUND"}) == 1
    assert value("nearmesh_rejected_total", {"model": "adder", "reason": "DRAINING"}) == 1
    assert value("nearmesh_service_seconds_count", {"model": "adder"}) == 1
    assert value("nearmesh_in_flight") == 0


async def test_a_bug_is_not_counted_as_an_answer(running, client, monkeypatch):
    monkeypatch.setattr("nearmesh_agent.serving.servicer._respond", lambda *_: 1 // 0)
    with pytest.raises(InferenceServerException):
        await client.infer("adder", given(left=LEFT))
    value = running.metrics.registry.get_sample_value
    assert value("nearmesh_requests_total", {"model": "adder", "status": "INTERNAL"}) == 1
    assert value("nearmesh_requests_total", {"model": "adder", "status": "OK"}) is None


async def test_a_deadline_that_passed_on_the_node_shows_in_what_the_node_says_of_itself(running, stub, monkeypatch):
    replica = running.table.get("adder")

    async def late(*args, **kwargs):
        await asyncio.sleep(0.05)
        raise DeadlineExceeded("too late")

    await stub.ModelInfer(message())
    monkeypatch.setattr(replica, "infer", late)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.ModelInfer(message())
    assert replica.stats().service_ms_p95 >= 50


async def test_a_node_without_a_model_is_live_and_not_ready():
    async with serving([]) as running, client_of(running) as client:
        assert await client.is_server_live()
        assert not await client.is_server_ready()


async def test_p7_a_client_that_gives_up_never_reaches_the_engine():
    engine = Gate(is_open=False)
    described = tiny_models.package("doubler", [tiny_models.spec("x", "FP32", -1)], [tiny_models.spec("y", "FP32", -1)])
    replica = Replica(described, "sha256:1", engine, config=ReplicaConfig())
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


# Streams and sequences.


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


async def test_sequences_on_a_stream(stub):
    call = stub.ModelStreamInfer()
    assert await send(call, step(1, 7, start=True)) == {"sum": [1]}
    assert await send(call, step(10, "seven", start=True)) == {"sum": [10]}
    assert await send(call, step(2, 7)) == {"sum": [3]}
    assert await send(call, step(20, "seven")) == {"sum": [30]}
    assert await send(call, step(3, 7, outputs=["after", "sum"], end=True)) == {"after": [6], "sum": [6]}
    assert await send(call, step(5, 7, start=True)) == {"sum": [5]}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_bad_request_leaves_stream_and_sequence_whole(stub):
    call = stub.ModelStreamInfer()
    await send(call, step(1, 7, start=True))
    bad = step(1, 7)
    bad.inputs[0].datatype = "INT32"
    assert "datatype 'INT32' given, expected FP32" in await send(call, bad)
    kept = step(1, 7)
    kept.inputs.add(name="before", datatype="FP32", shape=[1])
    kept.raw_input_contents.append(b"\0" * 4)
    assert "within a sequence the node keeps it" in await send(call, kept)
    assert "no model 'faces'" in await send(call, step(1, 7, model="faces"))
    assert await send(call, step(1, 7)) == {"sum": [2]}
    call.cancel()


async def test_errors_on_a_stream_say_which_request_and_why(stub):
    call = stub.ModelStreamInfer()
    await call.write(step(1, 7, start=True, model="faces"))
    failed = (await call.read()).infer_response
    assert failed.id == "r"
    assert failed.parameters["nearmesh_reason"].string_param == "NOT_FOUND"
    call.cancel()


async def test_a_lost_sequence_ends_the_stream(stub):
    error = await lost(stub.ModelStreamInfer(), step(1, 7))
    assert isinstance(error, SequenceLost)
    assert "start it again with sequence_start" in error.message


async def test_state_does_not_outlive_its_stream(stub):
    call = stub.ModelStreamInfer()
    await send(call, step(1, 7, start=True))
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert isinstance(await lost(stub.ModelStreamInfer(), step(1, 7)), SequenceLost)


async def test_unary_calls_keep_no_state(stub):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(step(1, 7, start=True))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "call ModelStreamInfer" in caught.value.details()

    # A client may as well carry the state itself.
    inputs = {"x": np.array([1], np.float32), "before": np.array([41], np.float32)}
    found = tensors.decode_response(await stub.ModelInfer(tensors.encode_request("accumulator", inputs)))
    assert {name: array.tolist() for name, array in found.items()} == {"sum": [42], "after": [42]}


async def test_p4_a_sequence_survives_a_swap_and_its_version_goes_when_it_ends(tmp_path):
    old = await load(tmp_path, tiny_models.accumulator(tmp_path))
    new = await load(tmp_path, tiny_models.accumulator(tmp_path, version="2"))
    async with serving([old]) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call, other = stub.ModelStreamInfer(), stub.ModelStreamInfer()
        for stream in (call, other):
            await send(stream, step(1, 7, start=True))
        running.table.put(new)
        running.table.remove(old.digest)
        gone = asyncio.create_task(old.sequences_over())
        assert await send(call, step(2, 7)) == {"sum": [3]}
        named = step(3, 7)
        named.model_version = "1"
        assert await send(call, named) == {"sum": [6]}
        running.servicer.draining = True
        assert await send(call, step(4, 7, end=True)) == {"sum": [10]}
        running.servicer.draining = False
        assert not gone.done() and old.engine._session is not None
        # A stream that breaks off leaves nothing behind.
        other.cancel()
        await asyncio.wait_for(gone, 20)
        await old.close()
        assert old.engine._session is None
        await call.write(step(1, 7, start=True))
        assert (await call.read()).infer_response.model_version == "2"
    await new.close()


async def test_a_sequence_is_lost_when_its_version_is_closed(tmp_path):
    old = await load(tmp_path, tiny_models.accumulator(tmp_path))
    async with serving([old]) as running, grpc.aio.insecure_channel(running.address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        await send(call, step(1, 7, start=True))
        running.table.remove(old.digest)
        assert await send(call, step(2, 7)) == {"sum": [3]}
        await old.close()
        error = await lost(call, step(3, 7))
        assert isinstance(error, SequenceLost)
        assert "has left this node" in error.message


async def test_p4_a_first_step_that_is_computed_during_a_swap_begins_its_sequence():
    described = tiny_models.package(
        "doubler",
        [tiny_models.spec("x", "FP32", 1)],
        [tiny_models.spec("y", "FP32", 1)],
        sequence=Sequence(state=(State(input="x", output="y", shape=(1,)),)),
    )
    engine = Gate(is_open=False)
    replica = Replica(described, "sha256:1", engine, config=ReplicaConfig())
    async with serving([replica]) as running, grpc.aio.insecure_channel(running.address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        first = asyncio.create_task(send(call, step(1, 7, start=True, model="doubler", outputs=["y"])))
        await engine.entered()
        running.table.remove(replica.digest)
        gone = asyncio.create_task(replica.sequences_over())
        await asyncio.sleep(0)
        assert not gone.done()
        engine.open.set()
        assert await first == {"y": [2]}
        second = tensors.encode_request("doubler", {})
        second.parameters["sequence_id"].int64_param = 7
        second.parameters["sequence_end"].bool_param = True
        second.outputs.add(name="y")
        assert await send(call, second) == {"y": [4]}
        await asyncio.wait_for(gone, 20)


async def test_sequences_with_the_stock_client(running):
    def use():
        answers: queue.Queue = queue.Queue()
        with sync_triton.InferenceServerClient(running.address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            found = []
            for value in (1, 2, 3):
                client.async_stream_infer(
                    "accumulator",
                    given(sync_triton, x=np.array([value], np.float32)),
                    sequence_id=9,
                    sequence_start=value == 1,
                    sequence_end=value == 3,
                )
                result, error = answers.get(timeout=20)
                assert error is None
                found.append(result.as_numpy("sum").tolist())
            client.async_stream_infer("accumulator", given(sync_triton, x=np.array([1], np.float32)), sequence_id=9)
            _, error = answers.get(timeout=20)
            client.stop_stream()
            return found, error

    found, error = await asyncio.to_thread(use)
    assert found == [[1], [3], [6]]
    assert error.status() == "StatusCode.ABORTED"


async def test_stateless_models_stream_too(stub):
    call = stub.ModelStreamInfer()
    for number in range(5):
        left = np.full((1, 4), number, np.float32)
        request = tensors.encode_request("adder", {"left": left}, outputs=["total"])
        assert await send(call, request) == {"total": [[number] * 4]}
    call.cancel()


async def test_p6_overload_is_refused_on_the_wire(running, stub, monkeypatch):
    replica = running.table.get("adder")

    async def full(*args, **kwargs):
        raise Overloaded("full", retry_after_ms=25)

    monkeypatch.setattr(replica, "infer", full)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(message())
    error = from_rpc_error(caught.value)
    assert isinstance(error, Overloaded) and error.retry_after_ms == 25
