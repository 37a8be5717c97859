"""ModelStreamInfer: order, back-pressure, errors, broken streams; and models that give several answers to a request."""

from __future__ import annotations

import asyncio
import gc
import queue
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as sync_triton
from nearmesh_agent.serving import wire
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.errors import Draining, EngineFailure, NotReady, SequenceLost
from nearmesh.package import Batching, Sequence, State, Step
from nearmesh.rpc import from_rpc_error
from tests import tiny_models
from tests.gated_engine import Gate
from tests.inference_server import load, serving
from tests.integration.oip_client import LEFT, activated, client_of, given, stub_of, two_models, until

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


@pytest.fixture
async def counter():
    async with of(COUNTER, Counter()) as (_, stub, replica):
        replica.counting = replica._active.engine
        yield stub, replica


async def test_bytes_of_all_answers_to_a_request_are_counted(counter):
    stub, replica = counter
    replica.counting.open.set()
    request = tensors.encode_request("counter", {"x": np.array([3])})
    answers = [part.infer_response async for part in stub.ModelStreamInfer(iter([request]))]
    assert len(answers) == 3
    assert replica.tally.bytes_in == request.ByteSize()
    assert replica.tally.bytes_out == sum(answer.ByteSize() for answer in answers)


# Order, and how far ahead a stream is worked on.


async def test_answers_come_in_order_though_later_ones_are_ready_sooner(tmp_path):
    engine, adder = Gate(is_open=False), await load(tmp_path, tiny_models.adder(tmp_path))
    async with of(DOUBLER, engine, adder) as (_, stub, _):
        call = stub.ModelStreamInfer()
        await call.write(double(1, "slow"))
        for value in range(3):
            await call.write(add(value))
        await until(lambda: adder.tally.success.count == 3)
        await call.write(double(2))
        engine.open.set()
        assert [await answer(call) for _ in range(5)] == [2, 0, 1, 2, 4]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_requests_of_one_stream_share_engine_calls():
    engine = Gate(is_open=False)
    async with of(DOUBLER, engine) as (_, stub, replica):
        call = stub.ModelStreamInfer()
        await call.write(double(0))
        await engine.entered()
        for value in range(1, 9):
            await call.write(double(value))
        await until(lambda: replica.waiting == 8)
        engine.open.set()
        assert [await answer(call) for _ in range(9)] == [2 * value for value in range(9)]
        assert engine.rows == [1, 8]
        (counted,) = (await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="doubler"))).model_stats
        assert counted.execution_count == 2
        call.cancel()


async def test_a_stream_is_worked_on_32_requests_ahead():
    engine = Gate(is_open=False)
    async with of(DOUBLER, engine) as (_, stub, replica):
        call = stub.ModelStreamInfer()
        for value in range(50):
            await call.write(double(value))
        await until(lambda: replica.in_flight >= 32)
        for _ in range(20):
            await stub.ServerLive(service_pb2.ServerLiveRequest())
            assert replica.in_flight == 32
        engine.open.set()
        assert [await answer(call) for _ in range(50)] == [2 * value for value in range(50)]
        call.cancel()


async def test_a_slow_reader_is_not_worked_for():
    """Of answers that nobody takes, the connection holds some, and the node no more than it works on at a time."""

    class Large(Gate):
        def compute(self, inputs):
            return {"y": np.tile(inputs["x"], 1 << 18)}

    one_by_one = tiny_models.package("doubler", list(DOUBLER.inputs), list(DOUBLER.outputs), queue=200)
    async with of(one_by_one, Large()) as (_, stub, replica):
        call = stub.ModelStreamInfer()
        for value in range(150):
            await call.write(double(value))
        seen = -1
        while seen != (seen := replica.tally.success.count) or seen < 32:
            for _ in range(50):
                await stub.ServerLive(service_pb2.ServerLiveRequest())
        assert seen < 100
        assert [await answer(call) for _ in range(150)] == [*range(150)]
        call.cancel()


# Errors, and ends.


