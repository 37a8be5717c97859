"""The one task that drives all runs of the leader: each run has a look at a time, however long that takes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from nearmesh.errors import MeshError
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.runs import machine
from nearmesh_controlplane.runs.calls import wanted_version
from nearmesh_controlplane.runs.chain import Chain
from nearmesh_controlplane.runs.run import Run, new_pseudonym
from nearmesh_controlplane.runs.runs import Runs
from nearmesh_controlplane.runs.sites import Sites
from nearmesh_controlplane.runs.trainer import Trainer

log = logging.getLogger(__name__)

# A round that has ended is in the database within this time. What changed otherwise is looked at after the shorter one.
LOOK_EVERY_S, AT_MOST_EVERY_S = 0.5, 0.05


class Driver:
    """Goes on with every run, where this control plane leads."""

    def __init__(
        self,
        runs: Runs,
        trainer: Trainer,
        chain: Chain,
        sites: Sites,
        catalog: Catalog,
        *,
        address: str = "",
        leads: Callable[[], bool] = lambda: True,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`address` is host:port at which nodes find the SuperLink."""
        self._runs = runs
        self._trainer = trainer
        self._chain = chain
        self._sites = sites
        self._catalog = catalog
        self._address = address
        self.leads = leads
        self._wall = wall
        self._led = False
        self._beginning = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def wanted_training(self, node: str) -> str | None:
        """Where the node's SuperNode finds the SuperLink; None: no run asks for the node."""
        return self._address if self.leads() and self._trainer.asks(node) else None

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                seen = self._runs.changes.value
                await self._spawn()
                await asyncio.sleep(AT_MOST_EVERY_S)
                await self._runs.changes.above(seen, LOOK_EVERY_S)
        finally:
            await self._cancel()

    async def _cancel(self) -> None:
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """One step of every run."""
        await self._spawn()
        while any(not task.done() for task in self._tasks.values()):
            await asyncio.wait(self._tasks.values())
        await self._collect()

    async def _spawn(self) -> None:
        await self._collect()
        if not self.leads():
            if self._led:
                await self._let_go()
            self._led = False
            return
        self._led = True
        for run in self._runs.active():
            if run.id not in self._tasks:
                self._tasks[run.id] = asyncio.create_task(self._one(run), name=f"run {run.id}")

    async def _let_go(self) -> None:
        log.info("runs are another control plane's from now on")
        await self._cancel()
        self._chain.forget()
        try:
            await self._trainer.leave_all()
        except MeshError as error:
            log.warning("the engine was not told that its runs are over: %s", error.message)

    async def _collect(self) -> None:
        """Looks at what has come of the looks before. A bug in making one run's model ends that run and no other."""
        for id, task in list(self._tasks.items()):
            if not task.done():
                continue
            del self._tasks[id]
            error = None if task.cancelled() else task.exception()
            if error is None:
                continue
            log.error("run id=%s failed", id, exc_info=error)
            await self._fail(id, type(error).__name__)

    async def _fail(self, id: str, kind: str) -> None:
        try:
            why = f"an error of the control plane itself ({kind}), which its log has"
            run = await self._runs.get(id)
            if run.active:
                await self._runs.step(run, lambda run: machine.failed(run, why, self._wall()))
            await self._trainer.leave(id)
        except MeshError as error:
            log.warning("run id=%s is still under way: %s", id, error.message)

    async def _one(self, seen: Run) -> None:
        try:
            if seen.state == "waiting":
                # One after the other, as they were asked for: two runs of one model must not both find it free.
                async with self._beginning:
                    await self._wait(await self._runs.get(seen.id))
                return
            run = await self._runs.get(seen.id)
            if run.state == "training":
                await self._trainer.go_on(run)
            elif run.active:
                await self._chain.go_on(run)
        except MeshError as error:
            log.warning("run id=%s was not gone on with: %s", seen.id, error.message)

    async def _wait(self, run: Run) -> None:
        if run.state != "waiting":
            return
        ready = self._sites.ready(run)
        # Those that would be asked are those that a schedule looks at.
        look = machine.Waiting(ready=ready, busy=self._busy(run), closed=self._trainer.closed(run, ready))
        names = {node: new_pseudonym() for node in ready}
        parent = None if await self._runs.rounds(run.id) else wanted_version(self._catalog, run.model)

        def step(run: Run) -> Run:
            after = machine.waited(run, look)
            if after.state == "waiting":
                return after
            if parent:
                after = machine.begins_from(after, parent.version, parent.digest)
            return machine.joined(after, names)

        await self._runs.step(run, step)

    def _busy(self, run: Run) -> str:
        """Another run that has to end first.

        A model has one at a time. An app of the data team's own asks every SuperNode that is there, so it has them for
        itself: a node whose data are for another model is not asked.
        """
        for other in self._runs.active():
            if other.id == run.id or not other.at_work:
                continue
            alone = other.state == "training" and (run.own_app or other.own_app)
            if other.model == run.model or alone:
                return other.id
        return ""
