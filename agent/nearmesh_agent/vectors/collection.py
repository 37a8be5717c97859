"""A collection as it is written and searched: a write is in the journal on disk, then in index, words and ledger.

Acknowledged is what the journal has on disk and the index in memory. The store takes it from the journal later; nothing
here waits for it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

from nearmesh.errors import MeshError, NotFound, NotReady
from nearmesh_agent.vectors.changes import Change
from nearmesh_agent.vectors.collections import CollectionSpec
from nearmesh_agent.vectors.ledger import Ledger
from nearmesh_agent.vectors.model import Journal, Vector, Where, Write
from nearmesh_agent.vectors.recall import OF, Recall
from nearmesh_agent.vectors.sources import Source, Sources
from nearmesh_agent.vectors.table import OpenTable
from nearmesh_agent.vectors.writer import Writer

# Rows that are looked through at a time, as their sources are counted the first time.
_COUNTED_ROWS = 2_000


class Desk:
    """What all collections of a node write with."""

    def __init__(self, journal: Journal, ledger: Ledger, writes: Executor) -> None:
        """`writes` are the threads in which writes are planned and applied, one at a time for each collection."""
        self.journal = journal
        self.ledger = ledger
        self.writes = writes
        self._under_way: set[asyncio.Future[None]] = set()
        # Where the first write begins that is in the journal and failed on its way into the indexes.
        self._failed = sys.maxsize

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """A write that may be in the journal and not in the indexes yet."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.add(over)
        try:
            yield
        finally:
            self._under_way.discard(over)
            over.set_result(None)

    def failed(self, position: int) -> None:
        """What the journal has from there on is not all in the indexes; a restart reads it again."""
        self._failed = min(self._failed, position)

    async def settled(self) -> int:
        """A position up to which everything in the journal is in the indexes, too."""
        position = self.journal.position
        if self._under_way:
            await asyncio.wait(set(self._under_way))
        return min(position, self._failed - 1)


