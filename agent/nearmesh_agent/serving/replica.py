"""A model version loaded on this node: proven by its warm-up, measured while it serves, closed without loss."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nearmesh import package as packages
from nearmesh.errors import ConfigError, EngineFailure, InvalidInput, WarmupFailed
from nearmesh.package import Package
from nearmesh.quantiles import Window, quantile
from nearmesh_agent.engines.base import Array, Engine, EngineFactory
from nearmesh_agent.serving import warmup
from nearmesh_agent.serving.holds import Holds
from nearmesh_agent.serving.lanes import Answer, Clock, Lanes
from nearmesh_agent.serving.tally import Tally

log = logging.getLogger(__name__)

# A first engine call allocates and plans; what the node can do shows in those after it. Few and short, since nothing
# serves meanwhile.
_TIMED_CALLS, _TIMED_S = 5, 1.0
# How long a measurement speaks for a replica.
MEASURED_FOR_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """How one replica takes requests."""

    # Requests that may wait for an instance. More absorbs longer bursts; each adds its engine time to the last one's.
    queue: int = 64
    # An engine call that takes longer than this, and than ten times the usual one, makes the replica not ready.
    stall_s: float = 4.0
    # How long an unloaded version may go on answering what it had accepted.
    close_s: float = 10.0
    # How long an unloaded version may go on for the sequences that began with it, if they are never silent for the
    # package's `idle_s`. More spares long calls; meanwhile two versions share the node's memory.
    sequences_s: float = 600.0

    def __post_init__(self) -> None:
        if self.queue < 0 or self.stall_s <= 0 or self.close_s < 0 or self.sequences_s < 0:
            raise ConfigError("`queue`, `close_s` and `sequences_s` are 0 or more, `stall_s` is above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """What a replica says about itself; zeros before anything was measured."""

    service_ms_p50: float
    service_ms_p95: float
    inferences_per_second: float
    in_flight: int


class Replica:
    """One version, ready to serve. Belongs to one event loop; `load` is the way to get one."""

    def __init__(
        self, package: Package, digest: str, engine: Engine, *, config: ReplicaConfig, clock: Clock = time.monotonic
    ) -> None:
        self.package = package
        self.digest = digest
        self.engine = engine
        self.tally = Tally()
        # Sequences that began with this version; `sequences_over` waits for them.
        self.holds = Holds(clock)
        self._config = config
        self._clock = clock
        self._lanes = Lanes(
            engine,
            instances=package.instances or os.cpu_count() or 1,
            queue=config.queue,
            clock=clock,
            name=f"{package.name}-{package.version}",
        )
        # The latest of each. What a busy minute left is forgotten: a node that was slow once must get another chance,
        # and without traffic nothing else would tell that it is fast again.
        self._service_ms = Window(size=256, max_age_s=MEASURED_FOR_S)
        self._compute_s = Window(size=256, max_age_s=MEASURED_FOR_S)
        # What the warm-up measured, in seconds; it speaks while nothing newer does.
        self._proven_s: list[float] = []

    @classmethod
    async def load(
        cls,
        folder: Path,
        digest: str,
        *,
        engine_factory: EngineFactory,
        package: Package | None = None,
        config: ReplicaConfig | None = None,
        clock: Clock = time.monotonic,
        executor: Executor | None = None,
    ) -> Replica:
        """Loads the version in `folder` and proves it: every warm-up input gives its expected outputs.

        `executor` runs it, asyncio's own if None; a process cannot end before that one's threads have.
        Raises PackageError, ConfigError or EngineFailure when it cannot be loaded, WarmupFailed when it is wrong.
        """
        work = partial(cls._load, folder, digest, engine_factory, package, config or ReplicaConfig(), clock)
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    @classmethod
    def _load(
        cls,
        folder: Path,
        digest: str,
        engine_factory: EngineFactory,
        package: Package | None,
        config: ReplicaConfig,
        clock: Clock,
    ) -> Replica:
        package = package or packages.load(folder)
        engine = engine_factory(folder, package)
        try:
            replica = cls(package, digest, engine, config=config, clock=clock)
            replica._prove(folder)
        except BaseException:
            engine.close()
            raise
        log.info("loaded model=%s version=%s variant=%s", package.name, package.version, engine.variant)
        return replica

    def _prove(self, folder: Path) -> None:
        until = self._clock() + _TIMED_S
        for case, given, expected in warmup.cases(folder, self.package):
            try:
                warmup.check(case, self.engine.infer(given), expected)
            except (EngineFailure, InvalidInput) as error:
                raise WarmupFailed(f"{case.file}: {error.message}") from None
            for _ in range(_TIMED_CALLS):
                if self._clock() >= until:
                    break
                self._time_one(given)

    def _time_one(self, given: Mapping[str, Array]) -> None:
        started = self._clock()
        self.engine.infer(given)
        self._proven_s.append(self._clock() - started)

    @property
    def name(self) -> str:
        return self.package.name

    @property
    def version(self) -> str:
        return self.package.version

    @property
    def instances(self) -> int:
        """Engine calls at a time."""
        return self._lanes.instances

    async def infer(self, inputs: Mapping[str, Array], *, timeout_s: float | None = None) -> Answer:
        """Every output for checked `inputs`. Raises Overloaded, DeadlineExceeded, NotReady, or the engine's error."""
        typical_s = self._compute_quantile(0.5)
        answer = await self._lanes.run(inputs, timeout_s=timeout_s, typical_ms=(typical_s or 0.001) * 1000)
        self._compute_s.add(answer.compute_ms / 1000, now_s=self._clock())
        return answer

    def served(self, service_ms: float) -> None:
        """Takes note of a request's whole time on the node, from bytes in to bytes out."""
        self._service_ms.add(service_ms, now_s=self._clock())

    def too_late(self, service_ms: float) -> None:
        """Takes note of a request that its deadline ended after so long.

        It would have taken longer still. A caller with hardly any time ends sooner than answers do, and proves nothing.
        """
        if service_ms >= self.stats().service_ms_p50:
            self.served(service_ms)

    @property
    def closed(self) -> bool:
        """It takes nothing more, from sequences neither."""
        return self._lanes.closed

    @property
    def ready(self) -> bool:
        """False while an engine call hangs."""
        running_s = self._lanes.longest_running_s()
        if running_s <= self._config.stall_s:
            return True
        usual_s = self._compute_quantile(0.5)
        return usual_s is not None and running_s <= 10 * usual_s

    def stats(self) -> ReplicaStats:
        # The warm-up's few calls have no 95th percentile: one that the machine held up would be it, for ever, since a
        # node that looks slow gets no requests that could prove otherwise. The fastest is what it can do; requests will
        # soon tell what it does.
        proven_ms = min(self._proven_s, default=0.0) * 1000
        service = self._service_ms.quantiles(0.5, 0.95, now_s=self._clock()) or (proven_ms, proven_ms)
        fastest_s = self._compute_quantile(0.1)
        return ReplicaStats(
            service_ms_p50=service[0],
            service_ms_p95=service[1],
            # The fastest tenth is what the machine can do when nothing else holds it up.
            inferences_per_second=self.instances / fastest_s if fastest_s else 0.0,
            in_flight=self._lanes.in_flight,
        )

    def _compute_quantile(self, q: float) -> float | None:
        """Seconds of an engine call, lately or else in the warm-up; None before anything was measured."""
        lately = self._compute_s.quantiles(q, now_s=self._clock())
        if lately:
            return lately[0]
        return quantile(sorted(self._proven_s), q) if self._proven_s else None

    async def sequences_over(self) -> None:
        """Waits until the sequences that began here have ended or are idle, within `sequences_s`."""
        idle_s = self.package.sequence.idle_s if self.package.sequence else 0.0
        await self.holds.over(idle_s=idle_s, most_s=self._config.sequences_s)

    async def close(self) -> None:
        """Lets what is in flight finish, within `close_s`, and gives back the engine's memory. Safe to repeat."""
        if await self._lanes.close(self._config.close_s):
            await asyncio.to_thread(self.engine.close)
        else:
            # Freeing what a thread is still using would crash the process.
            log.error("an engine call of model=%s version=%s did not end; its memory stays", self.name, self.version)
