"""Makes the node serve what is wanted: pulls, proves and swaps versions, and tries one out beside the standing one.

A new version is loaded and proven beside the old one and takes over in one step; the old one answers those who name it
for a while, what it has accepted, and its sequences until they are over, and goes. A version that fails never serves,
and the old one stays, or comes back after a restart. A version on trial is loaded as well, and becomes the standing one
without being loaded again; one that ended the process is not tried a second time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nearmesh.errors import DigestMismatch, MeshError, NotFound, NotReady, SignatureError, StorageFull, Unreachable
from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.session import crashes
from nearmesh_agent.session.crashes import Crashes
from nearmesh_agent.session.outgoing import Outgoing
from nearmesh_agent.session.progress import Progress
from nearmesh_agent.session.remembered import Remembered

log = logging.getLogger(__name__)

# A version that could not be had is tried again, less and less often; one that proved wrong is not.
RETRY_S = (1.0, 60.0)
_FAILED = pb.REPLICA_STATE_FAILED


class Source(Protocol):
    """Where a version's files come from."""

    async def __call__(self, model: str, digest: str, registry_url: str) -> Path:
        """The version's folder on this node. Raises MeshError."""
        ...


class Load(Protocol):
    """Brings a version into memory."""

    async def __call__(self, folder: Path, digest: str, *, on_trial: bool = False) -> Replica:
        """Proven; one `on_trial` pushes nothing out that is in use. Raises MeshError."""
        ...


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
        pulled: Callable[[str], tuple[int, int]] = lambda digest: (0, 0),
    ) -> None:
        """`tidy` runs after a version began to serve: what is not `needed` may leave the disk. `pulled` tells how many
        bytes a version has that is being pulled, and how many of them are here.

        For `drain_s` after a swap the old version answers requests that name it.
        """
        self._table = table
        self._source = source
        self._load = load
        self._tidy = tidy
        self._pulled = pulled
        self._remembered = Remembered(keep)
        self._crashes = Crashes(keep.with_name("crashes.json"))
        self._progress = Progress(on_progress)
        self._outgoing = Outgoing(table, self._progress, drain_s=drain_s)
        # By digest, what is wanted, and what is on its way to it.
        self._wishes = _by_digest(self.wanted.versions)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._models: set[str] = set()
        self._tidying: set[asyncio.Task[None]] = set()
        # Standing versions that are new here, until they are proven.
        self._new: dict[str, asyncio.TimerHandle] = {}
        # Loading takes all cores for a moment; one at a time leaves some for serving. One that is to be tried may hang
        # at it, and nothing else is to wait for it.
        self._one_at_a_time = {on_trial: asyncio.Lock() for on_trial in (False, True)}

    @property
    def wanted(self) -> pb.WantedState:
        """What the control plane said last, also before the last restart."""
        return self._remembered.wanted

    @property
    def restored(self) -> bool:
        """Something was wanted before the restart."""
        return self._remembered.restored

    def want(self, state: pb.WantedState) -> None:
        """Takes over a wanted state and writes it to disk, so that a restart needs no control plane."""
        before, self._wishes = self._wishes, _by_digest(state.versions)
        self._remembered.want(state)
        self._crashes.asked(state.versions, self.needed())
        for digest, wish in self._wishes.items():
            failed = self._progress.state(digest) == _FAILED and self._table.by_digest(digest) is None
            if failed and digest in before and _asked_anew(before[digest], wish):
                self._stop(digest)
                self._progress.drop(digest)
        self._start()
        for version in self._wishes.values():
            replica = self._table.by_digest(version.digest)
            if replica and self._table.serving(replica):
                self._remembered.serves(version)

    def needed(self) -> set[str]:
        """Digests of the versions that have to stay on this node's disk."""
        # What is out of memory at the moment comes back from the disk.
        return self._remembered.digests() | self._tasks.keys() | {replica.digest for replica in self._table}

    def resume(self) -> None:
        """Works towards what was wanted before the restart."""
        if self.restored:
            log.info("serving from the local store until the control plane speaks")
            self._start()

    def statuses(self) -> list[pb.ReplicaStatus]:
        """Every version that this node has, or is working on."""
        found = []
        for digest in self._progress:
            replica = self._table.by_digest(digest)
            on_trial = replica.on_trial if replica else _on_trial(self._wishes.get(digest))
            status = self._progress.status(digest, replica, on_trial=on_trial)
            if status.state == pb.REPLICA_STATE_PULLING:
                status.pull_bytes, status.pulled_bytes = self._pulled(digest)
            found.append(status)
        return found

    def ending(self) -> None:
        """The process is about to end in order; what happens to it now is no version's fault."""
        self._crashes.end()

    async def close(self) -> None:
        """Stops working and closes every replica, without waiting for sequences. Safe to repeat."""
        self.ending()
        for timer in self._new.values():
            timer.cancel()
        replicas = list(self._table)
        tasks = [*self._tasks.values(), *self._tidying]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        replicas += await self._outgoing.end()
        await asyncio.gather(*(replica.close() for replica in replicas))
        self.ending()

    # What has to be begun, and what has to go.

    def _start(self) -> None:
        for digest in [digest for digest, task in self._tasks.items() if task.done() or digest not in self._wishes]:
            self._stop(digest)
        models = {wish.model for wish in self._wishes.values() if not _on_trial(wish)}
        for digest in [digest for digest in self._progress if digest not in self._wishes]:
            replica = self._table.by_digest(digest)
            # While its successor is on the way, the old version serves; nobody waits for one on trial.
            if self._progress.model(digest) not in models or replica is None or replica.on_trial:
                self._let_go(digest)
        for wish in self._wishes.values():
            if wish.digest not in self._tasks and not self._settled(wish):
                task = asyncio.create_task(self._bring(wish.digest), name=f"bring {wish.model}")
                self._tasks[wish.digest] = task
                task.add_done_callback(partial(self._brought, wish))
        for model in self._models - models:
            self._table.forget(model)
        self._models = models

    def _stop(self, digest: str) -> None:
        task = self._tasks.pop(digest, None)
        if task:
            task.cancel()

    def _settled(self, wish: pb.WantedVersion) -> bool:
        """Nothing left to do for now: it serves, has proven wrong, or waits for the version that it is to be beside."""
        replica, standing = self._table.by_digest(wish.digest), self._table.standing(wish.model)
        if not _on_trial(wish):
            return replica is standing if replica else self._progress.state(wish.digest) == _FAILED
        if standing is None or standing is replica:
            if replica is None and self._progress.state(wish.digest) is None:
                self._set(wish, pb.REPLICA_STATE_PULLING, "waits until the standing version serves")
            return True
        if replica is None:
            return self._progress.state(wish.digest) == _FAILED
        self._try_out(wish, replica)
        return True

    def _let_go(self, digest: str) -> None:
        self._crashes.over(digest)
        self._forget_timer(digest)
        self._outgoing.let_go(digest)

    # One version's way.

    async def _bring(self, digest: str) -> None:
        if why := self._crashes.against(self._wishes[digest]):
            log.error("version not tried digest=%s: %s", digest, why)
            await self._failed(digest, why, crashed=True)
            return
        wait_s = RETRY_S[0]
        while True:
            try:
                await self._bring_once(digest)
                return
            except (MeshError, OSError) as error:
                why = _why(error)
                log.warning("version failed model=%s digest=%s: %s", self._wishes[digest].model, digest, why)
                await self._failed(digest, why)
                if not _worth_another_try(error):
                    return
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, RETRY_S[1])

    def _brought(self, wish: pb.WantedVersion, task: asyncio.Task[None]) -> None:
        """A bug must not look like a load that never ends."""
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        log.error("bug while bringing model=%s digest=%s", wish.model, wish.digest, exc_info=error)
        if self._tasks.get(wish.digest) is task:
            self._set(wish, _FAILED, "internal error; the node's log has the cause")

    async def _bring_once(self, digest: str) -> None:
        replica = self._table.by_digest(digest) or await self._get(self._wishes[digest])
        # It may have become the standing one, or no longer be that, while it was loaded.
        wish = self._wishes[digest]
        if _on_trial(wish):
            self._try_out(wish, replica)
        else:
            self._stand(wish, replica)
        if self._tidy:
            _own(self._tidying, self._tidy(), "tidy")

    def _try_out(self, wish: pb.WantedVersion, replica: Replica) -> None:
        self._outgoing.keep(wish.digest)
        if not replica.on_trial or self._progress.state(wish.digest) != pb.REPLICA_STATE_READY:
            self._forget_timer(wish.digest)
            self._crashes.begin(wish, crashes.ON_TRIAL, crashes.ONE)
            log.info("on trial model=%s version=%s digest=%s", wish.model, wish.version, wish.digest)
        self._table.try_out(replica, wish.trial)
        if self._progress.state(wish.digest) != pb.REPLICA_STATE_READY:
            self._set(wish, pb.REPLICA_STATE_READY)

    def _stand(self, wish: pb.WantedVersion, replica: Replica) -> None:
        self._outgoing.keep(wish.digest)
        self._table.forget(wish.model)
        self._table.put(replica)
        self._set(wish, pb.REPLICA_STATE_READY)
        self._watch(wish)
        if wish.digest in self._wishes:
            self._remembered.serves(wish)
        log.info("serving model=%s version=%s digest=%s", wish.model, wish.version, wish.digest)
        for digest in self._progress.of_model(wish.model):
            if digest != wish.digest and digest not in self._wishes:
                self._forget_timer(digest)
                self._crashes.over(digest)
                self._outgoing.take_out(digest)
        # What is to be on trial beside it has waited for this.
        self._start()

    async def _failed(self, digest: str, why: str, *, crashed: bool = False) -> None:
        wish = self._wishes[digest]
        self._set(wish, _FAILED, why)
        if not _on_trial(wish):
            await self._fall_back(wish, crashed=crashed)

    async def _fall_back(self, failed: pb.WantedVersion, *, crashed: bool) -> None:
        """Brings back what served before a restart, if nothing serves the model now.

        In place of one that `crashed`, the one before it.
        """
        served = self._remembered.served(failed.model)
        if crashed:
            served = [last for last in served if last.digest != failed.digest and not self._crashes.against(last)]
        if not served or served[0].digest == failed.digest or self._table.standing(failed.model):
            return
        last = served[0]
        try:
            replica = await self._get(last)
        except (MeshError, OSError) as error:
            log.warning("the last version failed too model=%s digest=%s: %s", last.model, last.digest, _why(error))
            # A change of mind meanwhile may have taken it away already.
            self._progress.drop(last.digest)
            return
        self._stand(last, replica)
        log.info("serving the last version again model=%s digest=%s", last.model, last.digest)

    async def _get(self, version: pb.WantedVersion) -> Replica:
        on_trial = _on_trial(version)
        if not on_trial:
            self._table.expect(version.model, "being loaded")
        self._set(version, pb.REPLICA_STATE_PULLING)
        folder = await self._source(version.model, version.digest, self.wanted.registry_url)
        async with self._one_at_a_time[on_trial]:
            self._set(version, pb.REPLICA_STATE_LOADING)
            self._crashes.begin(version, crashes.LOADING, self._bound(version))
            try:
                return await self._load(folder, version.digest, on_trial=on_trial)
            except BaseException:
                self._crashes.over(version.digest)
                raise

    # Crashes.

    def _bound(self, version: pb.WantedVersion) -> int:
        """Ends of the process while it is loaded that are held against it."""
        served = {last.digest for last in self._remembered.served(version.model)}
        if not served - {version.digest} and not _on_trial(version):
            return crashes.MANY
        return crashes.SEVERAL if version.digest in served and not _on_trial(version) else crashes.ONE

    def _watch(self, version: pb.WantedVersion) -> None:
        """It stands from now on; where another one could stand in for it, it has to prove itself first."""
        others = {last.digest for last in self._remembered.served(version.model)} - {version.digest}
        if self._crashes.proven(version.digest) or not others:
            self._crashes.prove(version.digest)
            return
        self._crashes.begin(version, crashes.NEW_HERE, crashes.SEVERAL)
        self._forget_timer(version.digest)
        loop = asyncio.get_running_loop()
        self._new[version.digest] = loop.call_later(crashes.NEW_FOR_S, self._proved, version.digest)

    def _proved(self, digest: str) -> None:
        del self._new[digest]
        self._crashes.prove(digest)

    def _forget_timer(self, digest: str) -> None:
        timer = self._new.pop(digest, None)
        if timer:
            timer.cancel()

    def _set(self, version: pb.WantedVersion, state: pb.ReplicaState, detail: str = "") -> None:
        self._progress.set(version.digest, version.model, state, detail)


