"""Versions on their way out: one that another took over from stays a while, and each answers what it has accepted."""

from __future__ import annotations

import asyncio
import logging

from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.session.progress import Progress

log = logging.getLogger(__name__)

# Of `drain_s`, the share that an old version stays in any case, and how lately somebody must have named it for it to
# stay all of that time.
QUIET_SHARE = 0.2
LATELY_S = 60.0


class Outgoing:
    """Of one node; belongs to one event loop."""

    def __init__(self, table: ReplicaTable, progress: Progress, *, drain_s: float) -> None:
        """For `drain_s` after a swap the old version answers requests that name it."""
        self._table = table
        self._progress = progress
        self._drain_s = drain_s
        # Nobody breaks this off: what is not closed keeps its memory.
        self._closing: dict[asyncio.Task[None], Replica] = {}
        # By digest, versions that another one took over from, and that those who name them still find.
        self._draining: dict[str, asyncio.Task[None]] = {}

    def take_out(self, digest: str) -> None:
        """After a swap: whoever names the old version finds it for a while; a change of mind as well."""
        if self._drain_s <= 0 or self._table.by_digest(digest) is None:
            self.let_go(digest)
        elif digest not in self._draining:
            model = self._progress.model(digest)
            self._progress.set(digest, model, pb.REPLICA_STATE_UNLOADING)
            self._draining[digest] = asyncio.create_task(self._drain(digest), name=f"drain {model}")

    async def _drain(self, digest: str) -> None:
        quiet_s = QUIET_SHARE * self._drain_s
        await asyncio.sleep(quiet_s)
        if self._table.named_s_ago(digest) <= LATELY_S:
            await asyncio.sleep(self._drain_s - quiet_s)
        del self._draining[digest]
        self.let_go(digest)

    def keep(self, digest: str) -> None:
        """A change of mind: it stays, if it is still here."""
        task = self._draining.pop(digest, None)
        if task:
            task.cancel()

    def let_go(self, digest: str) -> None:
        """Takes a version out at once, so that a change of mind finds it gone; what it has accepted, it answers."""
        self.keep(digest)
        replica = self._table.remove(digest)
        if replica is not None:
            self._progress.set(digest, replica.name, pb.REPLICA_STATE_UNLOADING)
            task = asyncio.create_task(self._close(replica), name=f"close {replica.name}")
            self._closing[task] = replica
            task.add_done_callback(self._closing.pop)
        elif self._progress.state(digest) != pb.REPLICA_STATE_UNLOADING:
            self._progress.drop(digest)

    async def _close(self, replica: Replica) -> None:
        await replica.sequences_over()
        await replica.close()
        log.info("unloaded model=%s digest=%s", replica.name, replica.digest)
        # It may be on its way back by now.
        if self._progress.state(replica.digest) == pb.REPLICA_STATE_UNLOADING:
            self._progress.drop(replica.digest)

    async def end(self) -> list[Replica]:
        """Stops waiting; the replicas that are still to be closed."""
        replicas = list(self._closing.values())
        tasks = [*self._draining.values(), *self._closing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return replicas
