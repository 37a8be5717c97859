"""The agent's own gRPC server and gRPC's clients: all four kinds of call, and every way in which one may end."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nearmesh.devmesh.load import _begun
from nearmesh.errors import InvalidInput, Overloaded, TooLarge, Unreachable, Unsupported, error_classes
from nearmesh.rpc import MAX_MESSAGE_CHARACTERS, NODE_KEY, from_rpc_error
from nearmesh.transport.server import Server
from tests.integration.transport.service import SERVICE, SOON_S, Running, happened, open_to_all, serving

MIB = 2**20


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving() as found:
        yield found


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with running.channel() as found:
        yield found


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


# All four kinds, by both kinds of client.


async def _stream(items: list[bytes]) -> AsyncIterator[bytes]:
    for item in items:
        yield item


async def by_aio(address: str, **more: Any) -> list[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        return [
            await channel.unary_unary(SERVICE + "Echo")(b"question" * 50, **more),
            [part async for part in channel.unary_stream(SERVICE + "Produce")(b"3 40", **more)],
            await channel.stream_unary(SERVICE + "Collect")(_stream([b"a" * 99, b"", b"bc"]), **more),
            [part async for part in channel.stream_stream(SERVICE + "Chat")(_stream([b"a" * 99, b""]), **more)],
        ]


async def by_blocking(address: str, **more: Any) -> list[Any]:
    def ask() -> list[Any]:
        with grpc.insecure_channel(address) as channel:
            return [
                channel.unary_unary(SERVICE + "Echo")(b"question" * 50, **more),
                list(channel.unary_stream(SERVICE + "Produce")(b"3 40", **more)),
                channel.stream_unary(SERVICE + "Collect")(iter([b"a" * 99, b"", b"bc"]), **more),
                list(channel.stream_stream(SERVICE + "Chat")(iter([b"a" * 99, b""]), **more)),
            ]

    return await asyncio.to_thread(ask)


COMPRESSIONS = [None, grpc.Compression.Gzip, grpc.Compression.Deflate]


@pytest.mark.parametrize("ask", [by_aio, by_blocking])
@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_every_kind_of_call_is_answered(running: Running, ask: Callable[..., Any], compression: Any) -> None:
    found = await ask(running.address, compression=compression, timeout=SOON_S)
    assert found == [b"question" * 50, [bytes(40)] * 3, b"3 101", [b"99", b"0"]]


async def test_many_calls_at_a_time_get_their_own_answers(channel: grpc.aio.Channel) -> None:
    echo = channel.unary_unary(SERVICE + "Echo")
    asked = [b"%d" % number * 100 for number in range(300)]
    assert await asyncio.gather(*(echo(each, timeout=SOON_S) for each in asked)) == asked


async def test_metadata_goes_both_ways(running: Running, channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary(SERVICE + "Echo")(
        b"abc", metadata=(("x-id", "7"), ("x-id-bin", b"\0\1")), timeout=SOON_S
    )
    assert await call == b"abc"
    trailing = dict(await call.trailing_metadata())
    assert (trailing["x-seen"], trailing["x-seen-bin"]) == ("3", b"\0\xff")
    sent = dict(running.service.metadata)
    assert (sent["x-id"], sent["x-id-bin"]) == ("7", b"\0\1")
    assert running.service.who == ["anyone"]


@pytest.mark.parametrize("size", [40 * MIB, 20 * MIB, 0])
async def test_messages_may_be_larger_than_a_window(channel: grpc.aio.Channel, size: int) -> None:
    """A stream's window is 32 MiB."""
    contents = bytes(size)
    assert await channel.unary_unary(SERVICE + "Echo")(contents, timeout=SOON_S) == contents
    found = await channel.stream_unary(SERVICE + "Collect")(_stream([contents, b"a", contents]), timeout=SOON_S)
    assert found == b"3 %d" % (2 * size + 1)


