"""What load balancers and orchestrators are told, and that nobody who asks can take that from another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nearmesh.rpc import EVERYONE, Gatekeeper
from nearmesh.transport.health import Health
from nearmesh.transport.server import Server

SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)


@asynccontextmanager
async def watched(health: Health) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    gatekeeper = Gatekeeper(mesh="test", verifier=None, policy={"/grpc.health.v1.Health/": EVERYONE})
    server = Server(gatekeeper, 1_000_000)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = server.listen_plain("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield health_pb2_grpc.HealthStub(channel)
    finally:
        await server.stop(0)


def named(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


async def test_a_check_says_how_it_is():
    health = Health()
    async with watched(health) as stub:
        assert (await stub.Check(named(""))).status == NOT_SERVING
        health.put("", serving=True)
        assert (await stub.Check(named(""))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(named("nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_hears_of_every_change_whatever_others_do():
    health = Health()
    async with watched(health) as stub:
        first, second = stub.Watch(named("reader")), stub.Watch(named("reader"))
        assert (await first.read()).status == UNKNOWN
        assert (await second.read()).status == UNKNOWN
        # One that leaves takes nothing from the other.
        second.cancel()
        for serving in (True, False, True):
            health.put("reader", serving=serving)
            assert (await first.read()).status == (SERVING if serving else NOT_SERVING)
        # Neither does one that asks for what is not there leave anything behind.
        stranger = stub.Watch(named("nobody"))
        assert (await stranger.read()).status == UNKNOWN
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(named("nobody"))
        first.cancel()
        stranger.cancel()


async def test_a_node_that_leaves_serves_nothing_any_more():
    health = Health()
    health.put("", serving=True)
    health.put("reader", serving=True)
    async with watched(health) as stub:
        watcher = stub.Watch(named("reader"))
        assert (await watcher.read()).status == SERVING
        health.leave()
        assert (await asyncio.wait_for(watcher.read(), 10)).status == NOT_SERVING
        # The next look at the models does not undo it.
        health.put("reader", serving=True)
        assert (await stub.Check(named("reader"))).status == NOT_SERVING
        assert (await stub.Check(named(""))).status == NOT_SERVING
        # Watchers would keep the server from stopping; before, they would only ask again.
        assert not watcher.done()
        health.end()
        assert await asyncio.wait_for(watcher.read(), 10) is grpc.aio.EOF
