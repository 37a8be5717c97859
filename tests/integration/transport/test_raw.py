"""The agent's own gRPC server and clients that are slow, silent, ill-mannered or not gRPC at all."""

from __future__ import annotations

import asyncio
import socket
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import h2.events
import pytest
from h2.errors import ErrorCodes

from nearmesh.transport import frames, protocol
from nearmesh.transport.server import MAX_STREAMS, STREAM_WINDOW_BYTES
from tests.http2_peer import HELLO, block, message
from tests.http2_peer import headers as opened
from tests.integration.transport.service import (
    SOON_S,
    RawClient,
    Running,
    connected,
    happened,
    opening,
    raw_client,
    serving,
    window,
)

MIB = 2**20


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving() as found:
        yield found


@pytest.fixture
async def client(running: Running) -> AsyncIterator[RawClient]:
    async with raw_client(running.address) as found:
        yield found


async def answered(client: RawClient, contents: bytes = b"still here") -> None:
    """The server goes on for others, or for this one."""
    number = client.call("Echo", contents)
    await client.until(lambda: client.trailers(number))
    assert client.body(number) == message(contents)


# Not gRPC.


@pytest.mark.parametrize(
    "replaced, status",
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "application/json"}, "415"),
        ({"content-type": None}, "415"),
    ],
)
async def test_http_that_is_not_grpc_gets_a_status_of_http(
    client: RawClient, replaced: dict[str, str | None], status: str
) -> None:
    pairs = [(name, replaced.get(name, value)) for name, value in opening("Echo")]
    client.h2.send_headers(1, [(name, value) for name, value in pairs if value is not None], end_stream=False)
    await client.until(lambda: client.of(h2.events.ResponseReceived, 1))
    assert dict(client.of(h2.events.ResponseReceived, 1)[0].headers)[":status"] == status
    assert client.of(h2.events.StreamEnded, 1)
    await answered(client)


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\0" * 64]
)
async def test_what_is_not_http2_closes_the_connection(running: Running, client: RawClient, sent: bytes) -> None:
    async with connected(running.address) as (reader, writer), asyncio.timeout(SOON_S):
        writer.write(sent)
        assert b"HTTP/1.1" not in await reader.read(-1)
    await answered(client)


async def test_who_says_nothing_is_not_waited_for(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "INTRODUCTION_S", 0.1)
    async with raw_client(running.address) as client:
        for said in (b"", frames.PREFACE, HELLO[:-1]):
            async with connected(running.address) as (reader, writer), asyncio.timeout(SOON_S):
                writer.write(said)
                assert b"HTTP/1.1" not in await reader.read(-1), "read to the end, which the server made"
        await answered(client)


async def test_a_method_may_compress_nothing_that_is_not_known(client: RawClient) -> None:
    number = client.call("Echo", b"a", ("grpc-encoding", "br"))
    await client.until(lambda: client.trailers(number))
    found = client.trailers(number) or {}
    assert (found["grpc-status"], found["grpc-accept-encoding"]) == ("12", "identity,gzip,deflate")
    assert "'br'" in found["grpc-message"]


@pytest.mark.parametrize(
    "method, contents, why",
    [
        ("Echo", b"", "0 messages came; /test.Service/Echo takes one"),
        ("Echo", message(b"a") * 2, "more than one message came; /test.Service/Echo takes one"),
        ("Echo", message(b"abc")[:-1], "ends in the middle of a message"),
        ("Echo", message(b"abc")[:3], "ends in the middle of a message"),
        ("Collect", message(b"a") + message(b"abc")[:-1], "ends in the middle of a message"),
        ("Chat", message(b"a", compressed=1), "compressed by 'identity'"),
    ],
)
async def test_contents_that_are_no_request_are_refused(
    client: RawClient, method: str, contents: bytes, why: str
) -> None:
    number = client.call(method, end=False)
    client.h2.send_data(number, contents, end_stream=True)
    await client.until(lambda: client.trailers(number))
    found = client.trailers(number) or {}
    assert why in found["grpc-message"] and found["nearmesh-reason"] in ("INVALID_INPUT", "UNSUPPORTED")


async def test_who_says_too_much_is_told_at_once(client: RawClient) -> None:
    """A call of one message keeps no second one, and no millionth."""
    number = client.call("Echo", end=False)
    client.h2.send_data(number, message(b"a") * 2)
    await client.until(lambda: client.trailers(number))
    assert (client.trailers(number) or {})["nearmesh-reason"] == "INVALID_INPUT"


# Calls that end before their time.


async def test_a_method_that_ignores_the_deadline_is_cancelled(running: Running, client: RawClient) -> None:
    number = client.call("Wait", b"", ("grpc-timeout", "50m"))
    await client.until(lambda: client.trailers(number))
    found = client.trailers(number) or {}
    assert (found["grpc-status"], found["nearmesh-reason"]) == ("4", "DEADLINE_EXCEEDED")
    await happened(running.service.cancelled)


async def test_a_deadline_does_not_wait_for_the_request(running: Running, client: RawClient) -> None:
    number = client.call("Echo", None, ("grpc-timeout", "50m"), end=False)
    await client.until(lambda: client.trailers(number))
    assert (client.trailers(number) or {})["grpc-status"] == "4"
    assert client.of(h2.events.StreamReset, number)[0].error_code == ErrorCodes.NO_ERROR
    assert running.service.who == []


