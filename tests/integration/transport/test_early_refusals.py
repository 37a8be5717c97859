"""P6: a large request that cannot be answered is refused by its beginning, before its tensors have arrived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import h2.events
import numpy as np
import pytest
from nearmesh_agent.engines.base import Array
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh import tensors
from nearmesh.package import Package, TensorSpec
from tests import tiny_models
from tests.gated_engine import Gate
from tests.http2_peer import OPENING
from tests.inference_server import Running, serving
from tests.integration.oip_client import activated, until
from tests.integration.transport.service import RawClient

WIDTH = 250_000
# Of a megabyte, so much is sent.
SENT_BYTES = 20_000


def package() -> Package:
    spec = {"dtype": "FP32", "shape": (-1, WIDTH)}
    return tiny_models.package("wide", [TensorSpec(name="x", **spec)], [TensorSpec(name="y", **spec)], queue=1)


class Echo(Gate):
    """Gives back what it gets."""

    def compute(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"]}


@asynccontextmanager
async def node(engine: Gate) -> AsyncIterator[Running]:
    replica = await activated(package(), engine)
    async with serving([replica]) as running:
        try:
            yield running
        finally:
            engine.open.set()


def request(model: str = "wide", version: str = "") -> Any:
    return tensors.encode_request(model, {"x": np.arange(WIDTH, dtype=np.float32)[None]}, version=version)


@asynccontextmanager
async def begun(running: Running, asked: Any, *headers: tuple[str, str]) -> AsyncIterator[RawClient]:
    """A client that has sent the first part of a request and means to send the rest."""
    host, _, port = running.address.rpartition(":")
    client = RawClient(*await asyncio.open_connection(host, int(port)))
    path = "/inference.GRPCInferenceService/ModelInfer"
    opening = [(name, path if name == ":path" else value) for name, value in OPENING]
    client.h2.send_headers(1, [*opening, *headers])
    message = asked.SerializeToString()
    client.h2.send_data(1, (b"\0" + len(message).to_bytes(4, "big") + message)[: SENT_BYTES // 2])
    client.h2.send_data(1, message[SENT_BYTES // 2 - 5 : SENT_BYTES])
    try:
        yield client
    finally:
        client.writer.close()
        await client.writer.wait_closed()


async def told(client: RawClient) -> dict[str, str]:
    """The trailers, once the answer has ended and the rest of the request is declined."""

    def over() -> bool:
        return any(isinstance(event, h2.events.StreamReset) for event in client.events)

    await client.until(over)
    assert any(isinstance(event, h2.events.StreamEnded) for event in client.events)
    (reset,) = (event for event in client.events if isinstance(event, h2.events.StreamReset))
    assert reset.error_code == 0, "it is no error to have said more than was needed"
    (answer,) = (event for event in client.events if isinstance(event, h2.events.ResponseReceived))
    return dict(answer.headers)


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        (request("nobody"), grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        (request(version="99"), grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    ],
)
async def test_p6_who_is_not_served_here_need_not_send_it_all(asked, status, reason):
    async with node(Echo()) as running, begun(running, asked) as client:
        found = await told(client)
        assert found["grpc-status"] == str(status.value[0]) and found["nearmesh-reason"] == reason


async def test_p6_a_node_that_leaves_says_so_at_once():
    async with node(Echo()) as running:
        running.servicer.draining = True
        async with begun(running, request()) as client:
            assert (await told(client))["nearmesh-reason"] == "DRAINING"


async def test_p6_overload_is_refused_by_the_beginning():
    engine = Echo(is_open=False)
    async with node(engine) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (replica,) = running.table
        # One is computed, one waits; there is no room for a third.
        calls = [asyncio.ensure_future(stub.ModelInfer(request())) for _ in range(2)]
        await until(lambda: replica.in_flight == 2)
        async with begun(running, request()) as client:
            found = await told(client)
            assert found["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
            assert found["nearmesh-reason"] == "OVERLOADED" and int(found["nearmesh-retry-after-ms"]) >= 1
        engine.open.set()
        for call in calls:
            assert len((await call).raw_output_contents[0]) == WIDTH * 4
        # Each once, however it ended.
        assert replica.tally.outcomes == {"OVERLOADED": 1, "OK": 2}


async def test_p6_a_deadline_that_cannot_be_met_is_refused_by_the_beginning():
    engine = Echo(is_open=False)
    async with node(engine) as running, grpc.aio.insecure_channel(running.address) as channel:
        (replica,) = running.table
        for _ in range(100):
            replica.measured.times.add(1, 5.0)
        # An idle instance takes any request, so one has to be at work.
        first = asyncio.ensure_future(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request()))
        await until(lambda: replica.busy_share > 0)
        async with begun(running, request(), ("grpc-timeout", "200m")) as client:
            found = await told(client)
            assert found["nearmesh-reason"] == "OVERLOADED"
            assert "ms left" in found["grpc-message"]
        engine.open.set()
        await first


def with_parameter(name: str, value: Any) -> Any:
    asked = request()
    kind = "bool_param" if isinstance(value, bool) else "int64_param"
    setattr(asked.parameters[name], kind, value)
    return asked


@pytest.mark.parametrize(
    "asked",
    [
        # Judged when they are complete: a sequence may have its state here, whatever waits.
        with_parameter("sequence_id", 7),
        # Wrong in a way that only the whole tells.
        with_parameter("sequence_id", True),
    ],
)
async def test_what_cannot_be_judged_by_its_beginning_is_waited_for(asked):
    engine = Echo(is_open=False)
    async with node(engine) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (replica,) = running.table
        calls = [asyncio.ensure_future(stub.ModelInfer(request())) for _ in range(2)]
        await until(lambda: replica.in_flight == 2)
        async with begun(running, asked) as client:
            await client.pinged()
            refused = any(isinstance(event, h2.events.ResponseReceived) for event in client.events)
            assert refused == (asked.parameters["sequence_id"].WhichOneof("parameter_choice") == "bool_param")
        engine.open.set()
        await asyncio.gather(*calls)


async def test_a_beginning_that_was_looked_at_changes_nothing():
    """What a request would do is not done before it is here."""
    async with node(Echo()) as running:
        (replica,) = running.table
        before = (dict(replica.tally.outcomes), replica.in_flight, replica.measured.times.mean_s(1))
        async with begun(running, request()) as client:
            await client.pinged()
            assert (dict(replica.tally.outcomes), replica.in_flight, replica.measured.times.mean_s(1)) == before
        # It left in the middle: it never was a request.
        await until(lambda: replica.in_flight == 0)
        assert dict(replica.tally.outcomes) == before[0]


async def test_the_rest_may_come_with_the_beginning():
    """In one read: refused by its beginning, complete before anybody has heard of that."""
    async with node(Echo()) as running, begun(running, request("nobody")) as client:
        message = request("nobody").SerializeToString()
        room = min(client.h2.local_flow_control_window(1), len(message) - SENT_BYTES)
        for start in range(0, room, client.h2.max_outbound_frame_size):
            part = message[SENT_BYTES + start : SENT_BYTES + min(room, start + client.h2.max_outbound_frame_size)]
            client.h2.send_data(1, part, end_stream=False)
        assert (await told(client))["nearmesh-reason"] == "NOT_FOUND"
        await client.pinged()


async def test_who_is_not_refused_sends_the_rest_and_is_answered():
    async with node(Echo()) as running, begun(running, request()) as client:
        message = request().SerializeToString()
        at = SENT_BYTES
        while at < len(message):
            window = min(client.h2.local_flow_control_window(1), client.h2.max_outbound_frame_size, len(message) - at)
            if window:
                client.h2.send_data(1, message[at : at + window], end_stream=at + window == len(message))
                at += window
            await client.until(lambda: client.h2.local_flow_control_window(1) > 0)
        client.h2.increment_flow_control_window(2_000_000)
        client.h2.increment_flow_control_window(2_000_000, 1)
        await client.until(lambda: any(isinstance(event, h2.events.StreamEnded) for event in client.events))
        data = b"".join(event.data for event in client.events if isinstance(event, h2.events.DataReceived))
        answer = service_pb2.ModelInferResponse.FromString(data[5:])
        assert np.array_equal(tensors.decode_response(answer)["y"][0], np.arange(WIDTH, dtype=np.float32))


async def test_p6_a_stock_client_hears_of_it_too():
    """It is still sending when the answer comes."""
    async with node(Echo()) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(request("nobody"), timeout=10)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live
