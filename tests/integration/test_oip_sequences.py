"""Sequences of the Open Inference Protocol: state on a node, of a stream as long as it lives, or of unary calls."""

from __future__ import annotations

import asyncio
import queue
from dataclasses import replace
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tritonclient.grpc as sync_triton
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.errors import Overloaded, SequenceLost
from nearmesh.rpc import Gatekeeper, Identity
from nearmesh.tokens import SUBJECT_HEADER, Bearer
from tests import tiny_models
from tests.inference_server import load, serving
from tests.integration.oip_client import activated, client_of, given, stub_of, two_models, until
from tests.integration.oip_sequences import SUMMING, Summing, ask, lost, refused, send, step


@pytest.fixture
async def running(tmp_path):
    async with two_models(tmp_path) as running:
        yield running


@pytest.fixture
async def stub(running):
    async with stub_of(running) as stub:
        yield stub


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


async def test_a_client_may_carry_the_state_itself(stub):
    inputs = {"x": np.array([1], np.float32), "before": np.array([41], np.float32)}
    found = tensors.decode_response(await stub.ModelInfer(tensors.encode_request("accumulator", inputs)))
    assert {name: array.tolist() for name, array in found.items()} == {"sum": [42], "after": [42]}


# Sequences of unary calls: their state is on the node.


async def none_held(replica):
    await asyncio.wait_for(replica.holds.over(idle_s=60, most_s=60), 20)
    assert len(replica.holds) == 0


async def test_a_sequence_of_unary_calls(running, stub):
    assert await ask(stub, step(1, 7, start=True)) == {"sum": [1]}
    # Another connection is the same node.
    async with stub_of(running) as other:
        assert await ask(other, step(2, 7, outputs=["after"])) == {"after": [3]}
        assert await ask(other, step(10, "7", start=True)) == {"sum": [10]}
    assert len(running.table.get("accumulator").holds) == 2
    assert await ask(stub, step(3, 7, end=True)) == {"sum": [6]}
    assert await ask(stub, step(1, "7", end=True)) == {"sum": [11]}
    assert len(running.table.get("accumulator").holds) == 0


async def test_an_unknown_sequence_is_lost(running, stub):
    for request in (step(1, 7), step(1, "seven", end=True)):
        error = await refused(stub, request)
        assert isinstance(error, SequenceLost) and error.status is grpc.StatusCode.ABORTED
        assert "start it again with sequence_start" in error.message
    assert len(running.table.get("accumulator").holds) == 0


async def test_streams_and_unary_calls_have_each_their_own(stub):
    await ask(stub, step(1, 7, start=True))
    assert isinstance(await lost(stub.ModelStreamInfer(), step(1, 7)), SequenceLost)
    call = stub.ModelStreamInfer()
    assert await send(call, step(5, 7, start=True)) == {"sum": [5]}
    assert await ask(stub, step(1, 7)) == {"sum": [2]}
    call.cancel()


async def test_callers_with_the_same_id_do_not_meet(tmp_path):
    tokens = SimpleNamespace(access=lambda token: Bearer(token, "client"))
    replica = await load(tmp_path, tiny_models.accumulator(tmp_path))
    async with serving([replica], verifier=tokens) as running, stub_of(running) as stub:
        ann, bob = ({"metadata": [("authorization", f"Bearer {name}")]} for name in ("ann", "bob"))
        await ask(stub, step(1, 7, start=True), **ann)
        assert isinstance(await refused(stub, step(1, 7), **bob), SequenceLost)
        await ask(stub, step(10, 7, start=True), **bob)
        assert await ask(stub, step(1, 7), **ann) == {"sum": [2]}
        assert await ask(stub, step(1, 7), **bob) == {"sum": [11]}


@pytest.mark.parametrize(("role", "apart"), [("gateway", True), ("client", False)])
async def test_a_gateway_alone_is_believed_whose_call_it_brings(tmp_path, monkeypatch, role, apart):
    monkeypatch.setattr(Gatekeeper, "admit", lambda *_: Identity("edge", role))
    async with serving([await load(tmp_path, tiny_models.accumulator(tmp_path))]) as running, stub_of(running) as stub:
        ann, bob = ({"metadata": [(SUBJECT_HEADER, name)]} for name in ("ann", "bob"))
        await ask(stub, step(1, 7, start=True), **ann)
        if apart:
            assert isinstance(await refused(stub, step(1, 7), **bob), SequenceLost)
        else:
            assert await ask(stub, step(1, 7), **bob) == {"sum": [2]}


async def test_steps_of_one_sequence_never_overlap():
    """Ten at a time, with two instances: each goes on from what the one before it left."""
    engine = Summing(instances=2)
    replica = await activated(SUMMING, engine)
    async with serving([replica]) as running, stub_of(running) as stub:
        await ask(stub, step(0, 7, start=True, model="summing"))
        found = await asyncio.gather(*(ask(stub, step(1, 7, model="summing")) for _ in range(10)))
        assert sorted(each["sum"][0] for each in found) == [*range(1, 11)]
        call = stub.ModelStreamInfer()
        for value in range(10):
            await call.write(step(value, 7, start=value == 0, model="summing"))
        found = [(await call.read()).infer_response for _ in range(10)]
        assert [tensors.decode_response(each)["sum"][0] for each in found] == [0, 1, 3, 6, 10, 15, 21, 28, 36, 45]
        call.cancel()
    assert engine.most_inside == 1


