"""Makes the node serve what is wanted: pulls, proves and swaps versions, and says how far it has come.

A new version is loaded and proven beside the old one and takes over in one step; the old one answers those who name it
for a while, what it has accepted, and its sequences until they are over, and goes. A version that fails never serves,
and the old one stays, or comes back after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from nearmesh.errors import DigestMismatch, MeshError, NotFound, NotReady, Unreachable
from nearmesh.tls import write_private
from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.serving.orca import answered_and_failed
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable

log = logging.getLogger(__name__)

# A version that could not be had is tried again, less and less often; one that proved wrong is not.
RETRY_S = (1.0, 60.0)
# Of each model, versions that served last and are remembered: the newest stands in for a wrong one after a restart, the
# one before it makes a rollback quick.
REMEMBERED = 2
# Of `drain_s`, the share that an old version stays in any case, and how lately somebody must have named it for it to
# stay all of that time.
QUIET_SHARE = 0.2
LATELY_S = 60.0

Load = Callable[[Path, str], Awaitable[Replica]]


class Source(Protocol):
    """Where a version's files come from."""

    async def __call__(self, model: str, digest: str, registry_url: str) -> Path:
        """The version's folder on this node. Raises MeshError."""
        ...


@dataclass(slots=True)
class _Progress:
    state: pb.ReplicaState
    detail: str = ""


