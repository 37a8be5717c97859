"""Work of a version on trial: bounded in time, and its errors are values, since nobody else is to see them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nearmesh.errors import DeadlineExceeded, MeshError

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of it: an answer where there is no error."""

    answer: T | None = None
    error: BaseException | None = None

    @property
    def reason(self) -> str:
        """Of the error, as it is counted."""
        return self.error.reason if isinstance(self.error, MeshError) else MeshError.reason


class Attempts:
    """Those under way, and those that were dropped and have not ended yet. Belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()

    def start(self, work: Awaitable[Any]) -> None:
        """Nobody waits for it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def within(self, work: Coroutine[Any, Any, T], patience_s: float | None) -> Outcome[T]:
        """What `work` gives; what it still computes after `patience_s`, or when the caller leaves, is dropped.

        With None it may take ever so long. An engine call cannot be broken off: a dropped one keeps its thread until it
        comes back, a thread of the version on trial alone.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        try:
            await asyncio.wait({task}, timeout=patience_s)
        finally:
            # Also of a caller who was cancelled meanwhile.
            if not task.done():
                task.cancel()
        if not task.done():
            return Outcome(error=DeadlineExceeded(f"no answer within {(patience_s or 0.0) * 1000:.0f} ms"))
        if task.cancelled():
            return Outcome(error=DeadlineExceeded("broken off"))
        return Outcome(error=error) if (error := task.exception()) else Outcome(task.result())

    def _over(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        # Looked at here, since nobody asks for it once it was dropped.
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, MeshError):
            log.error("bug in a version on trial", exc_info=error)
