"""One link of the emulated WAN: a listener whose every connection reaches its target a round trip away.

What is emulated: each byte is late by half a round trip; a connection takes one round trip to set up (the bytes that a
client sends at once arrive after one and a half, the first answer after two); a target that refuses answers with a
reset after one. What is not: the kernel completes the TCP handshake with this process at once, so `connect()` itself
returns a round trip too early, and a refusal looks like a connection that is reset. Loss and reordering are not
emulated: TCP hides them from its users as delay.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from typing import Any

from nearmesh.devmesh.wan.delay import End, Lane, Pipe, reset
from nearmesh.errors import InvalidInput

log = logging.getLogger(__name__)

# A target that does not answer SYN is as good as one that refuses; the kernel's own limit is two minutes.
_CONNECT_LIMIT_S = 10.0
# The kernel's send buffer does the work; more than this beside it would only hide a stalled reader.
_SINK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """A way from one client region to one listener of one node."""

    name: str
    client_region: str
    node: str
    # host:port of the node's listener; it need not be up yet.
    target: str
    round_trip_ms: float
    # Which of the node's listeners it is, "public" or "mesh"; for people.
    listener: str = "public"
    # 0: asked of the system.
    listen_port: int = 0
    # Added to a round trip at random, up to this much; half of it in each direction.
    jitter_ms: float = 0.0
    # In each direction, shared by all connections; 0 is no limit.
    bytes_per_s: float = 0.0
    # Held for each connection and direction before the sender is slowed. At 115 ms one way this is 280 MB/s.
    buffer_bytes: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.round_trip_ms < 0 or self.jitter_ms < 0 or self.bytes_per_s < 0 or self.buffer_bytes < 1:
            raise InvalidInput(f"link {self.name!r}: times and limits are 0 or more")
        host, _, port = self.target.rpartition(":")
        if not host or not port.isdigit():
            raise InvalidInput(f"link {self.name!r}: target {self.target!r} is not host:port")


class Link:
    """A listener on loopback and its open connections. `start`, then `close`."""

    def __init__(self, settings: LinkSettings) -> None:
        self.settings = settings
        half_s, jitter_s = settings.round_trip_ms / 2000, settings.jitter_ms / 2000
        self.up = Lane(half_s, jitter_s, settings.bytes_per_s, settings.name + ":up")
        self.down = Lane(half_s, jitter_s, settings.bytes_per_s, settings.name + ":down")
        self.port = settings.listen_port
        self.accepted = 0
        self.connections: set[Connection] = set()
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.is_cut = False
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None

    async def start(self) -> None:
        """Listens. Raises OSError when the port is taken."""
        self._reserved = _bind(self.port)
        self.port = self._reserved.getsockname()[1]
        await self._listen()

    async def close(self) -> None:
        """Stops listening and resets every connection."""
        await self.cut()
        if self._reserved:
            self._reserved.close()

    async def cut(self) -> None:
        """Resets every connection and refuses new ones, until `heal`."""
        self.is_cut = True
        if self._server:
            self._server.close()
            self._server = None
            # Bound and not listening: the port stays ours, and connecting to it is refused.
            self._reserved = _bind(self.port)
        for connection in list(self.connections):
            connection.reset()

    def freeze(self) -> None:
        """Lets nothing through and keeps everything open, as a peer that has stopped; what is sent waits for `heal`."""
        self.thawed.clear()
        self.up.frozen = self.down.frozen = True

    async def heal(self) -> None:
        """Undoes `cut` and `freeze`."""
        self.up.frozen = self.down.frozen = False
        self.thawed.set()
        for connection in list(self.connections):
            connection.wake()
        if self.is_cut:
            self.is_cut = False
            await self._listen()

    def set(
        self, *, round_trip_ms: float | None = None, jitter_ms: float | None = None, bytes_per_s: float | None = None
    ) -> None:
        """Changes the link from the next byte on."""
        for lane in (self.up, self.down):
            lane.delay_s = lane.delay_s if round_trip_ms is None else round_trip_ms / 2000
            lane.jitter_s = lane.jitter_s if jitter_ms is None else jitter_ms / 2000
            lane.bytes_per_s = lane.bytes_per_s if bytes_per_s is None else bytes_per_s

    def stats(self) -> dict[str, Any]:
        """Counters since the start; "up" is towards the node."""
        return {
            "client_region": self.settings.client_region,
            "node": self.settings.node,
            "listener": self.settings.listener,
            "port": self.port,
            "round_trip_ms": 2000 * self.up.delay_s,
            "bytes_up": self.up.delivered_bytes,
            "bytes_down": self.down.delivered_bytes,
            "held_bytes": sum(c.up.held_bytes + c.down.held_bytes for c in self.connections),
            "accepted": self.accepted,
            "open": len(self.connections),
            "state": "cut" if self.is_cut else "open" if self.thawed.is_set() else "frozen",
        }

    async def _listen(self) -> None:
        assert self._reserved is not None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, sock=self._reserved, backlog=1024)
        self._reserved = None

    def _accept(self) -> asyncio.Protocol:
        self.accepted += 1
        return Connection(self).client


def _bind(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError:
        found.close()
        raise
    found.setblocking(False)
    return found


class Connection:
    """A client's connection and its other half towards the target; over when both directions have ended."""

    def __init__(self, link: Link) -> None:
        self._link = link
        round_trip_s, now_s = 2 * link.up.delay_s, time.monotonic()
        limit = link.settings.buffer_bytes
        self.up = Pipe(link.up, floor_s=now_s + 1.5 * round_trip_s, limit_bytes=limit)
        self.down = Pipe(link.down, floor_s=now_s + 2 * round_trip_s, limit_bytes=limit)
        self.client = _Side(feeds=self.up, fed_by=self.down, on_open=self._opened)
        self._target = _Side(feeds=self.down, fed_by=self.up)
        for pipe in (self.up, self.down):
            pipe.ended.add_done_callback(self._ended)
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        self.up.wake()
        self.down.wake()

    def reset(self) -> None:
        """Resets both halves at once."""
        if self._task:
            self._task.cancel()
        for side in (self.client, self._target):
            if side.transport:
                reset(side.transport)
        self._link.connections.discard(self)

    def _opened(self) -> None:
        self._link.connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._reach_target())

    async def _reach_target(self) -> None:
        half_s = self._link.up.delay_s
        host, _, port = self._link.settings.target.rpartition(":")
        await self._pass(half_s)
        try:
            async with asyncio.timeout(_CONNECT_LIMIT_S):
                await asyncio.get_running_loop().create_connection(lambda: self._target, host, int(port))
        except OSError as error:  # TimeoutError is one
            log.debug("link=%s target refused: %s", self._link.settings.name, error)
            await self._pass(half_s)
            self.reset()

    async def _pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._link.thawed.wait()

    def _ended(self, which: asyncio.Future[End]) -> None:
        if which.result() is End.RESET:
            # Its sink is gone; the other direction still carries the news to the other side, after its delay.
            other = self.down if which is self.up.ended else self.up
            other.push(End.RESET)
        if self.up.ended.done() and self.down.ended.done():
            for side in (self.client, self._target):
                if side.transport:
                    side.transport.close()
            self._link.connections.discard(self)


class _Side(asyncio.Protocol):
    """One socket: what it reads feeds one pipe, what it writes comes from the other."""

    def __init__(self, *, feeds: Pipe, fed_by: Pipe, on_open: Any = None) -> None:
        self._feeds = feeds
        self._fed_by = fed_by
        self._on_open = on_open
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "pause_reading")
        self.transport = transport  # type: ignore[assignment]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport.set_write_buffer_limits(high=_SINK_BYTES)  # type: ignore[union-attr]
        self._feeds.source = self.transport
        self._fed_by.attach(self.transport)  # type: ignore[arg-type]
        if self._on_open:
            self._on_open()

    def data_received(self, data: bytes) -> None:
        self._feeds.push(data)

    def eof_received(self) -> bool:
        self._feeds.push(End.EOF)
        return True  # the other direction may go on

    def pause_writing(self) -> None:
        self._fed_by.sink_full(True)

    def resume_writing(self) -> None:
        self._fed_by.sink_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._feeds.push(End.RESET)
        self._fed_by.discard()
