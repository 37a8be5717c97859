"""The emulated WAN with real sockets: round trips, integrity, half-close, faults, counters, bounded memory."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nearmesh.devmesh.wan import ControlClient, Link, LinkSettings, Wan, WanSettings, running

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ROUND_TRIP_MS = 80.0
# A loaded machine is late, never early.
LATE_S = 2.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what it gets, and ends when the other side has ended."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def target(handler: Handler = echo) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def link_to(address: str, **more: float) -> LinkSettings:
    settings: dict[str, float] = {"round_trip_ms": ROUND_TRIP_MS, **more}
    return LinkSettings(name="a", client_region="here", node="n", target=address, **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def wan_to(address: str, **more: float) -> AsyncIterator[tuple[Wan, Link]]:
    async with running(WanSettings(links=(link_to(address, **more),))) as wan:
        yield wan, wan.links["a"]


@asynccontextmanager
async def client(link: Link) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes = b"ping") -> float:
    """Seconds until `data` has come back."""
    start = time.monotonic()
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    return time.monotonic() - start


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the kernel's doing, there is no event for it
            await asyncio.sleep(0.005)


async def test_a_round_trip_takes_what_it_should_and_the_first_one_twice_that() -> None:
    async with target() as address, wan_to(address) as (_, link), client(link) as streams:
        first_s = await ask(*streams)
        second_s = await ask(*streams)
    assert 2 * ROUND_TRIP_MS / 1000 <= first_s <= 2 * ROUND_TRIP_MS / 1000 + LATE_S
    assert ROUND_TRIP_MS / 1000 <= second_s <= ROUND_TRIP_MS / 1000 + LATE_S


async def test_a_round_trip_changed_on_the_way_counts_from_then_on() -> None:
    async with target() as address, wan_to(address, round_trip_ms=0.0) as (wan, link), client(link) as streams:
        await ask(*streams)
        await ControlClient(wan.control_port).send("set", link="a", round_trip_ms=200)
        assert await ask(*streams) >= 0.2


async def test_eight_megabytes_come_back_in_order_within_a_long_round_trip() -> None:
    data = os.urandom(8 * 1024 * 1024)
    async with target() as address, wan_to(address, round_trip_ms=230.0) as (_, link), client(link) as (reader, writer):
        await ask(reader, writer)
        start = time.monotonic()
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        # With a window of 64 KiB this would take half a minute: the line must hold a whole request.
        assert time.monotonic() - start < 8
        assert link.stats()["bytes_up"] == link.stats()["bytes_down"] == len(data) + 4


async def test_a_half_close_passes_through_and_the_answer_still_comes() -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(len(await reader.read())).encode())
        writer.close()

    async with target(count) as address, wan_to(address) as (_, link):
        async with client(link) as (reader, writer):
            writer.write(b"x" * 100_000)
            writer.write_eof()
            assert await reader.read() == b"100000"
        await until(lambda: not link.connections)


async def test_a_target_that_is_down_resets_the_client_after_a_round_trip_and_serves_once_it_is_up() -> None:
    async with target() as address:
        pass
    async with wan_to(address) as (_, link):
        async with client(link) as (reader, _writer):
            start = time.monotonic()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            assert time.monotonic() - start >= ROUND_TRIP_MS / 1000
        host, _, port = address.rpartition(":")
        server = await asyncio.start_server(echo, host, int(port))
        async with client(link) as streams:
            await ask(*streams)
        server.close()
        await until(lambda: not link.connections)


async def test_a_reset_by_the_target_reaches_the_client_as_a_reset() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.transport.abort()  # with unread bytes the kernel sends RST

    async with target(rude) as address, wan_to(address) as (_, link), client(link) as (reader, writer):
        writer.write(b"ping" * 50_000)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)


async def test_cut_resets_and_refuses_until_healed() -> None:
    async with target() as address, wan_to(address) as (wan, link):
        control = ControlClient(wan.control_port)
        async with client(link) as (reader, writer):
            await ask(reader, writer)
            assert (await control.send("cut", link="*"))["changed"] == ["a"]
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", link.port)
        port = link.port
        await control.send("heal", link="a")
        assert link.port == port
        async with client(link) as streams:
            await ask(*streams)


async def test_freeze_keeps_connections_open_and_silent_until_healed() -> None:
    async with target() as address, wan_to(address, round_trip_ms=10.0) as (wan, link):
        control = ControlClient(wan.control_port)
        async with client(link) as old, client(link) as fresh:
            await ask(*old)
            await control.send("freeze", link="a")
            old[1].write(b"held")
            fresh[1].write(b"new")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await old[0].readexactly(1)
            assert (await control.send("stats"))["links"]["a"]["state"] == "frozen"
            await control.send("heal", link="a")
            assert await old[0].readexactly(4) == b"held"
            assert await fresh[0].readexactly(3) == b"new"


async def test_a_throttle_spreads_bytes_over_time() -> None:
    async with (
        target() as address,
        wan_to(address, round_trip_ms=0.0, bytes_per_s=1e6) as (_, link),
        client(link) as streams,
    ):
        assert await ask(*streams, os.urandom(200_000)) >= 0.2


async def test_a_stalled_reader_stops_the_sender_and_memory_stays_bounded() -> None:
    release = asyncio.Event()

    async def stalled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(str(len(await reader.read())).encode())
        writer.close()

    limit, sent = 1024 * 1024, 24 * 1024 * 1024
    async with (
        target(stalled) as address,
        wan_to(address, buffer_bytes=limit) as (_, link),
        client(link) as (reader, writer),
    ):
        writer.write(b"x" * sent)
        writer.write_eof()
        await until(lambda: link.stats()["held_bytes"] > limit)
        # Everything that can move has moved once the sender itself is stuck.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await writer.drain()
        assert link.stats()["held_bytes"] <= limit + 256 * 1024
        release.set()
        assert await reader.read() == str(sent).encode()


async def test_a_thousand_short_connections_leave_nothing_behind() -> None:
    async with target() as address, wan_to(address, round_trip_ms=1.0) as (_, link):

        async def visit() -> None:
            async with client(link) as streams:
                await ask(*streams)

        for _ in range(20):
            await asyncio.gather(*(visit() for _ in range(50)))
        await until(lambda: not link.connections)
        assert link.stats()["accepted"] == 1000


async def test_the_process_says_ready_serves_and_stops_on_sigterm(tmp_path: Path) -> None:
    async with target() as address:
        body = {"name": "a", "client_region": "here", "node": "n", "target": address, "round_trip_ms": 5}
        config = tmp_path / "wan.json"
        config.write_text(json.dumps({"links": [body]}))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nearmesh.devmesh.wan", "--config", str(config), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout
            ready = json.loads(await process.stdout.readline())
            reader, writer = await asyncio.open_connection("127.0.0.1", ready["ports"]["a"])
            await ask(reader, writer, b"x" * 1000)
            stats = (await ControlClient(ready["control_port"]).send("stats"))["links"]["a"]
            assert (stats["bytes_up"], stats["bytes_down"], stats["open"]) == (1000, 1000, 1)
            writer.close()
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 10) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
