"""The limit on what a node reads from outside its site, over all transfers together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# What may come at once after a pause, in seconds' worth.
BURST_S = 0.1


class Bandwidth:
    """A bucket that fills at a steady rate; asked by many threads."""

    def __init__(self, bytes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """0 is no limit."""
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        # When everything that was asked for so far has come, at that rate.
        self._free_at_s = 0.0

    def take(self, size_bytes: int) -> float:
        """Seconds to wait before reading so much; it counts as read from now on."""
        if not self._bytes_per_s:
            return 0.0
        with self._lock:
            now_s = self._clock()
            start_s = max(self._free_at_s, now_s - BURST_S)
            self._free_at_s = start_s + size_bytes / self._bytes_per_s
            return max(0.0, self._free_at_s - now_s)