async def test_one_request_s_error_does_not_end_the_stream():
    async with of(DOUBLER, Gate()) as (_, stub, _):
        call = stub.ModelStreamInfer()
        wrong = double(2, "r-2")
        wrong.inputs[0].datatype = "INT32"
        for request in (double(1), wrong, double(np.nan), double(3), double(4)):
            await call.write(request)
        assert await answer(call) == 2
        failed = await call.read()
        assert "datatype 'INT32' given, expected FP32" in failed.error_message
        assert failed.infer_response.id == "r-2"
        assert failed.infer_response.parameters["nearmesh_reason"].string_param == "INVALID_INPUT"
        assert [await answer(call) for _ in range(3)] == ["not a number", 6, 8]
        call.cancel()


@pytest.mark.parametrize("why", [SequenceLost, Draining, NotReady])
async def test_what_ends_a_stream_comes_after_earlier_answers(why, tmp_path):
    engine = Gate(is_open=False)
    accumulator = await load(tmp_path, tiny_models.accumulator(tmp_path))
    async with of(DOUBLER, engine, accumulator) as (running, stub, replica):
        call = stub.ModelStreamInfer()
        await call.write(double(1))
        await call.write(double(2))
        await until(lambda: replica.in_flight == 2)
        if why is Draining:
            running.servicer.draining = True
        if why is NotReady:
            running.table.expect("to-come", "being loaded")
        last = go_on(7, model="to-come" if why is NotReady else "accumulator")
        if why is Draining:
            last.parameters["sequence_start"].bool_param = True
        # Those behind it fail as well, or are broken off; nobody is to ask for them.
        for request in (last, last, double(3)):
            await call.write(request)
        await until(lambda: running.servicer.draining or replica.in_flight == 3)
        engine.open.set()
        assert [await answer(call), await answer(call)] == [2, 4]
        assert isinstance(await ended(call), why)


async def test_bytes_that_are_no_request_end_the_stream_after_earlier_answers():
    engine = Gate(is_open=False)
    async with of(DOUBLER, engine) as (running, _, _), grpc.aio.insecure_channel(running.address) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )()
        await call.write(double(1).SerializeToString())
        await call.write(b"\xff\xff")
        await engine.entered()
        engine.open.set()
        assert await answer(call) == 2
        error = await ended(call)
        assert error.status is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_that_is_cut_leaves_nothing():
    """`of` looks for requests, holds and tasks."""
    engine = Gate(is_open=False)
    async with of(DOUBLER, engine) as (_, stub, replica):
        calls = [stub.ModelStreamInfer() for _ in range(3)]
        for call in calls:
            for value in range(40):
                await call.write(double(value))
        await until(lambda: replica.in_flight == 96)
        for call in calls:
            call.cancel()
        # The one that is computed cannot be broken off.
        await until(lambda: replica.in_flight <= 8)
        assert replica.tally.outcomes["CANCELLED"] == 96
        engine.open.set()
        assert engine.calls == 1


async def test_a_stream_that_is_cut_lets_go_of_its_sequences():
    engine = Gate()
    async with of(HOLDER, engine) as (_, stub, replica):
        call = stub.ModelStreamInfer()
        for sequence in (1, 2, 3):
            request = go_on(sequence, model="holder", outputs=["y"])
            request.parameters["sequence_start"].bool_param = True
            await call.write(request)
            assert await answer(call) == 2
        assert len(replica.holds) == 3
        engine.open.clear()
        await call.write(tensors_free(1))
        await until(lambda: engine.inside == 1)
        call.cancel()


def tensors_free(sequence):
    """A step whose only input is the state."""
    request = tensors.encode_request("holder", {})
    request.parameters["sequence_id"].int64_param = sequence
    return request


async def test_a_client_that_is_gone_leaves_nothing():
    engine = Gate(is_open=False)
    async with of(DOUBLER, engine) as (running, _, replica):
        async with stub_of(running) as stub:
            call = stub.ModelStreamInfer()
            for value in range(10):
                await call.write(double(value))
            await until(lambda: replica.in_flight == 10)
        await until(lambda: replica.in_flight <= 8)