def _on_trial(wish: pb.WantedVersion | None) -> bool:
    return wish is not None and wish.HasField("trial")


def _asked_anew(before: pb.WantedVersion, wish: pb.WantedVersion) -> bool:
    """Another rollout asks for it; or it is to stand, for which room is made where none was for a trial."""
    return crashes.anew(before.rollout, wish.rollout) or (_on_trial(before) and not _on_trial(wish))


def _by_digest(versions: Iterable[pb.WantedVersion]) -> dict[str, pb.WantedVersion]:
    """Of a model one version stands, and one at most is on trial; what is said to be both stands."""
    standing = {version.digest: version for version in versions if not _on_trial(version)}
    trials = {version.model: version for version in versions if _on_trial(version)}
    # Those that stand come first: they are what a node that starts needs most.
    return standing | {trial.digest: trial for trial in trials.values() if trial.digest not in standing}


def _own(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None], name: str) -> None:
    """Starts a task that `tasks` holds until it is over."""
    task = asyncio.create_task(work, name=name)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _why(error: MeshError | OSError) -> str:
    return f"{error.reason}: {error.message}" if isinstance(error, MeshError) else f"STORAGE: {error}"


def _worth_another_try(error: MeshError | OSError) -> bool:
    """Bytes that were wrong, missing or not signed yet may come right with another download, a full disk or memory may
    be emptied; a version that proved wrong stays so."""
    return isinstance(
        error, OSError | Unreachable | DigestMismatch | SignatureError | StorageFull | NotFound | NotReady
    )
