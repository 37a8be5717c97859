"""The agent's own gRPC server stops in order: peers are told, what is under way ends, and nothing new begins."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from nearmesh.errors import ConfigError, Draining
from nearmesh.rpc import from_rpc_error
from nearmesh.transport import frames
from nearmesh.transport import server as transport_server
from tests.http2_peer import HELLO, block, message
from tests.http2_peer import headers as opened
from tests.integration.transport.service import (
    SERVICE,
    SOON_S,
    RawClient,
    Running,
    connected,
    happened,
    open_to_all,
    opening,
    raw_client,
    serving,
    window,
)

STOPPED = frames.go_away(2**31 - 1, frames.Code.NO_ERROR)


async def refused_at(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return True
    writer.close()
    return False


async def test_what_is_under_way_ends_before_the_server_does() -> None:
    async with serving() as running, running.channel() as channel:
        waiting = asyncio.ensure_future(channel.unary_unary(SERVICE + "Wait")(b"answer"))
        await happened(running.service.begun)
        stopping = asyncio.create_task(running.server.stop(SOON_S))
        await _closed(running.address)
        assert not stopping.done()
        running.service.release.set()
        assert await waiting == b"answer"
        async with asyncio.timeout(SOON_S / 2):
            await stopping
        assert await refused_at(running.address)
        error = await _failed(channel)
        assert error.code() is grpc.StatusCode.UNAVAILABLE


async def _closed(address: str) -> None:
    """The first step of a stop, which has been made into a task: nobody can connect any more."""
    await asyncio.sleep(0)
    assert await refused_at(address)


async def _failed(channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(SERVICE + "Echo")(b"", timeout=SOON_S)
    return caught.value


async def test_a_stream_of_answers_may_end_by_itself() -> None:
    async with serving() as running, running.channel() as channel:
        call = channel.stream_stream(SERVICE + "Chat")()
        await call.write(b"abc")
        assert await call.read() == b"3"
        stopping = asyncio.create_task(running.server.stop(SOON_S))
        await _closed(running.address)
        await call.write(b"abcd")
        assert await call.read() == b"4"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        async with asyncio.timeout(SOON_S / 2):
            await stopping


@pytest.mark.parametrize("grace_s", [0, None, 0.1])
async def test_who_is_not_done_in_time_is_told_to_ask_another_node(grace_s: float | None) -> None:
    async with serving() as running, running.channel() as channel:
        waiting = asyncio.ensure_future(channel.unary_unary(SERVICE + "Wait")(b""))
        await happened(running.service.begun)
        async with asyncio.timeout(SOON_S):
            await running.server.stop(grace_s)
        assert running.service.cancelled.is_set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert type(from_rpc_error(caught.value)) is Draining


async def test_idle_clients_do_not_keep_the_server() -> None:
    async with serving() as running, running.channel() as channel:
        assert await channel.unary_unary(SERVICE + "Echo")(b"a", timeout=SOON_S) == b"a"
        before = time.monotonic()
        await running.server.stop(60)
        assert time.monotonic() - before < SOON_S


async def test_a_peer_that_is_not_there_any_more_does_not_keep_the_server() -> None:
    """It does not answer the word, and takes nothing."""
    async with serving() as running, raw_client(running.address) as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(SOON_S):
            await running.server.stop(60)


async def test_calls_that_cross_the_word_are_answered() -> None:
    """The peer sent them before it heard of it, and must not have to guess whether they ran."""
    async with serving() as running, connected(running.address) as (reader, writer):
        echo = block(opening=opening("Echo"))
        writer.write(HELLO)
        await reader.readuntil(frames.frame(frames.SETTINGS, frames.ACK, 0))
        stopping = asyncio.create_task(running.server.stop(SOON_S))
        async with asyncio.timeout(SOON_S):
            await reader.readuntil(STOPPED + frames.frame(frames.PING, 0, 0, b"farewell"))
            writer.write(opened(1, contents=echo) + frames.frame(frames.DATA, frames.END_STREAM, 1, message(b"abc")))
            writer.write(frames.frame(frames.PING, frames.ACK, 0, b"farewell"))
            writer.write(opened(3, contents=echo) + frames.frame(frames.DATA, frames.END_STREAM, 3, message(b"late")))
            rest = await reader.read(-1)
            await stopping
        assert frames.frame(frames.DATA, 0, 1, message(b"abc")) in rest
        assert frames.go_away(1, frames.Code.NO_ERROR) in rest
        assert b"late" not in rest
        assert len(running.service.who) == 1


async def test_a_call_that_crosses_the_word_has_the_same_time_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_server, "_FAREWELL_S", 0.05)
    async with serving() as running, raw_client(running.address) as client:
        number = client.call("Wait", b"a")
        client.writer.write(client.h2.data_to_send())
        # Said before the server reads it.
        stopping = asyncio.create_task(running.server.stop(SOON_S))
        await happened(running.service.begun)
        done, _ = await asyncio.wait({stopping}, timeout=0.5)
        assert not done and not running.service.cancelled.is_set()
        running.service.release.set()
        await _last_words(client, number)
        await stopping


async def test_an_answer_that_is_on_its_way_has_the_same_time_as_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller reads slowly; half an answer is none."""
    monkeypatch.setattr(transport_server, "_FAREWELL_S", 0.05)
    async with serving() as running, raw_client(running.address, settings=window(10)) as client:
        number = client.call("Echo", b"a" * 100)
        await client.until(lambda: len(client.body(number)) == 10)
        stopping = asyncio.create_task(running.server.stop(SOON_S))
        done, _ = await asyncio.wait({stopping}, timeout=0.5)
        assert not done
        client.writer.write(frames.window_update(number, 1000))
        assert (await _last_words(client, number)).endswith(b"a" * 90)
        await stopping