# Large messages.


async def test_large_unary_requests_are_cut_and_answers_put_together(tmp_path, monkeypatch):
    read, written = [], []
    cut, write = wire.read, wire.write
    monkeypatch.setattr(wire, "read", lambda data: read.append(cut(data)) or read[-1])
    monkeypatch.setattr(wire, "write", lambda response: written.append(response) or write(response))
    described = tiny_models.identity(tmp_path, "FP32")
    replica = await load(tmp_path, described)
    async with serving([replica]) as running, client_of(running) as client:
        for rows in (10, 100_000):
            array = np.random.default_rng(rows).random((rows, 3), np.float32)
            result = await client.infer(described.name, given(x=array), request_id=f"{rows}")
            assert np.array_equal(result.as_numpy("y"), array)
            assert result.get_response().id == f"{rows}"
    small, large = read
    assert isinstance(small.raw[0], bytes) and isinstance(large.raw[0], memoryview)
    # The large answer was put together as bytes, and needs no writing.
    assert len(written) == 1 and not isinstance(written[0], bytes)


async def test_large_answers_on_a_stream(tmp_path):
    described = tiny_models.identity(tmp_path, "FP64")
    replica = await load(tmp_path, described)
    array = np.random.default_rng(1).random((10_000, 3))
    async with serving([replica]) as running, stub_of(running) as stub:
        call = stub.ModelStreamInfer()
        await call.write(tensors.encode_request(described.name, {"x": array}))
        found = tensors.decode_response((await call.read()).infer_response)
        assert np.array_equal(found["y"], array)
        call.cancel()


# Several answers to one request.


async def test_several_answers_to_each_request_in_order(counter):
    stub, replica = counter
    call = stub.ModelStreamInfer()
    for request in (count(3, request_id="a"), count(0, request_id="b"), count(2, request_id="c")):
        await call.write(request)
    await call.done_writing()
    found = [response.infer_response async for response in call]
    values = [(each.id, int(tensors.decode_response(each)["y"][0])) for each in found]
    assert values == [("a", 0), ("a", 1), ("a", 2), ("c", 0), ("c", 1)]
    assert all([output.name for output in each.outputs] == ["y"] and not each.parameters for each in found)
    assert replica.tally.outcomes == {"OK": 3}


@pytest.mark.parametrize("numbers", [(0,), (1,), (3,)])
async def test_an_empty_answer_at_the_end_for_those_who_ask(counter, numbers):
    stub, _ = counter
    call = stub.ModelStreamInfer()
    await call.write(count(*numbers, final=True))
    found = [(await call.read()).infer_response for _ in range(numbers[0] + 1)]
    flags = [each.parameters["triton_final_response"].bool_param for each in found]
    assert flags == [False] * numbers[0] + [True]
    assert not found[-1].outputs and (found[-1].model_name, found[-1].id) == ("counter", "r")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_single_answer_is_the_final_one(tmp_path):
    async with two_models(tmp_path) as running, stub_of(running) as stub:
        call = stub.ModelStreamInfer()
        for final in (True, False):
            request = add(0)
            request.parameters["triton_enable_empty_final_response"].bool_param = final
            await call.write(request)
            found = (await call.read()).infer_response
            assert ("triton_final_response" in found.parameters) is final
            assert found.parameters["triton_final_response"].bool_param is final and len(found.outputs) == 2
        call.cancel()


