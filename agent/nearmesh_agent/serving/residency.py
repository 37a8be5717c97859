"""Which of this node's versions are in memory: those in use, then those used last, as far as the budget goes.

A version that is not in memory is *cold*. A request loads it; what was used longest ago makes room. Loads come one at
a time and in the order in which they were asked for, so that none waits for ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nearmesh.errors import ConfigError, EngineFailure, MeshError, NotReady
from nearmesh_agent.serving.memory import MIB
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.scheduler import Clock

log = logging.getLogger(__name__)

# How often versions are looked at that nobody asks for.
LOOK_EVERY_S = 1.0
# A load waits this long for a version that happens to be between two requests. After that the least recently used one
# takes no new requests until it is out: under steady traffic on all others, a model would never get its turn.
PATIENCE_S = 0.5
# A load gives up when it has found no room for so long, since sequences hold what is in memory.
ROOM_S = 10.0
# A load that takes longer hangs and must not keep all others out; some providers build engines for minutes.
HANGS_AFTER_S = 600.0
_HANGS = f"the load did not end within {HANGS_AFTER_S:.0f} s"
# While all memory is in use there is no event to wait for that would not cost every request something.
_LOOK_AGAIN_S = 0.02


class Residency:
    """Of one node's replicas; belongs to one event loop. `run` is its own task, all else works without it."""

    def __init__(self, budget_bytes: int, *, idle_unload_s: float = 0.0, clock: Clock = time.monotonic) -> None:
        """`idle_unload_s` of 0: a version that nobody asks for stays until another needs its memory."""
        self.budget_bytes = budget_bytes
        self._idle_unload_s = idle_unload_s
        # By digest, what the mesh says instead of that.
        self.idle_rules: Mapping[str, float] = {}
        self._clock = clock
        self._replicas: list[Replica] = []
        # Models that an operator took out of memory, versions to come included.
        self._out: set[str] = set()
        # Loads that are under way or wait for their turn, the oldest first; all who need one share it.
        self._loads: dict[Replica, asyncio.Task[None]] = {}
        # When the load began that is under way.
        self._began_s = 0.0
        self._turn = asyncio.Lock()
        # Bytes that versions will take which are loaded beside everything else.
        self._set_aside: dict[Replica, int] = {}

    async def bring(self, replica: Replica, folder: Path) -> None:
        """Makes room for a new version, proves it, and takes charge of it.

        Raises as `Replica.load`, ConfigError for what is larger than the budget, NotReady while there is no room. One
        on trial pushes nothing out that is in use, nor the version that it is beside: ConfigError if there is no room.
        """
        beside = replica.on_trial
        async with self._turn:
            await self._make_room(replica)
            if beside:
                self._set_aside[replica] = replica.footprint.needed_bytes
            else:
                await self._prove(replica, folder)
        if beside:
            # A version that is being tried may hang here already; no other load is to wait for it.
            try:
                await self._prove(replica, folder)
            finally:
                del self._set_aside[replica]
        try:
            # What it measured may be more than was estimated.
            await self._shrink(keep=replica)
            if replica.on_trial and self.used_bytes > self.budget_bytes:
                raise self._no_room_beside(replica, 0)
            if replica.name in self._out:
                await self._put_out(replica)
        except BaseException:
            # Whoever asked for it has changed their mind; nobody else would close it.
            await replica.close()
            raise

    async def _prove(self, replica: Replica, folder: Path) -> None:
        try:
            async with asyncio.timeout(HANGS_AFTER_S):
                await replica.activate(folder)
            self._check_fits(replica, replica.footprint.loaded_bytes)
        except TimeoutError:
            raise EngineFailure(_HANGS) from None
        except ConfigError:
            await replica.close()
            raise
        replica.wake = self._wake
        self._replicas.append(replica)

    async def load(self, replica: Replica) -> None:
        """In memory once this returns, and allowed to be. Raises NotReady, or what the load raises."""
        replica.unloaded = False
        self._out.discard(replica.name)
        if not replica.active:
            await asyncio.shield(self._loading(replica))

    async def unload(self, replica: Replica) -> None:
        """Takes it out of memory, once it has answered what it has accepted; `load` alone lets it back."""
        self._out.add(replica.name)
        await self._put_out(replica)

    @property
    def used_bytes(self) -> int:
        """What all versions in memory take, and what is set aside for those on their way."""
        return sum(replica.held_bytes for replica in self._here()) + sum(self._set_aside.values())

    async def run(self) -> None:
        """Takes idle versions out of memory, and frees what could not be freed before, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.unload_idle()
            for replica in self._here():
                await replica.endings.tidy()

    async def unload_idle(self) -> None:
        """Those that nobody has asked for as long as the mesh's rule for them says, or else the node's own."""
        for replica in self._here():
            # One on trial has to show what it can do, and gets few requests.
            if not replica.active or replica.in_use or replica.on_trial:
                continue
            limit_s = self.idle_rules.get(replica.digest, self._idle_unload_s)
            if limit_s and replica.idle_s >= limit_s:
                await self._evict(replica)

    async def close(self) -> None:
        """Ends what loads. Safe to repeat."""
        loads = list(self._loads.values())
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    # A request for a cold version.

    async def _wake(self, replica: Replica, timeout_s: float | None) -> None:
        """A request with too little time is told so at once; the load that it began is there for the next one."""
        task = self._loading(replica)
        expected_s = self._expected_s(replica)
        if timeout_s is not None and timeout_s < expected_s:
            raise NotReady(
                f"{replica.name!r} is being brought back into this node's memory, which takes about "
                f"{expected_s * 1000:.0f} ms; the request has {timeout_s * 1000:.0f} ms left",
                retry_after_ms=max(1, round(expected_s * 1000)),
            )
        # A caller who leaves takes nobody else's load along.
        await asyncio.shield(task)

    def _expected_s(self, replica: Replica) -> float:
        """Until it is loaded, after those whose turn is before."""
        total = 0.0
        for loading in self._loads:
            total += loading.load_s
            if loading is replica:
                break
        elapsed_s = self._clock() - self._began_s if self._began_s else 0.0
        return max(0.0, total - elapsed_s)

    def _loading(self, replica: Replica) -> asyncio.Task[None]:
        task = self._loads.get(replica)
        if task is None:
            task = self._loads[replica] = asyncio.create_task(self._load(replica), name=f"load {replica.name}")
            task.add_done_callback(partial(self._loaded, replica))
        return task

    def _loaded(self, replica: Replica, task: asyncio.Task[None]) -> None:
        del self._loads[replica]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.warning("could not be loaded model=%s version=%s: %s", replica.name, replica.version, error)

    async def _load(self, replica: Replica) -> None:
        async with self._turn:
            self._began_s = self._clock()
            try:
                if not (replica.active or replica.closed or replica.unloaded):
                    await self._make_room(replica)
                    await self._activate(replica)
            finally:
                self._began_s = 0.0

    async def _activate(self, replica: Replica) -> None:
        """Raises NotReady to all who wait; whoever heals the replica tries again, less and less often."""
        try:
            async with asyncio.timeout(HANGS_AFTER_S):
                await replica.activate()
        except TimeoutError:
            error: MeshError | OSError = EngineFailure(_HANGS)
        except NotReady:
            raise
        except (MeshError, OSError) as caught:
            error = caught
        else:
            return
        replica.fault = f"it could not be loaded: {error}"
        raise NotReady(f"{replica.name!r} is not ready on this node: {replica.fault}; another node may serve it")

    # Room.

    async def _make_room(self, incoming: Replica) -> None:
        """Raises ConfigError when there never will be, NotReady when there is none for `ROOM_S`. The turn is held."""
        needed = incoming.footprint.needed_bytes
        self._check_fits(incoming, needed)
        started_s = self._clock()
        while self.used_bytes + needed > self.budget_bytes:
            waited_s = self._clock() - started_s
            victim = self._victim(incoming, busy=waited_s >= PATIENCE_S)
            if victim:
                await self._evict(victim)
            elif incoming.on_trial and waited_s >= PATIENCE_S:
                raise self._no_room_beside(incoming, needed)
            elif waited_s >= ROOM_S:
                raise NotReady(
                    f"there is no room for {incoming.name!r} on this node: all {self.budget_bytes / MIB:.0f} MiB of "
                    "`memory_budget_mib` are in use; another node may serve it",
                    retry_after_ms=1000,
                )
            else:
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _victim(self, incoming: Replica, *, busy: bool) -> Replica | None:
        """The one used longest ago; of the same model only if there is no other, since a swap needs both versions.

        `busy` allows one that answers requests, but never one that sequences began with or that was loaded for requests
        which have not had their turn. For one on trial nothing leaves that is in use, nor what it is beside.
        """
        busy = busy and not incoming.on_trial
        found = [
            replica
            for replica in self._here()
            if replica.active
            and replica is not incoming
            and not (replica.held if busy else replica.in_use)
            and not (incoming.on_trial and replica.name == incoming.name)
        ]
        return min(found, key=lambda r: (r.name == incoming.name, r.last_used_s), default=None)

    async def _shrink(self, *, keep: Replica) -> None:
        while self.used_bytes > self.budget_bytes and (victim := self._victim(keep, busy=False)):
            await self._evict(victim)

    async def _evict(self, replica: Replica) -> None:
        replica.tally.evictions += 1
        await replica.deactivate()

    async def _put_out(self, replica: Replica) -> None:
        replica.unloaded = True
        async with self._turn:
            # An operator may have changed their mind meanwhile.
            if replica.unloaded:
                await replica.deactivate()

    def _check_fits(self, replica: Replica, needed_bytes: int) -> None:
        if needed_bytes > self.budget_bytes:
            raise ConfigError(
                f"{replica.name!r} version {replica.version} needs about {needed_bytes / MIB:.1f} MiB of memory, this "
                f"node gives its models {self.budget_bytes / MIB:.1f} MiB: raise `memory_budget_mib` in node.toml, or "
                "publish a smaller variant (`memory_bytes` in model.toml says what it really takes)"
            )

    def _no_room_beside(self, replica: Replica, needed_bytes: int) -> ConfigError:
        return ConfigError(
            f"{replica.name!r} version {replica.version} does not fit beside the standing version: it needs about "
            f"{(needed_bytes or replica.held_bytes) / MIB:.1f} MiB, and of the {self.budget_bytes / MIB:.1f} MiB that "
            f"this node gives its models {(self.used_bytes - replica.held_bytes) / MIB:.1f} MiB are in use; raise "
            "`memory_budget_mib` in node.toml, or let it take over without a trial"
        )

    def _here(self) -> list[Replica]:
        """Forgets what was closed meanwhile."""
        self._replicas = [replica for replica in self._replicas if not replica.closed or replica.endings.hanging]
        return self._replicas
