"""What goes on behind the calls: fresh rows go into indexes, indexes onto the disk, the journal into the store;
and the journal forgets what all of these have. In threads of low priority, so that searches come first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from nearmesh.errors import EngineFailure, MeshError
from nearmesh_agent.vectors.collection import Collection
from nearmesh_agent.vectors.keeper import Keeper
from nearmesh_agent.vectors.model import Vector, Where
from nearmesh_agent.vectors.recall import OF
from nearmesh_agent.vectors.table import OpenTable

log = logging.getLogger(__name__)

T = TypeVar("T")

EVERY_S = 0.5
# What was written since is replayed at a start, some ten thousand rows a second; a save of 100,000 rows takes 0.1 s.
SAVE_EVERY_S = 20.0
# How far behind others, as `nice` has it.
NICE = 10


class Upkeep:
    """Of one keeper; `run` for as long as the process lives."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._slow = ThreadPoolExecutor(1, "vector-upkeep", initializer=give_way)
        self._saved_at_s: dict[str, float] = {}
        self._warmed: set[str] = set()
        self._sampled: deque[Callable[[], None]] = deque(maxlen=16)

    def sample(self, collection: Collection, vector: Vector, k: int, where: Where | None) -> None:
        """A search that was answered is asked again, exactly, where it is its turn. From any thread."""
        if collection.recall.wants(time.monotonic()):
            self._sampled.append(partial(collection.measure, vector, k, where))

    async def run(self) -> None:
        """Raises EngineFailure where memory or ledger and journal differ: only a restart mends that."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self._check()
            try:
                await self._round()
            except (MeshError, OSError) as error:
                # A full disk, say: nothing of what was acknowledged is lost by it.
                log.warning("upkeep of vectors: %s", error)

    async def _check(self) -> None:
        for collection in self._keeper:
            if collection.broken:
                await collection.quiet()
                raise EngineFailure(f"a write to collection {collection.spec.name!r} failed half-way; opening it anew")
        if self._keeper.ledger.broken:
            raise EngineFailure(
                "the disk takes again what it refused of the changes; they are read from the journal anew"
            )

    async def _round(self) -> None:
        for collection in self._keeper:
            for table in collection.tables:
                try:
                    await self._table(table)
                except (MeshError, OSError) as error:
                    # The others go on.
                    log.warning("upkeep of collection=%s: %s", collection.spec.name, error)
        while self._sampled:
            await self._slowly(self._sampled.popleft())
        await self._look_what_is_saved()

    async def _table(self, table: OpenTable) -> None:
        await self._warm(table)
        # Also where nothing is written: it follows what is searched, and returns at once where there is nothing to do.
        await self._slowly(table.maintain)
        name, now_s = table.table.name, time.monotonic()
        if table.unsaved is not None and now_s >= self._saved_at_s.get(name, 0.0) + SAVE_EVERY_S:
            await self._slowly(table.save)
            self._saved_at_s[name] = now_s

    async def _warm(self, table: OpenTable) -> None:
        """The first search has libraries to load and pages to read; nobody is to wait for that."""
        name = table.table.name
        if name not in self._warmed and table.index.size:
            self._warmed.add(name)
            query = np.ones(table.table.dimension, np.float32)
            await self._slowly(lambda: table.index.search(query, OF))

    async def _look_what_is_saved(self) -> None:
        keeper = self._keeper
        settled = await keeper.desk.settled()
        tables = [table for one in keeper for table in one.tables]
        unsaved = [table.unsaved - 1 for table in tables if table.unsaved is not None]
        if settled > keeper.ledger.position:
            await self._slowly(partial(keeper.ledger.save, settled))
        if keeper.whole:
            keeper.saved_position = min([settled, keeper.ledger.position, *unsaved])

    async def _slowly(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._slow, work)

    def close(self) -> None:
        self._slow.shutdown(wait=False, cancel_futures=True)


def give_way() -> None:
    """Puts this thread behind others, where the system knows priorities of threads."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
