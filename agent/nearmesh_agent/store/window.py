"""How many connections a transfer reads over at once: as many as make it faster. Pure.

One connection carries what its window lets be under way in a round trip; a link of 1 Gbit/s that is 40 ms long holds
5 MB. Nobody here knows window, speed or round trip, so connections are added while that pays.
"""

from __future__ import annotations

FIRST, MOST = 6, 16
GROWTH = 1.5
# What more connections have to bring to be worth it.
GAIN = 1.08
# Over which speed is measured: some round trips. After so many of those, more connections are tried once again.
EVERY_S = 0.4
AGAIN = 25


class Window:
    """Of one transfer."""

    def __init__(self) -> None:
        self.connections = FIRST
        self._since_s: float | None = None
        self._bytes = 0
        # Connections and speed before the latest change.
        self._before: tuple[int, float] | None = None
        self._quiet = 0

    def observe(self, received_bytes: int, now_s: float) -> None:
        """`received_bytes` is everything so far; call it as often as you like."""
        if self._since_s is None:
            self._since_s, self._bytes = now_s, received_bytes
        elif now_s - self._since_s >= EVERY_S:
            speed = (received_bytes - self._bytes) / (now_s - self._since_s)
            self._since_s, self._bytes = now_s, received_bytes
            self._judge(speed)

    def _judge(self, speed: float) -> None:
        if speed <= 0:
            return
        if self._before is None:
            self._quiet += 1
            if self._quiet == 1 or self._quiet > AGAIN:
                self._grow(speed)
        elif speed >= self._before[1] * GAIN:
            self._grow(speed)
        else:
            self.connections, self._before, self._quiet = self._before[0], None, 1

    def _grow(self, speed: float) -> None:
        more = min(MOST, int(self.connections * GROWTH))
        self._before = (self.connections, speed) if more > self.connections else None
        self.connections, self._quiet = more, 1
