"""How sequences end that do not end by themselves: with their node, with their version."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from nearmesh_agent.serving.replica import Replica
from tritonclient.grpc import service_pb2_grpc

from nearmesh import tensors
from nearmesh.errors import Draining, SequenceLost
from nearmesh.package import Sequence, State
from nearmesh.rpc import from_rpc_error
from tests import tiny_models
from tests.gated_engine import Gate
from tests.inference_server import load, serving
from tests.integration.oip_client import activated, stub_of, two_models, until
from tests.integration.oip_sequences import SUMMING, Summing, ask, lost, refused, send, step


@pytest.fixture
async def running(tmp_path):
    async with two_models(tmp_path) as running:
        yield running


@pytest.fixture
async def stub(running):
    async with stub_of(running) as stub:
        yield stub


async def test_a_draining_node_lets_sequences_end_and_begins_none(running, stub):
    await ask(stub, step(1, 7, start=True))
    running.servicer.draining = True
    assert isinstance(await refused(stub, step(1, 8, start=True)), Draining)
    assert await ask(stub, step(1, 7)) == {"sum": [2]}
    assert await ask(stub, step(1, 7, end=True)) == {"sum": [3]}


async def ended(call):
    """The error that ends a stream to which nothing was sent."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call.read(), 20)
    return from_rpc_error(caught.value)


async def test_a_draining_node_ends_streams_without_a_sequence_and_leaves_the_others(running, stub):
    idle, busy = stub.ModelStreamInfer(), stub.ModelStreamInfer()
    assert await send(idle, step(1, 7, start=True, end=True)) == {"sum": [1]}
    assert await send(busy, step(1, 7, start=True)) == {"sum": [1]}
    running.servicer.draining = True
    assert isinstance(await ended(idle), Draining)
    # One that may not begin any more takes none with it that is under way.
    await busy.write(step(1, 8, start=True))
    refusal = (await busy.read()).infer_response.parameters
    assert refusal["nearmesh_reason"].string_param == "DRAINING"
    assert await send(busy, step(1, 7)) == {"sum": [2]}
    assert (running.servicer.sequences_kept, running.servicer.drained) == (1, False)
    assert await send(busy, step(1, 7, end=True)) == {"sum": [3]}
    assert isinstance(await ended(busy), Draining)
    await until(lambda: running.servicer.drained)


async def test_sequences_that_do_not_end_are_told_to_begin_anew_elsewhere():
    engine = Summing(is_open=False)
    replica = await activated(SUMMING, engine)
    async with serving([replica]) as running, stub_of(running) as stub:
        engine.open.set()
        silent, asking = stub.ModelStreamInfer(), stub.ModelStreamInfer()
        for call in (silent, asking):
            assert await send(call, step(1, 7, start=True, model="summing")) == {"sum": [1]}
        engine.open.clear()
        # One request is being computed, and one waits for its turn.
        await asking.write(step(1, 7, model="summing"))
        await asking.write(step(1, 7, model="summing"))
        await until(lambda: running.servicer.in_flight == 2)
        running.servicer.draining = True
        running.servicer.end_sequences()
        error = await ended(silent)
        assert isinstance(error, SequenceLost)
        assert "node 'node-1' is leaving" in error.message and "another node takes it" in error.message
        engine.open.set()
        # What had come is answered first.
        for total in (2, 3):
            response = await asking.read()
            assert tensors.decode_response(response.infer_response)["sum"].tolist() == [total]
        assert isinstance(await ended(asking), SequenceLost)
        await until(lambda: running.servicer.drained and len(replica.holds) == 0)


async def test_a_stream_whose_requests_have_ended_ends_well_in_spite_of_the_drain():
    engine = Summing(is_open=False)
    replica = await activated(SUMMING, engine)
    async with serving([replica]) as running, stub_of(running) as stub:
        call = stub.ModelStreamInfer()
        await call.write(step(1, 7, start=True, end=True, model="summing"))
        await call.done_writing()
        await engine.entered()
        running.servicer.draining = True
        running.servicer.end_sequences()
        engine.open.set()
        assert (await call.read()).error_message == ""
        assert await call.read() is grpc.aio.EOF and await call.code() is grpc.StatusCode.OK


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
        assert not gone.done() and old.active
        # A stream that breaks off leaves nothing behind.
        other.cancel()
        await asyncio.wait_for(gone, 20)
        await old.close()
        assert not old.active
        again = stub.ModelStreamInfer()
        await again.write(step(1, 7, start=True))
        assert (await again.read()).infer_response.model_version == "2"
        again.cancel()
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
    replica = Replica(described, "sha256:1", make=lambda: engine)
    await replica.activate()
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