async def test_who_sends_faster_than_it_is_taken_waits(running: Running, channel: grpc.aio.Channel) -> None:
    """A window of messages waits in memory, whatever frames they come in, and never the whole of a large upload."""
    sent, too_much = 0, asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        nonlocal sent
        for sent in range(1, 101):
            if sent > 60:
                too_much.set()
            yield bytes(MIB)

    call = channel.stream_unary(SERVICE + "Hold")(upload(), timeout=SOON_S)
    await happened(running.service.begun)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await too_much.wait()
    assert 30 <= sent <= 60
    running.service.release.set()
    assert await call == b"100"


async def test_a_method_may_answer_before_it_has_heard_everything(channel: grpc.aio.Channel) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.get_running_loop().create_future()

    assert await channel.stream_unary(SERVICE + "Hear")(endless(), timeout=SOON_S) == b"first"


# Errors.


@pytest.mark.parametrize("name", sorted(error_classes()))
async def test_errors_arrive_as_themselves(running: Running, channel: grpc.aio.Channel, name: str) -> None:
    running.service.error = error_classes()[name]("wrong: 100 % é", retry_after_ms=250)
    error = await refused(channel.unary_unary(SERVICE + "Fail")(b"", timeout=SOON_S))
    assert dict(error.trailing_metadata() or ())["nearmesh-reason"] == name
    found = from_rpc_error(error)
    assert (type(found), found.message, found.retry_after_ms) == (error_classes()[name], "wrong: 100 % é", 250)


async def _sum_of(call: Any) -> tuple[list[bytes], grpc.aio.AioRpcError]:
    parts = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for part in call:
            parts.append(part)
    return parts, caught.value


async def test_an_error_may_follow_answers(running: Running, channel: grpc.aio.Channel) -> None:
    running.service.error = Overloaded("no room")
    parts, error = await _sum_of(channel.unary_stream(SERVICE + "Produce")(b"2 3", timeout=SOON_S))
    assert (parts, type(from_rpc_error(error))) == ([bytes(3)] * 2, Overloaded)
    parts, error = await _sum_of(channel.stream_stream(SERVICE + "Chat")(_stream([b"a"]), timeout=SOON_S))
    assert (parts, type(from_rpc_error(error))) == ([], Overloaded)


@pytest.mark.parametrize("method", ["Fail", "Produce"])
async def test_a_bug_is_logged_and_not_told(
    running: Running, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    running.service.error = ZeroDivisionError("secret")
    kind = channel.unary_unary if method == "Fail" else channel.unary_stream
    call = kind(SERVICE + method)(b"0 0", timeout=SOON_S)
    error = await refused(call) if method == "Fail" else (await _sum_of(call))[1]
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        "internal error; the server's log has the cause",
    )
    assert f"bug in method={SERVICE}{method}" in caplog.text and "ZeroDivisionError: secret" in caplog.text


async def test_a_method_whose_own_task_was_cancelled_does_not_leave_its_caller_waiting(
    running: Running, channel: grpc.aio.Channel
) -> None:
    """Nobody cancelled the call: something that the method waited for was cancelled, which it should have seen to."""
    running.service.error = asyncio.CancelledError()
    error = await refused(channel.unary_unary(SERVICE + "Fail")(b"", timeout=3))
    assert error.code() is grpc.StatusCode.UNAVAILABLE and type(from_rpc_error(error)) is Unreachable


async def test_whose_answer_it_was_is_known_though_its_rest_is_lost() -> None:
    async with serving(metadata=((NODE_KEY, "n-1"),)) as running, running.channel() as channel:
        whole = channel.unary_unary(SERVICE + "Echo")(b"a", timeout=SOON_S)
        assert await whole == b"a" and dict(await whole.initial_metadata())[NODE_KEY] == "n-1"

        def cut_off() -> list[str]:
            """By a client of the kind that load tests use."""
            with grpc.insecure_channel(running.address) as plain:
                answers = plain.unary_stream(SERVICE + "Produce")(b"1 9", timeout=SOON_S)
                try:
                    return [str(len(part)) for part in answers]
                except grpc.RpcError as error:
                    return [_begun(error)]

        running.service.error = ConnectionError("in the midst")
        assert await asyncio.to_thread(cut_off) == ["n-1"]
        running.service.error = InvalidInput("before anything")
        error = await refused(channel.unary_unary(SERVICE + "Fail")(b"", timeout=SOON_S))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _begun(ValueError("no call at all")) == ""


