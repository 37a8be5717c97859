"""Runs an import: reads in a thread what the node does not have, sends it, and takes away what has gone.

Nothing is kept on this side: what the collection says of its sources decides what is to be done, so an import that
broke off, or that another machine began, goes on where it was. New rows of a source are there before its old ones go.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from nearmesh.backoff import Backoff
from nearmesh.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    MeshError,
    NotReady,
    Overloaded,
    TooLarge,
    Unreachable,
)
from nearmesh.ingest.document import Problem
from nearmesh.ingest.files import Found
from nearmesh.ingest.plan import Batch, Finished, Planner, Tally, all_of, gone, older_than, too_many
from nearmesh.ingest.sources import Rules, read
from nearmesh.ingest.target import Target
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.vector_values import FIELD_KIND_NAMES

log = logging.getLogger(__name__)

T = TypeVar("T")

# Calls under way while the next batch is made.
IN_FLIGHT = 2
# For a batch of texts that a node with a slow processor turns into vectors, while it has other things to do.
CALL_LIMIT_S = 120.0
# What passes by itself: the node restarts, has no room just now, or its embedder is being loaded.
_PASSING = (DeadlineExceeded, Draining, NotReady, Overloaded, Unreachable)
# After so many refusals without one row taken, the next ones would be refused as well.
MOST_REFUSED = 100

OnProgress = Callable[[Tally], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for beside the files."""

    rules: Rules = field(default_factory=Rules)
    # What has gone stays in the collection, or is deleted whatever it is; by default only where it is not too much.
    keep_gone: bool = False
    delete_gone: bool = False
    # Says what would be done.
    dry_run: bool = False
    # For how long a node that does not answer is asked again; and before it has answered once.
    patience_s: float = 120.0
    first_patience_s: float = 10.0


async def run(target: Target, found: Found, wish: Wish, on_progress: OnProgress = lambda tally: None) -> Tally:
    """Raises MeshError for what ends the import; what was sent before that is in."""
    return await Import(target, found, wish, on_progress).run()