async def test_several_answers_with_the_stock_client(counter):
    _, replica = counter

    def use(address):
        answers: queue.Queue = queue.Queue()
        with sync_triton.InferenceServerClient(address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for final in (True, False):
                inputs = given(sync_triton, x=np.array([2]))
                client.async_stream_infer("counter", inputs, request_id=f"{final}", enable_empty_final_response=final)
            found = [answers.get(timeout=20) for _ in range(5)]
            client.stop_stream()
        return found

    async with serving([replica]) as running:
        found = await asyncio.to_thread(use, running.address)
    assert [error for _, error in found] == [None] * 5
    seen = [(result.get_response().id, result.as_numpy("y")) for result, _ in found]
    numbers = [(name, None if array is None else int(array[0])) for name, array in seen]
    assert numbers == [("True", 0), ("True", 1), ("True", None), ("False", 0), ("False", 1)]


async def test_several_answers_with_the_stock_client_of_asyncio(counter):
    _, replica = counter

    async def requests():
        for numbers in ([2], [3, 1], [1]):
            yield {"model_name": "counter", "inputs": given(x=np.array(numbers)), "request_id": f"{numbers}"}

    async with serving([replica]) as running, client_of(running) as client:
        found = [
            str(error.message()) if error else int(result.as_numpy("y")[0])
            async for result, error in client.stream_infer(requests())
        ]
    assert found == [0, 1, 0, "no 1", 0]


async def test_an_error_in_the_middle_ends_the_request_and_not_the_stream(counter):
    stub, replica = counter
    call = stub.ModelStreamInfer()
    for request in (count(5, 2), count(1)):
        await call.write(request)
    assert [await answer(call) for _ in range(4)] == [0, 1, "no 2", 0]
    await until(lambda: replica.tally.outcomes == {EngineFailure.reason: 1, "OK": 1})
    call.cancel()


async def test_a_wrong_request_never_begins(counter):
    stub, replica = counter
    call = stub.ModelStreamInfer()
    wrong = count(1)
    wrong.outputs[0].name = "words"
    await call.write(wrong)
    assert "output 'words' is asked for; 'counter' has 'y', 'text'" in await answer(call)
    assert replica.counting.begun == 0
    call.cancel()


async def test_the_caller_leaves_in_the_middle(counter):
    stub, replica = counter
    engine = replica.counting
    engine.open.clear()
    call = stub.ModelStreamInfer()
    await call.write(count(1000))
    await engine.entered()
    call.cancel()
    engine.open.set()
    await until(lambda: engine.ended == 1)
    assert engine.made <= 1
    # Its place is free.
    again = stub.ModelStreamInfer()
    await again.write(count(1))
    assert await answer(again) == 0
    await until(lambda: replica.tally.outcomes == {"CANCELLED": 1, "OK": 1})
    again.cancel()


async def test_the_caller_leaves_between_two_answers(counter):
    """Nothing is made for a caller who does not read; the connection holds some answers."""
    stub, replica = counter
    engine = replica.counting
    call = stub.ModelStreamInfer()
    await call.write(count(10_000_000))
    assert await answer(call) == 0
    call.cancel()
    await until(lambda: engine.ended == 1)
    assert engine.made < 10_000_000


async def test_the_deadline_passes_in_the_middle(counter):
    stub, replica = counter
    engine = replica.counting
    call = stub.ModelStreamInfer()
    engine.open.clear()
    late = count(5)
    late.parameters["timeout"].int64_param = 20_000
    await call.write(late)
    assert "had not given all its answers by the deadline" in await answer(call)
    # What comes after it waits for the thread that is still at work.
    await call.write(count(1))
    await until(lambda: len(replica._active.streams) == 2)
    assert engine.begun == 1
    engine.open.set()
    assert await answer(call) == 0
    assert engine.begun == 2
    call.cancel()


async def test_one_answer_is_not_offered_by_a_model_that_gives_several(counter):
    stub, replica = counter
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(count(1))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "call ModelStreamInfer" in caught.value.details()
    assert replica.counting.begun == 0


async def test_models_of_both_kinds_on_one_stream(tmp_path):
    adder = await load(tmp_path, tiny_models.adder(tmp_path))
    async with of(COUNTER, Counter(), adder) as (_, stub, _):
        call = stub.ModelStreamInfer()
        for request in (count(2), add(7, outputs=["less"]), count(1), add(8, outputs=["less"])):
            await call.write(request)
        assert [await answer(call) for _ in range(5)] == [0, 1, 7, 0, 8]
        call.cancel()
