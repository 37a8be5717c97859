"""A model version on this node: proven once, in memory while it is used, measured while it serves, closed without loss.

A replica may be *cold*: registered, its files on disk, out of memory. A request brings it back (`residency` decides
what leaves for it); what it has learned about itself stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import aclosing
from pathlib import Path

from nearmesh import package as packages
from nearmesh.errors import DeadlineExceeded, EngineFailure, NotReady
from nearmesh.package import Package
from nearmesh.quantiles import Window
from nearmesh_agent.engines.base import Array, Engine, EngineFactory
from nearmesh_agent.serving import memory
from nearmesh_agent.serving.batch import BatchLayout
from nearmesh_agent.serving.holds import Holds
from nearmesh_agent.serving.inputs import Intake
from nearmesh_agent.serving.loaded import Loaded
from nearmesh_agent.serving.memory import Footprint, weights_bytes
from nearmesh_agent.serving.occupancy import Occupancy
from nearmesh_agent.serving.proof import measure, prove
from nearmesh_agent.serving.queue import DEFAULT_PRIORITY, Answer
from nearmesh_agent.serving.replica_config import ReplicaConfig, ReplicaStats
from nearmesh_agent.serving.scheduler import Clock, Limits, Scheduler
from nearmesh_agent.serving.streams import Streams
from nearmesh_agent.serving.tally import Tally
from nearmesh_agent.serving.times import ServiceTimes

__all__ = ["Replica", "ReplicaConfig", "ReplicaStats"]

log = logging.getLogger(__name__)

# How long a measurement speaks for a replica.
MEASURED_FOR_S = 30.0
# So many engine calls that fail one after the other may be the engine's fault, not the requests'.
FAILURES_IN_ROW = 3


# Brings a cold replica back for a request that has so many seconds left, None for any number.
Wake = Callable[["Replica", float | None], Awaitable[None]]


# Proves a version that was just opened from its folder, when there is room for it.
Bring = Callable[["Replica", Path], Awaitable[None]]


async def _wake(replica: Replica, timeout_s: float | None) -> None:
    """Where nobody decides what is in memory."""
    await replica.activate()


class Replica:
    """One version. Belongs to one event loop; `load` is the way to get one."""

    def __init__(
        self,
        package: Package,
        digest: str,
        *,
        make: Callable[[], Engine],
        config: ReplicaConfig | None = None,
        clock: Clock = time.monotonic,
        executor: Executor | None = None,
        occupancy: Occupancy | None = None,
    ) -> None:
        """`make` loads the engine; it blocks, so it is run by `executor` (asyncio's own if None)."""
        self.package = package
        self.digest = digest
        self.tally = Tally()
        # Sequences that began with this version; `sequences_over` waits for them.
        self.holds = Holds(clock)
        # Brings a cold replica back into memory; set by whoever decides what leaves for it.
        self.wake: Wake = _wake
        # Why it should not be used although it is here; "" when all is well.
        self.fault = ""
        # An operator took it out of memory, and it stays out until an operator wants it back.
        self.unloaded = False
        # The inputs that a watchdog may ask with.
        self.probe: Mapping[str, Array] = {}
        self.layout = BatchLayout(package)
        self.intake = Intake(package)
        # What a sequence keeps on the node is not among its answers.
        self.hidden = tuple(state.output for state in package.sequence.state) if package.sequence else ()
        self.last_used_s = clock()
        # What the latest load took; 0 before any.
        self.load_s = 0.0
        self.footprint = Footprint(package.memory_bytes)
        # Callers that wait until it is in memory.
        self._waking = 0
        # Engines that were given up while a call of theirs hung; their memory stays until it comes back.
        self._lost: list[Loaded] = []
        self._make = make
        self._config = config or ReplicaConfig()
        self._clock = clock
        self._executor = executor
        self._occupancy = occupancy
        self._times = ServiceTimes(package.batching.max_batch, package.batching.preferred_batch_sizes)
        # The latest of each. What a busy minute left is forgotten: a node that was slow once must get another chance,
        # and without traffic nothing else would tell that it is fast again.
        self._service_ms = Window(size=256, max_age_s=MEASURED_FOR_S)
        self._row_s = Window(size=256, max_age_s=MEASURED_FOR_S)
        # What the warm-up measured: seconds of a lone request, and of a row when many come.
        self._proven_s = self._proven_row_s = 0.0
        self._active: Loaded | None = None
        # Name, variant, providers and instances of the engine that was active last.
        self._described: tuple[str, str, tuple[str, ...], int] = ("", "", (), 0)
        self._failures = 0
        self._closed = False

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
        occupancy: Occupancy | None = None,
        bring: Bring | None = None,
    ) -> Replica:
        """Loads the version in `folder` and proves it: every warm-up input gives its expected outputs.

        `executor` runs it, asyncio's own if None; a process cannot end before that one's threads have. `bring` makes
        room for it first. Raises PackageError, ConfigError or EngineFailure when it cannot be loaded, WarmupFailed when
        it is wrong.
        """
        loop = asyncio.get_running_loop()
        described = await loop.run_in_executor(executor, packages.load, folder) if package is None else package
        replica = cls(
            described,
            digest,
            make=lambda: engine_factory(folder, described),
            config=config,
            clock=clock,
            executor=executor,
            occupancy=occupancy,
        )
        replica.footprint.weights_bytes = await loop.run_in_executor(executor, weights_bytes, folder, described)
        if bring:
            await bring(replica, folder)
        else:
            await replica.activate(folder)
        return replica

    # In memory, or not.

    async def activate(self, folder: Path | None = None) -> None:
        """Loads the engine beside what may be active, then puts it in its place; with a `folder`, proves it first.

        What was active answers what it has accepted, and goes. Raises as `load`.
        """
        resident = memory.resident()
        loaded = await asyncio.get_running_loop().run_in_executor(self._executor, self._load, folder)
        if self._closed:
            await self._end(loaded, self._config.close_s)
            raise NotReady(f"{self.name!r} is being unloaded from this node")
        self.footprint.measured(memory.resident() - resident)
        before, self._active = self._active, loaded
        self._description()
        self._failures, self.fault = 0, ""
        self.last_used_s = self._clock()
        self.tally.loads += 1
        log.info("loaded model=%s version=%s variant=%s", self.name, self.version, loaded.engine.variant)
        if before:
            await self._end(before, self._config.close_s)

    def _load(self, folder: Path | None) -> Loaded:
        """In a thread."""
        started = self._clock()
        engine = self._make()
        try:
            self.load_s = self._clock() - started
            if folder:
                self.probe = prove(engine, folder, self.package)
                measure(engine, self.layout, self.probe, self._times, self._clock)
                self._proven_s = self._times.mean_s(1)
                self._proven_row_s = self._times.mean_s(self._times.best) / self._times.best
            elif self.fault and self.probe:
                # What is to replace an engine that hung or failed shows that it answers before it gets requests.
                engine.infer(self.probe)
        except BaseException:
            engine.close()
            raise
        limits = Limits(
            waiting=self.package.queue or self._config.queue, max_delay_s=self.package.batching.max_delay_ms / 1000
        )
        scheduler = Scheduler(
            engine,
            self.layout,
            self._times,
            limits=limits,
            clock=self._clock,
            name=f"{self.package.name}-{self.package.version}",
            occupancy=self._occupancy,
        )
        return Loaded(engine, scheduler, Streams(engine, most=limits.waiting, name=scheduler.name))

    @property
    def footprint_bytes(self) -> int:
        """What the version takes in memory; 0 before any load."""
        return self.footprint.loaded_bytes

    @property
    def held_bytes(self) -> int:
        """What it takes at this moment, with what hangs and could not be freed."""
        # Asked by other threads as well, while it may be unloaded.
        active = self._active
        again = (active.copies - 1) * self.footprint.weights_bytes if active else 0
        return (int(active is not None) + self.hanging) * self.footprint_bytes + max(0, again)

    async def deactivate(self) -> None:
        """Gives back the memory, once what is in flight has been answered; the next request brings it back."""
        active, self._active = self._active, None
        if active:
            await self._end(active, self._config.close_s)
            log.info("left memory model=%s version=%s", self.name, self.version)

    async def give_up(self, why: str) -> None:
        """Takes an engine out of use that hangs or fails: who waits behind it is told NotReady, as is who comes."""
        self.fault = why
        active, self._active = self._active, None
        log.error("not ready model=%s version=%s: %s", self.name, self.version, why)
        if active:
            await self._end(active, 0)

    async def _end(self, loaded: Loaded, timeout_s: float) -> None:
        if not await loaded.end(timeout_s):
            log.error("an engine call of model=%s version=%s did not end; its memory stays", self.name, self.version)
            self._lost.append(loaded)

    async def tidy(self) -> None:
        """Frees engines that were given up and whose calls have come back after all."""
        for loaded in [loaded for loaded in self._lost if not loaded.hangs()]:
            self._lost.remove(loaded)
            log.info("an engine call of model=%s version=%s came back late", self.name, self.version)
            await loaded.end_late()

    @property
    def hanging(self) -> int:
        """Engines that were given up and cannot be freed yet."""
        return len(self._lost)

    @property
    def active(self) -> bool:
        """In memory."""
        return self._active is not None

    @property
    def in_use(self) -> bool:
        """A request or a sequence needs it at this moment."""
        return self.in_flight > 0 or len(self.holds) > 0

    @property
    def held(self) -> bool:
        """A sequence needs it, or a request that it was loaded for."""
        return self._waking > 0 or len(self.holds) > 0

    # What it is.

    @property
    def name(self) -> str:
        return self.package.name

    @property
    def version(self) -> str:
        return self.package.version

    @property
    def platform(self) -> str:
        """The runtime, as OIP names platforms."""
        return self._description()[0]

    @property
    def variant(self) -> str:
        return self._description()[1]

    @property
    def providers(self) -> tuple[str, ...]:
        """What executes it, best first."""
        return self._description()[2]

    @property
    def instances(self) -> int:
        """Engine calls at a time."""
        return self._description()[3]

    def _description(self) -> tuple[str, str, tuple[str, ...], int]:
        """An engine may change while it serves, from ONNX Runtime to TensorRT."""
        active = self._active
        if active:
            engine = active.engine
            self._described = (engine.name, engine.variant, engine.providers, engine.instances)
        return self._described

    # Serving.

    async def infer(
        self, inputs: Mapping[str, Array], *, timeout_s: float | None = None, priority: int = DEFAULT_PRIORITY
    ) -> Answer:
        """Every output for checked `inputs`. Raises Overloaded, DeadlineExceeded, NotReady, or the engine's error."""
        active = self._active
        if active is None:
            active, timeout_s = await self._back(timeout_s)
        try:
            answer = await active.scheduler.run(inputs, timeout_s=timeout_s, priority=priority)
        except EngineFailure as error:
            self._failed(error)
            raise
        self._failures = 0
        self.last_used_s = now = self._clock()
        if answer.first and not answer.alone:
            self._row_s.add(answer.compute_ms / 1000 / answer.batch_rows, now_s=now)
        return answer

    async def stream(
        self, inputs: Mapping[str, Array], *, timeout_s: float | None
    ) -> AsyncGenerator[Mapping[str, Array], None]:
        """A decoupled model's answers to checked `inputs`. Raises as `infer` does."""
        active = self._active
        if active is None:
            active, timeout_s = await self._back(timeout_s)
        try:
            async with aclosing(active.streams.run(inputs, timeout_s=timeout_s)) as answers:
                async for outputs in answers:
                    yield outputs
        except EngineFailure as error:
            self._failed(error)
            raise
        self._failures = 0
        self.last_used_s = self._clock()

    async def _back(self, timeout_s: float | None) -> tuple[Loaded, float | None]:
        """In memory again, and what is left of the caller's time."""
        started = self._clock()
        # Counts as use, so that nothing puts it out again before this request has had its turn.
        self._waking += 1
        try:
            async with asyncio.timeout(timeout_s):
                while self._active is None:
                    self._check_here()
                    await self.wake(self, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(f"{self.name!r} was not back in memory within {timeout_s:.3f} s") from None
        finally:
            self._waking -= 1
        return self._active, None if timeout_s is None else timeout_s - (self._clock() - started)

    def _check_here(self) -> None:
        why = "being unloaded from" if self._closed else "unloaded by an operator on" if self.unloaded else ""
        if why:
            raise NotReady(f"{self.name!r} is {why} this node; another node may serve it")
        if self.fault:
            raise NotReady(f"{self.name!r} is not ready on this node: {self.fault}; another node may serve it")

    def _failed(self, error: EngineFailure) -> None:
        self._failures += 1
        log.debug("an engine call failed model=%s: %s", self.name, error.message)

    @property
    def suspect(self) -> bool:
        """Several calls in a row failed: the engine's fault, or that of somebody's requests; its probe can tell."""
        return self._failures >= FAILURES_IN_ROW

    async def ask(self) -> bool:
        """One probe through the queue that all requests go through; False if it did not come to an engine call.

        Raises what the engine raises, TimeoutError if it takes far longer than a call of the smallest size.
        """
        active = self._active
        async with asyncio.timeout(max(self._config.probe_s, 10 * self._times.mean_s(1))):
            answered = active is not None and await active.probe(self.probe)
        if answered:
            self._failures = 0
        return answered

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
        return self._closed

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        active = self._active
        return self._waking + (active.in_flight if active else 0)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        active = self._active
        return self._waking + (active.scheduler.waiting if active else 0)

    @property
    def busy_share(self) -> float:
        """The share of its instances that compute, 0 to 1."""
        active = self._active
        return active.scheduler.busy_share() if active else 0.0

    @property
    def ready(self) -> bool:
        """False while an engine call hangs, after one hung or failed until it is healed, and while it must stay out."""
        return not self.fault and not self.unloaded and not self.stalled()

    def stalled(self) -> bool:
        """An engine call takes far longer than it should."""
        return bool(self._active) and self.running_s > self.patience_s

    @property
    def running_s(self) -> float:
        """How long the oldest engine call that has not come back has taken."""
        active = self._active
        return active.longest_running_s() if active else 0.0

    @property
    def patience_s(self) -> float:
        """How long an engine call may take: far longer than a usual one, and than one request of the largest size."""
        times = self._times
        return max(self._config.stall_s, 10 * times.mean_s(times.best), 3 * times.mean_s(times.sizes[-1]))

    def stats(self) -> ReplicaStats:
        # The warm-up's few calls have no 95th percentile: one that the machine held up would be it, for ever, since a
        # node that looks slow gets no requests that could prove otherwise. The fastest is what it can do; requests will
        # soon tell what it does.
        now = self._clock()
        proven_ms = self._proven_s * 1000
        service = self._service_ms.quantiles(0.5, 0.95, now_s=now) or (proven_ms, proven_ms)
        # The fastest tenth is what the machine can do when nothing else holds it up.
        (row_s,) = self._row_s.quantiles(0.1, now_s=now) or (self._proven_row_s,)
        return ReplicaStats(
            service_ms_p50=service[0],
            service_ms_p95=service[1],
            inferences_per_second=self.instances / row_s if row_s else 0.0,
            in_flight=self.in_flight,
        )

    async def sequences_over(self) -> None:
        """Waits until the sequences that began here have ended or are idle, within `sequences_s`."""
        idle_s = self.package.sequence.idle_s if self.package.sequence else 0.0
        await self.holds.over(idle_s=idle_s, most_s=self._config.sequences_s)

    async def close(self) -> None:
        """Lets what is in flight finish, within `close_s`, and gives back the engine's memory. Safe to repeat."""
        self._closed = True
        active, self._active = self._active, None
        if active:
            await self._end(active, self._config.close_s)
