"""A number that grows, and those who wait for it to grow: how a change wakes whoever must act on it."""

from __future__ import annotations

import asyncio
import contextlib


class Generation:
    """Counts changes. Any number of tasks may wait; none misses a change, several may share one wake-up."""

    def __init__(self) -> None:
        self.value = 1
        self._waiters: set[asyncio.Future[None]] = set()
        self._drifted = False

    def bump(self) -> int:
        """Counts one change and wakes every waiter."""
        self.value += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        return self.value

    def drift(self) -> None:
        """Something measured is a little different: worth a look at the next `tick`, not at once.

        Every node and every client reports each second; a look for each of them would be all that is done.
        """
        self._drifted = True

    def tick(self) -> None:
        """Counts everything that drifted since the last tick as one change."""
        if self._drifted:
            self._drifted = False
            self.bump()

    async def above(self, seen: int, within_s: float | None = None) -> int:
        """The present value, as soon as it is above `seen`; after `within_s` also where it is not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.value <= seen:
                    await self._next()
        return self.value

    async def _next(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
