"""A version in memory: its engine, and what leads requests to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nearmesh.errors import NotReady, Overloaded
from nearmesh_agent.engines.base import Array, Engine
from nearmesh_agent.serving.loading import free
from nearmesh_agent.serving.scheduler import Scheduler
from nearmesh_agent.serving.streams import Streams

# Before every other request's: a probe waits for running calls alone, so that it tells of the engine, not of the queue.
_PROBE_PRIORITY = 0


class Description(NamedTuple):
    """What an engine says of itself; empty before there was one."""

    name: str = ""
    variant: str = ""
    providers: tuple[str, ...] = ()
    instances: int = 0
    variant_why: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Belongs to one event loop."""

    engine: Engine
    scheduler: Scheduler
    streams: Streams

    @property
    def description(self) -> Description:
        engine = self.engine
        why = str(getattr(engine, "variant_why", ""))
        return Description(engine.name, engine.variant, engine.providers, engine.instances, why)

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self.scheduler.in_flight + len(self.streams)

    @property
    def copies(self) -> int:
        """How many times the weights are in memory."""
        return int(getattr(self.engine, "sessions", 1))

    def longest_running_s(self) -> float:
        """How long the oldest engine call that has not come back has taken."""
        return max(self.scheduler.longest_running_s(), self.streams.longest_running_s())

    def hangs(self) -> bool:
        """A call has not come back."""
        return self.scheduler.busy_share() > 0 or len(self.streams) > 0

    async def probe(self, inputs: Mapping[str, Array]) -> bool:
        """One call that goes the way of all others; False if it did not get that far. Raises what the engine raises."""
        try:
            await self.scheduler.run(inputs, priority=_PROBE_PRIORITY)
        except (Overloaded, NotReady):
            return False
        return True

    async def end(self, timeout_s: float, *, give_up: bool = False) -> bool:
        """Answers what it has accepted and gives back the memory; False if a call did not end in time.

        Freeing what a thread is still using would crash the process, so then all stays.
        """
        ends = (part.close(timeout_s, give_up=give_up) for part in (self.scheduler, self.streams))
        if not all(await asyncio.gather(*ends)):
            return False
        await asyncio.to_thread(free, self.engine)
        return True

    async def end_late(self) -> None:
        """After `end` returned False, once the call has come back."""
        await asyncio.to_thread(free, self.engine)
