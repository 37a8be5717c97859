"""One direction of one connection through the emulated WAN: bytes in order, each late by half a round trip.

A `Lane` is what all connections of a link share in one direction: delay, jitter, throttle, freeze, byte counter. A
`Pipe` is the delay line of one connection: a deque of (due time, bytes) with one timer at its head. A pipe holds a
bounded number of bytes; above that its source is no longer read, so that TCP itself slows the sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
import struct
import time
from collections import deque

# uvloop's timers count whole milliseconds. What is due within half of one is handed on now: waiting for the next tick
# would make every short link late by a millisecond in each direction.
_TIMER_STEP_S = 0.001
# struct linger {1, 0}: close() sends RST and drops what was not sent.
_LINGER_NONE = struct.pack("ii", 1, 0)


class End(enum.Enum):
    """How a direction ends."""

    EOF = "eof"
    RESET = "reset"


def reset(transport: asyncio.Transport) -> None:
    """Closes with a TCP RST, as the kernel of a vanished process would."""
    if transport.is_closing():
        return
    found = transport.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    transport.abort()


class Lane:
    """One direction of a link. Times in seconds; `now_s` is the monotonic clock."""

    def __init__(self, delay_s: float, jitter_s: float, bytes_per_s: float, seed: str) -> None:
        self.delay_s = delay_s
        self.jitter_s = jitter_s
        # 0 is no limit.
        self.bytes_per_s = bytes_per_s
        self.frozen = False
        # Bytes handed on since the start.
        self.delivered_bytes = 0
        self._free_at_s = 0.0
        # Seeded by the link's name, so that a run can be repeated; nothing here is secret.
        self._random = random.Random(seed)

    def due_s(self, size: int, now_s: float) -> float:
        """When `size` bytes that were sent now arrive: after the bytes before them have left, plus the delay."""
        sent_s = now_s
        if self.bytes_per_s:
            sent_s = max(now_s, self._free_at_s) + size / self.bytes_per_s
            self._free_at_s = sent_s
        return sent_s + self.delay_s + (self._random.uniform(0, self.jitter_s) if self.jitter_s else 0.0)


class Pipe:
    """The delay line of one connection in one direction.

    `source` is paused while the pipe holds more than `limit_bytes`, and read again below half of that; so a pipe never
    holds more than the limit and one read (256 KiB).
    """

    def __init__(self, lane: Lane, *, floor_s: float, limit_bytes: int) -> None:
        self._lane = lane
        self._limit_bytes = limit_bytes
        # Nothing arrives before what was sent earlier; the floor is when the connection counts as set up.
        self._last_due_s = floor_s
        self._line: deque[tuple[float, bytes | End]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._sink_full = False
        self._over = False
        self.held_bytes = 0
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        # Resolved with how the direction ended, once that has reached the sink.
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    def push(self, item: bytes | End) -> None:
        """Puts bytes or an end on the line."""
        if self._over:
            return
        now_s = time.monotonic()
        size = len(item) if isinstance(item, bytes) else 0
        self._last_due_s = max(self._last_due_s, self._lane.due_s(size, now_s))
        self._line.append((self._last_due_s, item))
        self.held_bytes += size
        self._over = not isinstance(item, bytes)
        if self.held_bytes > self._limit_bytes and self.source and not self.source.is_closing():
            self.source.pause_reading()
        self.wake()

    def attach(self, sink: asyncio.Transport) -> None:
        """The far side is connected."""
        self.sink = sink
        self.wake()

    def sink_full(self, full: bool) -> None:
        """The sink's own buffer is above or again below its mark."""
        self._sink_full = full
        self.wake()

    def discard(self) -> None:
        """The sink is gone: what is on the line has nobody to go to."""
        self._line.clear()
        self.held_bytes = 0
        self._over = True
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if not self.ended.done():
            self.ended.set_result(End.RESET)
        self._read_on()

    def wake(self) -> None:
        """Delivers what is due and sets the timer for the rest, if anything may move at all."""
        if self._timer is None and self._may_move():
            self._deliver()

    def _may_move(self) -> bool:
        return bool(self._line and self.sink) and not (self._sink_full or self._lane.frozen)

    def _deliver(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        while self._may_move() and self._line[0][0] <= now_s + _TIMER_STEP_S / 2:
            self._hand_on(self._line.popleft()[1])
        if self._may_move():
            wait_s = max(_TIMER_STEP_S, self._line[0][0] - now_s)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._deliver)
        self._read_on()

    def _hand_on(self, item: bytes | End) -> None:
        assert self.sink is not None
        if isinstance(item, End):
            self._finish(item, self.sink)
            return
        self.held_bytes -= len(item)
        self._lane.delivered_bytes += len(item)
        if not self.sink.is_closing():
            self.sink.write(item)

    def _finish(self, end: End, sink: asyncio.Transport) -> None:
        if end is End.RESET:
            reset(sink)
        elif not sink.is_closing():
            # The far side may have gone a moment ago.
            with contextlib.suppress(OSError):
                sink.write_eof()
        if not self.ended.done():
            self.ended.set_result(end)

    def _read_on(self) -> None:
        if self.source and not self.source.is_closing() and self.held_bytes <= self._limit_bytes // 2:
            self.source.resume_reading()
