"""`Migrate`: everything that a node keeps goes to another Milvus, while it is searched and written as before.

The journal keeps what is written meanwhile. It goes on when its caller has gone away, and whoever asks for the same
again watches it; broken off by a crash, it begins again, and passes over what was copied.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from nearmesh.errors import AlreadyRunning, NotReady
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.keeper import Keeper
from nearmesh_agent.vectors.model import Store, Table
from nearmesh_agent.vectors.store.migrate import Phase, Progress, migrate

log = logging.getLogger(__name__)


class Mover:
    """Of one keeper; belongs to one event loop."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._to = ""
        self._task: asyncio.Task[None] | None = None
        self._beginning = asyncio.Lock()
        self._latest = pb.MigrateProgress()
        self._news = asyncio.Event()

    async def move(self, uri: str, token_variable: str) -> AsyncIterator[pb.MigrateProgress]:
        """Until it is done. Raises InvalidInput, AlreadyRunning where another move is under way, and MeshError."""
        task = await self._under_way(uri, token_variable)
        if task is None:
            yield pb.MigrateProgress(phase=Phase.DONE)
            return
        async for progress in self._watched(task):
            yield progress

    async def _under_way(self, uri: str, token_variable: str) -> asyncio.Task[None] | None:
        """Begun, if it is not; None where everything is there already."""
        # Two that ask at once must not both find none under way while they look at where it goes.
        async with self._beginning:
            if self._task and self._to != uri:
                raise AlreadyRunning(f"the vectors of this node are on their way to {self._to}; wait for that")
            if self._task is None:
                await self._keeper.wait_for_store()
                target = await asyncio.to_thread(self._keeper.parts.elsewhere, uri, token_variable)
                if target is not None:
                    self._begin(uri, token_variable, target)
            return self._task

    async def _watched(self, task: asyncio.Task[None]) -> AsyncIterator[pb.MigrateProgress]:
        while not task.done():
            yield self._latest
            news = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait({news, task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
        task.result()
        yield pb.MigrateProgress(phase=Phase.DONE)

    def _begin(self, uri: str, token_variable: str, target: Store) -> None:
        self._to, self._latest = uri, pb.MigrateProgress(phase=Phase.COPYING)
        self._task = asyncio.create_task(self._run(uri, token_variable, target))
        self._task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()):
            log.warning("the vectors were not moved to %s: %s", self._to, error)

    async def _run(self, uri: str, token_variable: str, target: Store) -> None:
        source = self._keeper.the_store()
        async with self._keeper.standing_still():
            done = asyncio.to_thread(self._all, source, target, asyncio.get_running_loop(), uri, token_variable)
            try:
                await done
            except BaseException:
                await asyncio.to_thread(target.close)
                raise
        await asyncio.to_thread(source.close)
        log.info("the vectors were moved to %s", uri)

    def _all(
        self, source: Store, target: Store, loop: asyncio.AbstractEventLoop, uri: str, token_variable: str
    ) -> None:
        keeper = self._keeper
        tables = {table.name: (spec.name, table) for spec in keeper.specs for table in spec.tables}
        applier = keeper.the_applier()
        applier.flush()
        with applier.paused():
            for progress in migrate(source, target, [table for _, table in tables.values()]):
                loop.call_soon_threadsafe(self._say, told(progress, tables))
                if keeper.ending:
                    raise NotReady("the node stops; asked again, the move goes on")
            keeper.parts.use_elsewhere(uri, token_variable)
            keeper.store = target
            applier.use(target, getattr(target, "settle_s", 0.0))

    def _say(self, progress: pb.MigrateProgress) -> None:
        self._latest = progress
        news, self._news = self._news, asyncio.Event()
        news.set()


def told(progress: Progress, tables: dict[str, tuple[str, Table]]) -> pb.MigrateProgress:
    return pb.MigrateProgress(
        collection=tables[progress.table][0], rows_done=progress.done, rows_total=progress.total, phase=progress.phase
    )
