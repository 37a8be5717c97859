"""How long a version that was taken out stays for the sequences that began with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from nearmesh_agent.serving.scheduler import Clock


class Holds:
    """Counts what holds one replica: a sequence kept by a stream, or a step of one under way. For one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._count = 0
        self._used_s = clock()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return self._count

    def take(self) -> None:
        """One more. Each is given back once."""
        self._count += 1
        self._used_s = self._clock()
        self._none.clear()

    def give_back(self) -> None:
        self._count -= 1
        self._used_s = self._clock()
        if not self._count:
            self._none.set()

    @contextmanager
    def during(self) -> Iterator[None]:
        """Held while the body runs."""
        self.take()
        try:
            yield
        finally:
            self.give_back()

    async def over(self, *, idle_s: float, most_s: float) -> None:
        """Returns when nothing holds any more, when all that does was silent for `idle_s`, or after `most_s`."""
        until_s = self._clock() + most_s
        while self._count and (left_s := min(self._used_s + idle_s, until_s) - self._clock()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._none.wait()
            except TimeoutError:
                pass
