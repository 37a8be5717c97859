"""Errors of generated services, in each way to call: each class arrives as itself, and a bug tells nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from nearmesh.errors import InvalidInput, MeshError, Unsupported, error_classes
from nearmesh.rpc import EVERYONE, MAX_MESSAGE_CHARACTERS, Gatekeeper, caller, from_rpc_error
from nearmesh.transport.server import Server
from nearmesh.v1 import catalog_pb2, catalog_pb2_grpc, node_pb2, node_pb2_grpc

MAX_MESSAGE_BYTES = 1_000_000


class Servicer(node_pb2_grpc.NodeServiceServicer, catalog_pb2_grpc.CatalogServiceServicer):
    """Fails as it is told, in each of the four ways to call."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def _fail(self) -> None:
        assert caller().role == "anyone"
        if self.error:
            raise self.error

    async def Join(self, request: node_pb2.JoinRequest, context: Any) -> node_pb2.JoinResponse:
        self._fail()
        return node_pb2.JoinResponse()

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[node_pb2.WantedState]:
        async for _ in requests:
            yield node_pb2.WantedState(generation=1)
            self._fail()

    async def Publish(self, requests: Any, context: Any) -> catalog_pb2.ModelVersion:
        async for _ in requests:
            self._fail()
        return catalog_pb2.ModelVersion()


@asynccontextmanager
async def serving(servicer: Servicer) -> AsyncIterator[grpc.aio.Channel]:
    policy = {"/nearmesh.v1.NodeService/": EVERYONE, "/nearmesh.v1.CatalogService/": EVERYONE}
    server = Server(Gatekeeper(mesh="mesh", verifier=None, policy=policy, open_door=True), MAX_MESSAGE_BYTES)
    node_pb2_grpc.add_NodeServiceServicer_to_server(servicer, server)
    catalog_pb2_grpc.add_CatalogServiceServicer_to_server(servicer, server)
    address = server.listen_plain("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
    finally:
        await server.stop(0)


@pytest.fixture
async def served() -> AsyncIterator[tuple[Servicer, grpc.aio.Channel]]:
    servicer = Servicer()
    async with serving(servicer) as channel:
        yield servicer, channel


async def _one(item: Any) -> AsyncIterator[Any]:
    yield item


async def all_ways(channel: grpc.aio.Channel) -> list[MeshError]:
    """The error of a unary call, of a stream up, and of streams both ways, which had one good answer before."""
    node, catalog = node_pb2_grpc.NodeServiceStub(channel), catalog_pb2_grpc.CatalogServiceStub(channel)
    found = []
    for call in (node.Join(node_pb2.JoinRequest()), catalog.Publish(_one(catalog_pb2.PublishRequest()))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        found.append(from_rpc_error(caught.value))
    answers = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in node.Session(_one(node_pb2.NodeReport())):
            answers += 1
    assert answers == 1
    return [*found, from_rpc_error(caught.value)]


@pytest.mark.parametrize("cls", list(error_classes().values()))
async def test_every_error_arrives_as_itself(served: tuple[Servicer, grpc.aio.Channel], cls: type[MeshError]) -> None:
    servicer, channel = served
    servicer.error = cls("what was wrong, with 'quotes', ümläuts, 漢字 and\nnewlines", retry_after_ms=40)
    for error in await all_ways(channel):
        assert type(error) is cls
        assert error.message == servicer.error.message  # type: ignore[union-attr]
        assert (error.status, error.retry_after_ms) == (cls.status, 40)


@pytest.mark.parametrize("letter", ["x", "ü", "漢", "\U0001f600"])
async def test_a_message_that_quotes_a_lot_still_arrives(
    served: tuple[Servicer, grpc.aio.Channel], letter: str
) -> None:
    """Headers have a limit; above it gRPC would answer something else."""
    servicer, channel = served
    servicer.error = InvalidInput(letter * 100_000)
    for error in await all_ways(channel):
        assert type(error) is InvalidInput
        assert error.message == letter * MAX_MESSAGE_CHARACTERS


@pytest.mark.parametrize(
    "bug", [KeyError("secret"), ValueError("secret"), RuntimeError("secret"), TimeoutError("secret")]
)
async def test_a_bug_is_logged_and_tells_the_caller_nothing(
    served: tuple[Servicer, grpc.aio.Channel], bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    servicer, channel = served
    servicer.error = bug
    for error in await all_ways(channel):
        assert error.status is grpc.StatusCode.INTERNAL
        assert error.message == "internal error; the server's log has the cause"
    bugs = [record for record in caplog.records if record.message.startswith("bug in method=/nearmesh.v1.")]
    assert len(bugs) == 3 and all(record.exc_info for record in bugs)
    # And the server goes on.
    servicer.error = None
    await node_pb2_grpc.NodeServiceStub(channel).Join(node_pb2.JoinRequest())


async def test_bytes_that_are_no_message_are_the_callers_mistake(served: tuple[Servicer, grpc.aio.Channel]) -> None:
    _, channel = served
    for kind, method in (("unary_unary", "NodeService/Join"), ("stream_unary", "CatalogService/Publish")):
        call = getattr(channel, kind)(f"/nearmesh.v1.{method}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff" if kind == "unary_unary" else _one(b"\xff\xff\xff"))
        error = from_rpc_error(caught.value)
        assert type(error) is InvalidInput and "the 3 bytes of the request cannot be parsed" in error.message


async def test_a_message_above_the_limit_is_too_large(served: tuple[Servicer, grpc.aio.Channel]) -> None:
    _, channel = served
    request = node_pb2.JoinRequest(csr_pem=bytes(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await node_pb2_grpc.NodeServiceStub(channel).Join(request)
    assert from_rpc_error(caught.value).reason == "TOO_LARGE"


async def test_what_no_servicer_has_is_unsupported(served: tuple[Servicer, grpc.aio.Channel]) -> None:
    _, channel = served
    for method in ("/nearmesh.v1.NodeService/Renew", "/nearmesh.v1.Nothing/AtAll"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(method)(b"")
        assert type(from_rpc_error(caught.value)) is Unsupported