class Reconciler:
    """Works towards the newest wanted state, one version at a time."""

    def __init__(
        self,
        table: ReplicaTable,
        source: Source,
        load: Load,
        *,
        keep: Path,
        on_progress: Callable[[], None],
        tidy: Callable[[], Coroutine[Any, Any, None]] | None = None,
        drain_s: float = 0.0,
    ) -> None:
        """`tidy` runs after a version began to serve: what is not `needed` may leave the disk.

        For `drain_s` after a swap the old version answers requests that name it.
        """
        self._table = table
        self._source = source
        self._load = load
        self._keep = keep
        # What served last of each model: when the wanted version fails after a restart, this one still answers.
        self._keep_served = keep.with_name("served.pb")
        self._on_progress = on_progress
        self._tidy = tidy
        found = _read(keep)
        self.restored = found is not None
        self._wanted = found or pb.WantedState()
        # The disk refused it; the next wish is written whether it changes anything or not.
        self._unsaved = False
        # By model, the newest last.
        self._served: dict[str, list[pb.WantedVersion]] = {}
        for version in (_read(self._keep_served) or pb.WantedState()).versions:
            self._served.setdefault(version.model, []).append(version)
        self._progress: dict[str, _Progress] = {}
        self._models: dict[str, str] = {}
        # By digest, on its way to serving.
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Replicas on their way out. Nobody breaks this off: what is not closed keeps its memory.
        self._closing: dict[asyncio.Task[None], Replica] = {}
        self._tidying: set[asyncio.Task[None]] = set()
        self._drain_s = drain_s
        # By digest, versions that another one took over from, and that those who name them still find.
        self._draining: dict[str, asyncio.Task[None]] = {}
        # Loading takes all cores for a moment; one at a time leaves some for serving.
        self._one_at_a_time = asyncio.Lock()

    @property
    def wanted(self) -> pb.WantedState:
        """What the control plane said last, also before the last restart."""
        return self._wanted

    def want(self, state: pb.WantedState) -> None:
        """Takes over a wanted state and writes it to disk, so that a restart needs no control plane.

        A disk that refuses it costs that memory, not the service.
        """
        changed = state.versions != self._wanted.versions or state.removed_nodes != self._wanted.removed_nodes
        if changed or self._unsaved:
            self._unsaved = not _kept(self._keep, state)
        self._wanted = state
        self._start()
        for version in state.versions:
            replica = self._table.by_digest(version.digest)
            if replica and self._table.serving(replica):
                self._remember(version)

    def needed(self) -> set[str]:
        """Digests of the versions that have to stay on this node's disk."""
        versions = [*self._wanted.versions, *(version for served in self._served.values() for version in served)]
        # What is out of memory at the moment comes back from the disk.
        here = {replica.digest for replica in self._table}
        return {version.digest for version in versions} | self._tasks.keys() | here

    def resume(self) -> None:
        """Works towards what was wanted before the restart."""
        if self.restored:
            log.info("serving from the local store until the control plane speaks")
            self._start()

    def statuses(self) -> list[pb.ReplicaStatus]:
        """Every version that this node has, or is working on."""
        found = []
        for digest, progress in self._progress.items():
            status = pb.ReplicaStatus(
                model=self._models[digest], digest=digest, state=progress.state, detail=progress.detail
            )
            replica = self._table.by_digest(digest)
            if replica:
                _measure(status, replica)
            found.append(status)
        return found

    async def close(self) -> None:
        """Stops working and closes every replica, without waiting for sequences. Safe to repeat."""
        replicas = [*self._table, *self._closing.values()]
        tasks = [*self._tasks.values(), *self._draining.values(), *self._closing, *self._tidying]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in replicas))

    def _start(self) -> None:
        wanted = {version.digest: version for version in self._wanted.versions}
        for digest, task in list(self._tasks.items()):
            if task.done() or digest not in wanted:
                task.cancel()
                del self._tasks[digest]
        for digest, version in wanted.items():
            self._models[digest] = version.model
            if digest not in self._tasks and not self._settled(digest):
                task = asyncio.create_task(self._bring(version), name=f"bring {version.model}")
                self._tasks[digest] = task
                task.add_done_callback(partial(self._brought, version))
        models = {version.model for version in wanted.values()}
        for digest in [d for d in self._progress if d not in wanted]:
            # While its successor is on the way, the old version serves.
            if self._models[digest] not in models or self._table.by_digest(digest) is None:
                self._let_go(digest)
        for model in {*self._models.values()} - models:
            self._table.forget(model)

    def _settled(self, digest: str) -> bool:
        """Nothing left to do: it serves, or it has proven wrong."""
        replica = self._table.by_digest(digest)
        if replica:
            return self._table.serving(replica)
        progress = self._progress.get(digest)
        return progress is not None and progress.state == pb.REPLICA_STATE_FAILED

    async def _bring(self, version: pb.WantedVersion) -> None:
        wait_s = RETRY_S[0]
        while True:
            try:
                await self._bring_once(version)
                return
            except (MeshError, OSError) as error:
                why = _why(error)
                self._set(version, pb.REPLICA_STATE_FAILED, why)
                log.warning("version failed model=%s digest=%s: %s", version.model, version.digest, why)
                await self._fall_back(version)
                if not _worth_another_try(error):
                    return
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, RETRY_S[1])

    def _brought(self, version: pb.WantedVersion, task: asyncio.Task[None]) -> None:
        """A bug must not look like a load that never ends."""
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        log.error("bug while bringing model=%s digest=%s", version.model, version.digest, exc_info=error)
        if self._tasks.get(version.digest) is task:
            self._set(version, pb.REPLICA_STATE_FAILED, "internal error; the node's log has the cause")

    async def _bring_once(self, version: pb.WantedVersion) -> None:
        replica = self._table.by_digest(version.digest)
        if replica is None:
            replica = await self._get(version)
        self._stop_draining(version.digest)
        self._table.forget(version.model)
        self._table.put(replica)
        self._set(version, pb.REPLICA_STATE_READY)
        self._remember(version)
        log.info("serving model=%s version=%s digest=%s", version.model, version.version, version.digest)
        for digest in [d for d in self._progress if self._models[d] == version.model and d != version.digest]:
            self._take_out(digest)
        if self._tidy:
            _own(self._tidying, self._tidy(), "tidy")

    async def _fall_back(self, failed: pb.WantedVersion) -> None:
        """Brings back what served before a restart, if nothing serves the model now."""
        last = next(reversed(self._served.get(failed.model, [])), None)
        if last is None or last.digest == failed.digest or any(r.name == failed.model for r in self._table):
            return
        self._models[last.digest] = last.model
        try:
            replica = await self._get(last)
        except (MeshError, OSError) as error:
            log.warning("the last version failed too model=%s digest=%s: %s", last.model, last.digest, _why(error))
            # A change of mind meanwhile may have taken it away already.
            self._progress.pop(last.digest, None)
            return
        self._table.forget(last.model)
        self._table.put(replica)
        self._set(last, pb.REPLICA_STATE_READY)
        log.info("serving the last version again model=%s digest=%s", last.model, last.digest)

    def _remember(self, version: pb.WantedVersion) -> None:
        known = self._served.get(version.model, [])
        if known and known[-1] == version:
            return
        latest = [*(other for other in known if other.digest != version.digest), version][-REMEMBERED:]
        served = {**self._served, version.model: latest}
        if _kept(self._keep_served, pb.WantedState(versions=chain.from_iterable(served.values()))):
            self._served = served

    async def _get(self, version: pb.WantedVersion) -> Replica:
        self._table.expect(version.model, "being loaded")
        self._set(version, pb.REPLICA_STATE_PULLING)
        folder = await self._source(version.model, version.digest, self._wanted.registry_url)
        async with self._one_at_a_time:
            self._set(version, pb.REPLICA_STATE_LOADING)
            return await self._load(folder, version.digest)

    def _take_out(self, digest: str) -> None:
        """After a swap: whoever names the old version finds it for a while; a change of mind as well."""
        if self._drain_s <= 0 or self._table.by_digest(digest) is None:
            self._let_go(digest)
        elif digest not in self._draining:
            self._progress[digest] = _Progress(pb.REPLICA_STATE_UNLOADING)
            self._draining[digest] = asyncio.create_task(self._drain(digest), name=f"drain {self._models[digest]}")

    async def _drain(self, digest: str) -> None:
        quiet_s = QUIET_SHARE * self._drain_s
        await asyncio.sleep(quiet_s)
        if self._table.named_s_ago(digest) <= LATELY_S:
            await asyncio.sleep(self._drain_s - quiet_s)
        del self._draining[digest]
        self._let_go(digest)

    def _stop_draining(self, digest: str) -> None:
        task = self._draining.pop(digest, None)
        if task:
            task.cancel()

    def _let_go(self, digest: str) -> None:
        """Takes a version out at once, so that a change of mind finds it gone; what it has accepted, it answers."""
        self._stop_draining(digest)
        replica = self._table.remove(digest)
        if replica is not None:
            self._progress[digest] = _Progress(pb.REPLICA_STATE_UNLOADING)
            task = asyncio.create_task(self._close(replica), name=f"close {replica.name}")
            self._closing[task] = replica
            task.add_done_callback(self._closing.pop)
        elif self._progress[digest].state != pb.REPLICA_STATE_UNLOADING:
            del self._progress[digest]
        self._on_progress()

    async def _close(self, replica: Replica) -> None:
        await replica.sequences_over()
        await replica.close()
        log.info("unloaded model=%s digest=%s", replica.name, replica.digest)
        progress = self._progress.get(replica.digest)
        # It may be on its way back by now.
        if progress and progress.state == pb.REPLICA_STATE_UNLOADING:
            del self._progress[replica.digest]
        self._on_progress()

    def _set(self, version: pb.WantedVersion, state: pb.ReplicaState, detail: str = "") -> None:
        self._progress[version.digest] = _Progress(state, detail)
        self._on_progress()


