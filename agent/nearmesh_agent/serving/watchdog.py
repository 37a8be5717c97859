"""Finds engines that hang or fail although nobody asks, says so within five seconds, and has them loaded anew.

A replica that has given no answer for three seconds is asked by a probe, through the queue that all requests go
through. That is one call of the smallest size in three seconds of silence, which is what the five seconds cost; a
replica that answers requests is never probed, nor is one that is out of memory.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from nearmesh.errors import MeshError, NotReady
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.scheduler import Clock

log = logging.getLogger(__name__)

# Silence, and the wait for a probe (`ReplicaConfig.probe_s`), are 4.5 s together; this is how much later either shows.
LOOK_EVERY_S = 0.2
SILENCE_S = 3.0
# Waits between attempts to heal grow from the first to the second, each shortened by up to half.
BACKOFF_S = (1.0, 60.0)
# So long without a fault, and the next one is healed without waiting.
FORGIVEN_AFTER_S = 60.0
# Engines of one replica that may hang at a time: each keeps its memory and a thread for as long as it does.
MOST_HANGING = 3


@dataclass(slots=True)
class _Watched:
    """What the watchdog knows of one replica."""

    probe: asyncio.Task[None] | None = None
    healing: asyncio.Task[None] | None = None
    # When a probe or an attempt to heal last went well.
    proved_s: float = 0.0
    wait_s: float = 0.0
    was_ready: bool = True


class Watchdog:
    """Of one node's replicas; belongs to one event loop."""

    def __init__(
        self,
        replicas: Iterable[Replica],
        load: Callable[[Replica], Awaitable[None]],
        *,
        on_change: Callable[[], None] = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`replicas` is iterated anew at each look; `on_change` hears at once when one becomes ready or ceases to be.

        `load` brings a replica back into memory and clears its fault, or raises MeshError.
        """
        self._replicas = replicas
        self._load = load
        self._on_change = on_change
        self._clock = clock
        self._watched: dict[Replica, _Watched] = {}

    async def run(self) -> None:
        """For ever; what it began ends with it."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            tasks = [task for seen in self._watched.values() for task in (seen.probe, seen.healing) if task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """One round: gives up what hangs, asks what is silent, begins to heal what is at fault."""
        here = list(self._replicas)
        self._watched = {replica: self._watched.get(replica) or _Watched() for replica in here}
        for replica, seen in self._watched.items():
            if replica.stalled():
                await self._give_up(replica, f"an engine call has not come back for {replica.running_s:.1f} s")
            # One on trial has shown what it does; loading it again would hold up the standing version's loads.
            if replica.fault and not seen.healing and not replica.on_trial:
                seen.healing = asyncio.create_task(self._heal(replica, seen), name=f"heal {replica.name}")
            elif self._due(replica, seen):
                seen.probe = asyncio.create_task(self._probe(replica, seen), name=f"probe {replica.name}")
        self._tell()

    def _tell(self) -> None:
        changed = False
        for replica, seen in self._watched.items():
            changed |= replica.ready != seen.was_ready
            seen.was_ready = replica.ready
        if changed:
            self._on_change()

    async def _give_up(self, replica: Replica, why: str) -> None:
        await replica.give_up(why)
        self._tell()

    # Asking.

    def _due(self, replica: Replica, seen: _Watched) -> bool:
        if not replica.active or not replica.probe or seen.probe:
            return False
        if replica.suspect:
            return True
        # A call that is under way will tell by itself whether it comes back.
        silent_s = self._clock() - max(replica.last_used_s, seen.proved_s)
        return silent_s >= SILENCE_S and not replica.busy_share

    async def _probe(self, replica: Replica, seen: _Watched) -> None:
        try:
            if await replica.ask():
                seen.proved_s = self._clock()
        except TimeoutError:
            # Behind requests that take their time it proves nothing; a call of theirs that hangs shows by itself.
            if replica.in_flight <= 1:
                await self._give_up(replica, "a probe has not come back")
        except NotReady as error:
            # Something that its calls need beside the engine, such as a collection, is not here at the moment.
            log.debug("a probe had no answer model=%s: %s", replica.name, error.message)
            seen.proved_s = self._clock()
        except MeshError as error:
            await self._give_up(replica, f"a probe failed: {error.message}")
        finally:
            seen.probe = None

    # Healing.

    async def _heal(self, replica: Replica, seen: _Watched) -> None:
        if self._clock() - seen.proved_s > FORGIVEN_AFTER_S:
            seen.wait_s = 0.0
        try:
            while replica.fault and not (replica.closed or replica.unloaded):
                await asyncio.sleep(seen.wait_s * random.uniform(0.5, 1.0))
                seen.wait_s = min(max(BACKOFF_S[0], 2 * seen.wait_s), BACKOFF_S[1])
                # An operator may have taken it out of memory meanwhile, which healing must not undo.
                if not (replica.closed or replica.unloaded):
                    await self._heal_once(replica)
            seen.proved_s = self._clock()
        finally:
            seen.healing = None
        self._tell()

    async def _heal_once(self, replica: Replica) -> None:
        if replica.endings.hanging >= MOST_HANGING:
            log.error("not loaded again model=%s: %s engines of it hang already", replica.name, replica.endings.hanging)
            return
        try:
            await self._load(replica)
        except MeshError as error:
            log.warning("not healed model=%s version=%s: %s", replica.name, replica.version, error.message)
        else:
            log.info("healed model=%s version=%s", replica.name, replica.version)