# The unary call is complete, the other two are streams; each ends in the same piece as it begins.
EARLY = {
    "a call that is taken back": opened(1, contents=block(opening=opening("Echo")))
    + frames.frame(frames.DATA, frames.END_STREAM, 1, message(b"a"))
    + frames.reset(1, frames.Code.CANCEL),
    "a stream that is taken back": opened(1, contents=block(opening=opening("Chat")))
    + frames.reset(1, frames.Code.CANCEL),
    "a stream that begins with what is no message": opened(1, contents=block(opening=opening("Chat")))
    + frames.frame(frames.DATA, 0, 1, message(b"a", compressed=1)),
}


@pytest.mark.parametrize("what", EARLY)
async def test_a_call_that_ends_before_its_work_began_is_over(what: str) -> None:
    """A task that is cancelled before its first step never runs: nothing in it may be counted on."""
    async with serving() as running, connected(running.address) as (reader, writer), asyncio.timeout(SOON_S):
        writer.write(HELLO + EARLY[what] + frames.frame(frames.PING, 0, 0, b"are you?"))
        await reader.readuntil(frames.frame(frames.PING, frames.ACK, 0, b"are you?"))
        # Nothing is under way, so that this takes as long as the peer is given to hear of it.
        await running.server.stop(0)


async def test_cancelled_calls_give_their_places_back(running: Running, client: RawClient) -> None:
    """As many as are allowed at a time, and one more."""
    for _ in range(MAX_STREAMS):
        client.h2.reset_stream(client.call("Wait", b""), ErrorCodes.CANCEL)
    await client.pinged()
    await answered(client)


async def test_a_lost_connection_cancels_its_calls(running: Running) -> None:
    async with raw_client(running.address) as client:
        client.call("Wait", b"")
        await client.pinged()
        await happened(running.service.begun)
    await happened(running.service.cancelled)


# Peers that do not read.


async def test_a_slow_reader_is_sent_no_more_than_it_has_room_for(running: Running) -> None:
    async with raw_client(running.address) as client:
        number = client.call("Produce", b"1000 1000")
        await client.until(lambda: len(client.body(number)) == 2**16 - 1)
        await client.pinged()
        # One message more waits for room.
        assert running.service.produced_bytes <= 2**16 + 1000
        client.h2.increment_flow_control_window(2 * MIB)
        client.h2.increment_flow_control_window(2 * MIB, number)
        await client.until(lambda: client.trailers(number))
        assert client.body(number) == message(bytes(1000)) * 1000


async def test_who_gives_room_and_does_not_read_is_not_buffered_for(running: Running) -> None:
    async with raw_client(running.address, settings=window(2**31 - 1)) as client:
        client.h2.increment_flow_control_window(2**31 - 2**16)
        client.call("Produce", b"10000 100000")
        client.writer.write(client.h2.data_to_send())
        await happened(running.service.begun)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        # Unheld it would take a tenth of this to produce so much.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running.service.too_much.wait(), 0.7)
    await happened(running.service.cancelled)


async def test_who_pings_and_does_not_read_is_held_back(running: Running) -> None:
    """Each ping makes an answer; what nobody reads is not kept, but for some megabytes."""
    host, _, port = running.address.rpartition(":")
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(peer, (host, int(port)))
        pings = frames.frame(frames.PING, 0, 0, b"are you?") * 10_000
        sent, most = 0, 48 * MIB
        await loop.sock_sendall(peer, HELLO)
        while sent < most:
            try:
                sent += peer.send(memoryview(pings)[sent % len(pings) :])
            except BlockingIOError:
                if not await writable(peer, 0.5):
                    break
        assert sent < most, "it takes in without end"
        # Once they are read, every one is answered.
        left = -sent % 17
        expected = (sent + left) // 17
        finishing = asyncio.create_task(loop.sock_sendall(peer, pings[sent % 17 :][:left]))
        came = 0
        async with asyncio.timeout(SOON_S):
            while came < expected * 17:
                part = await loop.sock_recv(peer, MIB)
                assert part
                came += len(part)
            await finishing


async def writable(peer: socket.socket, limit_s: float) -> bool:
    """Whether there is room to send within the limit."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(peer, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), limit_s)
    except TimeoutError:
        return False
    finally:
        loop.remove_writer(peer)
    return True


async def test_compressed_messages_give_back_the_room_that_they_took(client: RawClient) -> None:
    """And not the room that they would have taken unpacked: the window would grow with each."""
    number = client.call("Chat", None, ("grpc-encoding", "deflate"), end=False)
    packed = message(zlib.compress(bytes(20 * MIB)), compressed=1)
    for _ in range(4):
        before = len(client.body(number))
        client.h2.send_data(number, packed[: 2**14])
        client.h2.send_data(number, packed[2**14 :])
        await client.until(lambda before=before: len(client.body(number)) > before)
        await client.pinged()
        assert client.h2.local_flow_control_window(number) <= STREAM_WINDOW_BYTES


# Many connections.

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
CALLERS = 300


@pytest.mark.skipif(
    not SOMAXCONN.exists() or int(SOMAXCONN.read_text()) < CALLERS, reason="the system lets fewer connections wait"
)
async def test_many_may_connect_at_once(running: Running) -> None:
    """All clients of a node that comes back do; who is not let in tries again after a second."""
    host, _, port = running.address.rpartition(":")
    peers = []
    try:
        for _ in range(CALLERS):
            # The loop does not run meanwhile, so that nobody is accepted.
            peers.append(socket.create_connection((host, int(port)), timeout=0.5))
        assert len(peers) == CALLERS
    finally:
        for peer in peers:
            peer.close()