class Import:
    """One of them."""

    def __init__(self, target: Target, found: Found, wish: Wish, on_progress: OnProgress) -> None:
        self._target = target
        self._found = found
        self._wish = wish
        self._on_progress = on_progress
        self.tally = Tally(files=len(found.files))
        # Sources of which the node has refused rows.
        self._refused: set[str] = set()

    async def run(self) -> Tally:
        for problem in self._found.problems:
            self.tally.refuse(problem)
        self.tally.kept.update(self._found.others)
        collection = await self._patiently(self._target.describe, self._wish.first_patience_s)
        known = await self._known()
        before = len(known)
        planner = Planner(known=known, sizes=self._wish.rules.sizes, tally=self.tally, embeds=bool(collection.embedder))
        await self._send_all(planner.batches(read(self._found.files, rules_for(self._wish.rules, collection))))
        if not self._wish.keep_gone:
            await self._delete(gone(known, self.tally.kept), before)
        self._on_progress(self.tally)
        return self.tally

    async def _known(self) -> dict[str, pb.Source]:
        """What the collection has of what this import speaks for."""
        known: dict[str, pb.Source] = {}
        for claim in self._found.claims:
            listed = await self._patiently(partial(_all, self._target, claim.prefix))
            of_it = {source.name: source for source in listed if claim.covers(source.name)}
            sure = self._wish.keep_gone or self._wish.delete_gone
            if of_it and claim.is_folder and self._is_bare(claim.prefix) and not sure:
                raise InvalidInput(
                    f"there is nothing in {claim.name}, of which the collection has {len(of_it)} sources: is it the "
                    "right folder, and mounted? --delete-gone deletes them"
                )
            known |= of_it
        return known

    def _is_bare(self, prefix: str) -> bool:
        names = [*(file.name for file in self._found.files), *self._found.others]
        names += [problem.source + "/" for problem in self._found.problems]
        return not any(name.startswith(prefix) for name in names)

    async def _send_all(self, batches: Iterator[Batch]) -> None:
        ended: MeshError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                await self._send_in(group, batches)
        except* MeshError as errors:
            # What one task met, and who waited for it as well.
            ended = next(error for error in errors.exceptions if isinstance(error, MeshError))
        if ended:
            raise ended

    async def _send_in(self, group: asyncio.TaskGroup, batches: Iterator[Batch]) -> None:
        under_way: deque[tuple[Batch, asyncio.Task[None]]] = deque()
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            if len(under_way) >= IN_FLIGHT:
                await self._finish(*under_way.popleft())
            under_way.append((batch, group.create_task(self._send(batch))))
        while under_way:
            await self._finish(*under_way.popleft())

    async def _finish(self, batch: Batch, sent: asyncio.Task[None]) -> None:
        """Batches end in order, so that all rows of a finished source have arrived."""
        await sent
        for problem in batch.problems:
            self.tally.refuse(problem)
        for source in batch.finished:
            if source.source not in self._refused:
                await self._settle(source)
        self._on_progress(self.tally)

    async def _settle(self, finished: Finished) -> None:
        if finished.leaves:
            await self._take(older_than(finished))
        if not finished.rows:
            self.tally.empty += 1
        elif finished.was_there:
            self.tally.changed += 1
        else:
            self.tally.new += 1

    async def _send(self, batch: Batch) -> None:
        """Where the node refuses something of it, each source by itself, so that one does not take others with it."""
        if not batch.rows:
            return
        try:
            await self._write(batch.rows)
        except (InvalidInput, TooLarge):
            for source, rows in _by_source(batch.rows).items():
                try:
                    await self._write(rows)
                except (InvalidInput, TooLarge) as error:
                    self._refuse(source, rows, error)

    def _refuse(self, source: str, rows: Sequence[pb.Row], error: MeshError) -> None:
        self._refused.add(source)
        self.tally.refuse(Problem(source, f"the node refuses it: {error.message}", rows[0].origin.position))
        if len(self._refused) >= MOST_REFUSED and not (self.tally.rows_written or self.tally.rows_unchanged):
            raise error

    async def _write(self, rows: Sequence[pb.Row]) -> None:
        if self._wish.dry_run:
            self.tally.rows_written += len(rows)
            return
        done = await self._patiently(lambda: self._target.upsert(rows, limit_s=CALL_LIMIT_S))
        self.tally.rows_written += done.written
        self.tally.rows_unchanged += done.unchanged

    async def _delete(self, sources: Sequence[str], before: int) -> None:
        if too_many(len(sources), before) and not self._wish.delete_gone:
            self.tally.withheld = len(sources)
            return
        for filter_, count in all_of(sorted(sources)):
            await self._take(filter_)
            self.tally.deleted += count
            self._on_progress(self.tally)

    async def _take(self, filter_: str) -> None:
        if not self._wish.dry_run:
            done = await self._patiently(lambda: self._target.delete(filter=filter_))
            self.tally.rows_deleted += done.deleted

    async def _patiently(self, call: Callable[[], Awaitable[T]], patience_s: float | None = None) -> T:
        """Every call may be made twice. Raises MeshError."""
        loop, backoff = asyncio.get_running_loop(), Backoff(0.1, 5.0)
        until_s = loop.time() + (self._wish.patience_s if patience_s is None else patience_s)
        while True:
            try:
                return await call()
            except MeshError as error:
                wait_s = max(backoff.next_s(), (error.retry_after_ms or 0) / 1000)
                if not _passes(error) or loop.time() + wait_s > until_s:
                    raise
                log.debug("waiting wait_s=%.1f: %s", wait_s, error.message)
                self._on_progress(replace(self.tally, waiting=error.message))
            await asyncio.sleep(wait_s)


def _passes(error: MeshError) -> bool:
    return isinstance(error, _PASSING) or error.retry_after_ms is not None


def rules_for(rules: Rules, collection: pb.Collection) -> Rules:
    """With the fields that the collection keeps."""
    fields = {kept.name: FIELD_KIND_NAMES[kept.type] for kept in collection.fields if kept.type in FIELD_KIND_NAMES}
    return replace(rules, records=replace(rules.records, fields=fields, dimension=collection.dimension))


def _by_source(rows: Sequence[pb.Row]) -> dict[str, list[pb.Row]]:
    found: dict[str, list[pb.Row]] = {}
    for row in rows:
        found.setdefault(row.origin.source, []).append(row)
    return found


async def _all(target: Target, prefix: str) -> list[pb.Source]:
    return [source async for source in target.sources(prefix)]