async def test_a_method_that_a_servicer_lacks_is_not_offered(caplog: pytest.LogCaptureFixture) -> None:
    """Generated code sets a status in gRPC's way before it says so."""
    server = Server(open_to_all("/grpc.health.v1.Health/"), 1000)
    health_pb2_grpc.add_HealthServicer_to_server(health_pb2_grpc.HealthServicer(), server)
    address = server.listen_plain("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            error = await refused(stub.Check(health_pb2.HealthCheckRequest(), timeout=SOON_S))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED and type(from_rpc_error(error)) is Unsupported
    finally:
        await server.stop(0)
    assert "bug in method" not in caplog.text


async def test_a_long_message_is_cut(running: Running, channel: grpc.aio.Channel) -> None:
    running.service.error = InvalidInput("é" * 5000)
    error = await refused(channel.unary_unary(SERVICE + "Fail")(b"", timeout=SOON_S))
    assert error.details() == "é" * MAX_MESSAGE_CHARACTERS


async def test_what_is_not_offered_is_said_so(channel: grpc.aio.Channel) -> None:
    for path in (SERVICE + "Other", "/other.Service/Echo"):
        error = await refused(channel.unary_unary(path)(b"", timeout=SOON_S))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == f"{path} is not offered here" and type(from_rpc_error(error)) is Unsupported


async def test_what_cannot_be_parsed_is_the_callers_mistake(channel: grpc.aio.Channel) -> None:
    parsed = channel.unary_unary(SERVICE + "Parsed")
    assert await parsed(b"\x0a\x02ab", timeout=SOON_S) == b"\x0a\x02ab"
    error = from_rpc_error(await refused(parsed(b"\x0a\xff", timeout=SOON_S)))
    assert type(error) is InvalidInput and "2 bytes of the request cannot be parsed" in error.message


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_message_that_is_too_large_is_refused(compression: Any) -> None:
    async with serving(max_message_bytes=10_000) as running, running.channel() as channel:
        echo = channel.unary_unary(SERVICE + "Echo")
        assert len(await echo(bytes(10_000), compression=compression, timeout=SOON_S)) == 10_000
        error = await refused(echo(bytes(10_001), compression=compression, timeout=SOON_S))
        assert type(from_rpc_error(error)) is TooLarge
        assert len(gzip.compress(bytes(10_001))) < 10_000, "it is the unpacked message that counts"
        collect = channel.stream_unary(SERVICE + "Collect")
        error = await refused(collect(_stream([b"a", bytes(10_001)]), compression=compression, timeout=SOON_S))
        assert type(from_rpc_error(error)) is TooLarge
        assert await echo(b"next", timeout=SOON_S) == b"next"


# The end of a caller's patience.


async def test_cancellation_reaches_the_method(running: Running, channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary(SERVICE + "Wait")(b"")
    await happened(running.service.begun)
    call.cancel()
    await happened(running.service.cancelled)


@pytest.mark.parametrize("method", ["Produce", "Chat"])
async def test_cancellation_reaches_a_method_that_streams(
    running: Running, channel: grpc.aio.Channel, method: str
) -> None:
    """While it waits for room, and while it waits for more to be said."""
    if method == "Produce":
        call: Any = channel.unary_stream(SERVICE + method)(b"1000000 1000000")
    else:
        call = channel.stream_stream(SERVICE + method)()
    await happened(running.service.begun)
    call.cancel()
    await happened(running.service.cancelled)


async def test_a_deadline_that_passes_ends_the_call_on_both_sides(running: Running, channel: grpc.aio.Channel) -> None:
    error = await refused(channel.unary_unary(SERVICE + "Wait")(b"", timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await happened(running.service.cancelled)
