"""The order of writes to one collection, and how those that wait share a write of the journal.

A write is planned against the rows as they are, so two that touch the same id never share one: the second waits until
the first is done. A caller that goes away changes nothing about a write that has begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nearmesh.errors import Overloaded

T = TypeVar("T")

# Rows that share a write of the journal at most; more would make the first of them wait for the last.
MOST_ROWS = 10_000
# One more is refused: each keeps its rows in memory.
MOST_WAITING = 256


@dataclass(eq=False, slots=True)
class Waiting(Generic[T]):
    """One write whose turn has not come."""

    work: T
    # The ids that it touches; None: nobody knows yet.
    ids: frozenset[str] | None
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Writer(Generic[T]):
    """`write` does several at once; what it raises, all of them have failed by."""

    def __init__(self, write: Callable[[Sequence[T]], Awaitable[None]]) -> None:
        self._write = write
        self._waiting: deque[Waiting[T]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def put(self, work: T, ids: Collection[str] | None) -> None:
        """Returns when it is written, in the order in which it came. Raises what `write` does, and Overloaded."""
        if len(self._waiting) >= MOST_WAITING:
            raise Overloaded(
                f"{len(self._waiting)} writes wait for the disk; come again in a moment", retry_after_ms=200
            )
        waiting = Waiting(work, None if ids is None else frozenset(ids))
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await asyncio.shield(waiting.done)

    async def quiet(self) -> None:
        """Nothing is under way any more."""
        while self._task:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._together(take(self._waiting))
        finally:
            self._task = None

    async def _together(self, batch: Sequence[Waiting[T]]) -> None:
        work = asyncio.ensure_future(self._write([one.work for one in batch]))
        try:
            await asyncio.wait({work})
        finally:
            # Cancelled only when the process ends.
            work.cancel()
            for one in batch:
                _settle(one.done, work)


def take(waiting: deque[Waiting[T]], most: int = MOST_ROWS) -> list[Waiting[T]]:
    """The first, and those right behind it that touch none of the same ids."""
    batch = [waiting.popleft()]
    if batch[0].ids is None:
        return batch
    touched = set(batch[0].ids)
    while waiting:
        ids = waiting[0].ids
        if ids is None or len(touched) + len(ids) > most or not touched.isdisjoint(ids):
            break
        touched |= ids
        batch.append(waiting.popleft())
    return batch


def _settle(done: asyncio.Future[None], work: asyncio.Future[None]) -> None:
    if done.done():
        return
    if not work.done() or work.cancelled():
        done.cancel()
    elif error := work.exception():
        done.set_exception(error)
        # Where its caller has gone, nobody asks for it.
        done.exception()
    else:
        done.set_result(None)