def _read(path: Path) -> pb.WantedState | None:
    try:
        return pb.WantedState.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except DecodeError:
        log.warning("%s is damaged and will be written anew", path)
        return None


def _kept(path: Path, state: pb.WantedState) -> bool:
    try:
        write_private(path, state.SerializeToString())
    except OSError as error:
        log.warning("%s cannot be written, a restart would begin with what was there before: %s", path, error)
        return False
    return True


def _own(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None], name: str) -> None:
    """Starts a task that `tasks` holds until it is over."""
    task = asyncio.create_task(work, name=name)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _why(error: MeshError | OSError) -> str:
    return f"{error.reason}: {error.message}" if isinstance(error, MeshError) else f"STORAGE: {error}"


def _worth_another_try(error: MeshError | OSError) -> bool:
    """Bytes that were wrong or missing may come right with another download, a full disk or memory may be emptied; a
    version that proved wrong stays so."""
    return isinstance(error, OSError | Unreachable | DigestMismatch | NotFound | NotReady)


def _measure(status: pb.ReplicaStatus, replica: Replica) -> None:
    stats = replica.stats()
    status.variant = replica.variant
    status.service_ms_p50, status.service_ms_p95 = stats.service.p50_ms, stats.service.p95_ms
    if stats.service.p50_ms:
        status.service_ms_quantiles.extend(stats.service.ms)
        status.queue_ms_quantiles.extend(stats.queue.ms)
    status.answered, status.failed = answered_and_failed(replica.tally)
    status.bytes_in, status.bytes_out = replica.tally.bytes_in, replica.tally.bytes_out
    status.inferences_per_second, status.in_flight = stats.inferences_per_second, stats.in_flight
    status.cold, status.load_ms, status.waiting = not replica.active, replica.load_s * 1000, replica.waiting
    if replica.unloaded and status.state == pb.REPLICA_STATE_READY:
        status.state, status.detail = pb.REPLICA_STATE_UNLOADED, "unloaded by an operator"
    elif not replica.ready and status.state == pb.REPLICA_STATE_READY:
        status.state, status.detail = pb.REPLICA_STATE_FAILED, replica.fault or "an engine call hangs"