async def _last_words(client: RawClient, number: int) -> bytes:
    """What comes to the end of the connection, which this peer agrees to; the contents of one stream. By hand: h2
    reads nothing after the server's word."""
    reader, writer = client.reader, client.writer
    writer.write(frames.frame(frames.PING, frames.ACK, 0, b"farewell"))
    async with asyncio.timeout(SOON_S):
        rest, found = await reader.read(-1), b""
    while rest:
        end = frames.HEAD_BYTES + int.from_bytes(rest[:3], "big")
        if rest[3] == frames.DATA and int.from_bytes(rest[5:9], "big") == number:
            found += rest[frames.HEAD_BYTES : end]
        rest = rest[end:]
    assert found
    return found


async def test_stopping_may_be_repeated_and_come_before_the_start() -> None:
    server = transport_server.Server(open_to_all(), 1000)
    address = server.listen_plain("127.0.0.1:0")
    await server.stop(1)
    await server.stop(None)
    assert await refused_at(address)
    async with serving() as running, running.channel() as channel:
        assert await channel.unary_unary(SERVICE + "Echo")(b"a", timeout=SOON_S) == b"a"
        async with asyncio.timeout(SOON_S):
            await asyncio.gather(*(running.server.stop(grace) for grace in (SOON_S, 0, None)))
            await running.server.stop(0)


# Where it listens.


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:0"])
def test_without_tls_it_listens_on_loopback_alone(address: str) -> None:
    with pytest.raises(ConfigError, match="on loopback only"):
        transport_server.Server(open_to_all(), 1000).listen_plain(address)


@pytest.mark.parametrize("port", ["70000", "x", ""])
def test_an_address_that_is_none_is_said_so(port: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        transport_server.Server(open_to_all(), 1000).listen_plain(f"127.0.0.1:{port}")


async def test_an_address_that_is_taken_is_said_so() -> None:
    async with serving() as running:
        with pytest.raises(ConfigError, match=f"cannot listen on {running.address}"):
            transport_server.Server(open_to_all(), 1000).listen_plain(running.address)


async def test_two_listeners_lead_to_the_same_methods() -> None:
    more: list[str] = []

    def listen(server: transport_server.Server) -> str:
        more.append(server.listen_plain("localhost:0"))
        return server.listen_plain("127.0.0.1:0")

    async with serving(listen) as running:
        for address in (running.address, *more):
            other = Running(running.service, running.server, address)
            async with other.channel() as channel:
                assert await channel.unary_unary(SERVICE + "Echo")(b"a", timeout=SOON_S) == b"a"
