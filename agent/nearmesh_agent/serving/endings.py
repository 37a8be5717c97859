"""Engines on their way out of memory: each is freed, whatever becomes of whoever sent it away."""

from __future__ import annotations

import asyncio
import logging

from nearmesh_agent.serving.loaded import Loaded

log = logging.getLogger(__name__)


class Endings:
    """Of one replica; belongs to one event loop."""

    def __init__(self, name: str, version: str) -> None:
        self._name, self._version = name, version
        # Engines that were given up while a call of theirs hung; their memory stays until it comes back.
        self._lost: list[Loaded] = []
        # Ends that are under way. Nothing else knows these engines any more.
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def hanging(self) -> int:
        """Engines that were given up and cannot be freed yet."""
        return len(self._lost)

    async def end(self, loaded: Loaded, timeout_s: float, *, give_up: bool = False) -> None:
        """Answers what it has accepted and frees it. A caller that is cancelled stops waiting; the end goes on.

        With `give_up`, those whose call has not come back by then are told so.
        """
        await asyncio.shield(self._begin(loaded, timeout_s, give_up))

    def _begin(self, loaded: Loaded, timeout_s: float, give_up: bool) -> asyncio.Task[None]:
        task = asyncio.create_task(self._end(loaded, timeout_s, give_up), name=f"end {self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end(self, loaded: Loaded, timeout_s: float, give_up: bool) -> None:
        if not await loaded.end(timeout_s, give_up=give_up):
            log.error("an engine call of model=%s version=%s did not end; its memory stays", self._name, self._version)
            self._lost.append(loaded)

    async def tidy(self) -> None:
        """Frees engines that were given up and whose calls have come back after all."""
        for loaded in [loaded for loaded in self._lost if not loaded.hangs()]:
            self._lost.remove(loaded)
            log.info("an engine call of model=%s version=%s came back late", self._name, self._version)
            await loaded.end_late()
