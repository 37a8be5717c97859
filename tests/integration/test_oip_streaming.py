"""ModelStreamInfer: order, back-pressure, errors, broken streams, large messages."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from nearmesh_agent.serving import wire
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.errors import Draining, NotReady, SequenceLost
from tests import tiny_models
from tests.gated_engine import Gate
from tests.inference_server import load, serving
from tests.integration.oip_client import client_of, given, stub_of, until
from tests.integration.oip_streams import DOUBLER, HOLDER, add, answer, double, ended, go_on, of

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