async def test_a_caller_who_leaves_the_line_does_not_count():
    engine = Summing(is_open=False)
    replica = await activated(SUMMING, engine)
    async with serving([replica]) as running, stub_of(running) as stub:
        first = asyncio.create_task(ask(stub, step(1, 7, start=True, model="summing")))
        await engine.entered()
        left = stub.ModelInfer(step(10, 7, model="summing"))
        await until(lambda: len(running.servicer.sequences._turns.get(("anyone", "summing", 7), ())) == 2)
        left.cancel()
        await until(lambda: len(running.servicer.sequences._turns[("anyone", "summing", 7)]) == 1)
        engine.open.set()
        assert await first == {"sum": [1]}
        assert await ask(stub, step(100, 7, end=True, model="summing")) == {"sum": [101]}
        await none_held(replica)


async def test_sequences_share_engine_calls_and_keep_apart():
    """Of one stream, of another and of unary calls."""
    engine = Summing(is_open=False)
    replica = await activated(SUMMING, engine)
    async with serving([replica]) as running, stub_of(running) as stub:
        blocking = asyncio.create_task(ask(stub, step(0, "first", start=True, model="summing")))
        await engine.entered()
        streams = [stub.ModelStreamInfer() for _ in range(2)]
        for name in range(1, 4):
            await streams[0].write(step(name, name, start=True, model="summing"))
        await streams[1].write(step(40, 1, start=True, model="summing"))
        unary = [asyncio.create_task(ask(stub, step(50 + n, n, start=True, model="summing"))) for n in (1, 2)]
        await until(lambda: replica.waiting == 6)
        engine.open.set()
        await blocking
        found = [(await streams[0].read()).infer_response for _ in range(3)]
        found.append((await streams[1].read()).infer_response)
        assert [tensors.decode_response(each)["sum"][0] for each in found] == [1, 2, 3, 40]
        assert await asyncio.gather(*unary) == [{"sum": [51]}, {"sum": [52]}]
        assert engine.rows == [1, 6]
        (counted,) = (await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="summing"))).model_stats
        assert counted.execution_count == 2
        # Each goes on with its own, and keeps no more than that in memory.
        assert await send(streams[0], step(1, 2, model="summing")) == {"sum": [3]}
        assert await send(streams[1], step(1, 1, model="summing")) == {"sum": [41]}
        assert await ask(stub, step(1, 1, model="summing")) == {"sum": [52]}
        assert {kept.state["before"].nbytes for kept in running.servicer.sequences._kept.values()} == {8}
        for stream in streams:
            stream.cancel()


async def test_idle_sequences_are_forgotten_though_nobody_asks(tmp_path):
    replica = await load(tmp_path, tiny_models.accumulator(tmp_path, idle_s=0.05))
    async with serving([replica]) as running, stub_of(running) as stub:
        call = stub.ModelStreamInfer()
        await send(call, step(1, 7, start=True))
        await ask(stub, step(1, 7, start=True))
        assert len(replica.holds) == 2
        await none_held(replica)
        assert isinstance(await refused(stub, step(1, 7)), SequenceLost)
        # The stream is as good as before.
        assert await send(call, step(5, 7, start=True)) == {"sum": [5]}
        call.cancel()


async def test_as_many_sequences_as_the_package_says():
    replica = await activated(replace(SUMMING, sequence=replace(SUMMING.sequence, most=2)), Summing())
    async with serving([replica]) as running, stub_of(running) as stub:
        call = stub.ModelStreamInfer()
        await send(call, step(1, 1, start=True, model="summing"))
        await ask(stub, step(1, 1, start=True, model="summing"))
        error = await refused(stub, step(1, 2, start=True, model="summing"))
        assert isinstance(error, Overloaded) and error.retry_after_ms == 60_000
        assert "2 sequences of 'summing' are on this node, as many as may" in error.message
        assert "as many as may" in await send(call, step(1, 2, start=True, model="summing"))
        # Those that are there go on, and make room.
        assert await ask(stub, step(1, 1, end=True, model="summing")) == {"sum": [2]}
        assert await send(call, step(1, 2, start=True, model="summing")) == {"sum": [1]}
        call.cancel()


async def test_unary_sequences_with_the_stock_client(running):
    async with client_of(running) as client:
        for value, total in ((1, 1), (2, 3), (3, 6)):
            result = await client.infer(
                "accumulator",
                given(x=np.array([value], np.float32)),
                sequence_id="call-9",
                sequence_start=value == 1,
                sequence_end=value == 3,
            )
            assert result.as_numpy("sum").tolist() == [total]


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