class Collection:
    """One of a node. Writes may come at any time, searches in any thread."""

    def __init__(self, spec: CollectionSpec, serving: OpenTable, desk: Desk, filling: OpenTable | None = None) -> None:
        self.spec = spec
        self.serving = serving
        # The next generation, while it is being filled: what changes in the serving one leaves it, to be filled anew.
        self.filling = filling
        self.ledger = desk.ledger
        self.recall = Recall()
        self.written_at_s = spec.created_at_s
        self._desk = desk
        self._writer = Writer(self._write)
        self._sources: Sources | None = None
        self._sources_gate = threading.Lock()
        # What memory and journal differ by, only a restart mends.
        self.broken = False
        self._dropped = False
        # Set when writes may go on; None: nothing holds them.
        self._held: asyncio.Event | None = None

    @property
    def identity(self) -> str:
        return self.spec.identity

    @property
    def replicated(self) -> bool:
        return bool(self.spec.replicate_to)

    @property
    def tables(self) -> list[OpenTable]:
        return [table for table in (self.serving, self.filling) if table]

    # Writes.

    async def put(self, change: Change) -> None:
        """On disk, and found by searches, when it returns. Raises MeshError, with nothing written."""
        while self._held and not change.fills:
            await self._held.wait()
        self._check_open()
        await self._writer.put(change, change.ids)
        if change.refused:
            raise change.refused

    def _check_open(self) -> None:
        if self._dropped:
            raise NotFound(f"collection {self.spec.name!r} was dropped meanwhile")
        if self.broken:
            raise NotReady(f"collection {self.spec.name!r} is opened anew: a write to it failed half-way")

    async def close(self) -> None:
        """It was dropped: takes no more, and gives its files back when what is under way is done."""
        self._dropped = True
        self.release()
        await self.quiet()
        for table in self.tables:
            await asyncio.to_thread(table.close)

    def hold(self, seconds: float) -> None:
        """Writes wait for so long, or until `release`; those that fill the next generation go on."""
        if self._held is None:
            self._held = asyncio.Event()
            asyncio.get_running_loop().call_later(seconds, self._let_go, self._held)

    def release(self) -> None:
        """Safe to repeat."""
        if self._held:
            self._let_go(self._held)

    def _let_go(self, held: asyncio.Event) -> None:
        held.set()
        if self._held is held:
            self._held = None

    async def quiet(self) -> None:
        """No write is under way."""
        await self._writer.quiet()

    async def _write(self, changes: Sequence[Change]) -> None:
        # It may have waited behind one that failed.
        self._check_open()
        loop = asyncio.get_running_loop()
        with self._desk.under_way():
            writes = await loop.run_in_executor(self._desk.writes, self._plan, changes)
            if not writes:
                return
            last = await self._desk.journal.append([write for write, _ in writes])
            first, whole = last - len(writes) + 1, False
            try:
                await loop.run_in_executor(self._desk.writes, self._apply, changes, writes, first)
                whole = True
            finally:
                if not whole:
                    self.broken = True
                    self._desk.failed(first)

    def _plan(self, changes: Sequence[Change]) -> list[tuple[Write, Change]]:
        for change in changes:
            # What it refuses is its caller's alone.
            planned(change, self)
            if self.filling:
                # First: what a power cut leaves of them is a beginning, after which the next generation may lack a row,
                # and never has one that the serving one has not.
                change.writes = [*stale_in(self.filling, self.serving, change.writes), *change.writes]
        writes = [(write, change) for change in changes for write in change.writes]
        for table in self.tables:
            table.reserve([write for write, _ in writes])
        return writes

    def _apply(self, changes: Sequence[Change], writes: Sequence[tuple[Write, Change]], first: int) -> None:
        for position, (write, change) in enumerate(writes, first):
            if write.table == self.serving.table.name:
                self.serving.apply(write, position)
                self.ledger.apply(self.identity, write, position, source=change.source, site=change.site)
            elif self.filling:
                self.filling.apply(write, position)
        with self._sources_gate:
            if self._sources is not None:
                for change in changes:
                    self._sources.replace(change.old, change.written)
        self.written_at_s = time.time()

    # What it says of itself.

    async def sources(self, prefix: str, after: str, size: int) -> tuple[Sequence[Source], str]:
        """A page of them, and where the next begins. The first call looks at every row."""
        if self._sources is None:
            await self.put(_Count(ids=None, collection=self))
        assert self._sources is not None
        with self._sources_gate:
            return self._sources.page(prefix, after, size)

    def count_sources(self) -> None:
        """While no write is under way."""
        found, after = Sources(), ""
        while ids := self.serving.index.select(None, after=after, limit=_COUNTED_ROWS):
            found.replace((), self.serving.index.rows(ids))
            after = ids[-1]
        self._sources = found

    def measure(self, vector: Vector, k: int, where: Where | None) -> None:
        """Asks the same as a search once more, both ways, and compares; in the background."""
        k = min(k, OF)
        found, _ = self.serving.index.search(vector, k, where)
        exact, _ = self.serving.index.search(vector, k, where, exact=True)
        self.recall.compare([one.id for one in found], [one.id for one in exact])


def stale_in(filling: OpenTable, serving: OpenTable, writes: Sequence[Write]) -> list[Write]:
    """What is not true any more of the generation that is being filled."""
    touched = [
        name
        for write in writes
        if write.table == serving.table.name
        for name in (*write.deleted, *(row.id for row in write.rows))
    ]
    there = [row.id for row in filling.index.rows(touched)]
    return [Write(table=filling.table.name, deleted=there)] if there else []


def planned(change: Change, collection: Collection) -> None:
    """Plans it, or notes why not."""
    try:
        change.plan(collection)
    except MeshError as error:
        change.refuse(error)


@dataclass(slots=True, kw_only=True)
class _Count(Change):
    """Writes nothing."""

    collection: Collection

    def plan(self, kept: object) -> None:
        self.collection.count_sources()
