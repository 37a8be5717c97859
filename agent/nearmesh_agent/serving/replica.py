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
from functools import partial
from pathlib import Path

from nearmesh import package as packages
from nearmesh.errors import DeadlineExceeded, NotReady, Overloaded
from nearmesh.lineage import run_of
from nearmesh.package import Package
from nearmesh_agent.engines.base import Array, Engine, EngineFactory
from nearmesh_agent.serving import memory
from nearmesh_agent.serving.batch import BatchLayout
from nearmesh_agent.serving.endings import Endings
from nearmesh_agent.serving.failures import Failures
from nearmesh_agent.serving.holds import Holds
from nearmesh_agent.serving.inputs import Intake
from nearmesh_agent.serving.loaded import Description, Loaded
from nearmesh_agent.serving.loading import Loading
from nearmesh_agent.serving.measured import Measured, ReplicaStats
from nearmesh_agent.serving.memory import Footprint, weights_bytes
from nearmesh_agent.serving.occupancy import Occupancy
from nearmesh_agent.serving.proof import prove
from nearmesh_agent.serving.queue import DEFAULT_PRIORITY, Answer, Limits
from nearmesh_agent.serving.replica_config import ReplicaConfig
from nearmesh_agent.serving.scheduler import Clock, Scheduler
from nearmesh_agent.serving.streams import Streams
from nearmesh_agent.serving.tally import Tally

log = logging.getLogger(__name__)

# Brings a cold replica back for a request that has so many seconds left, None for any number.
Wake = Callable[["Replica", float | None], Awaitable[None]]

# Proves a version that was just opened from its folder, when there is room for it.
Bring = Callable[["Replica", Path], Awaitable[None]]


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
        # The federated run that made the version; empty: none did.
        self.run = ""
        self.tally = Tally()
        self.measured = Measured(package.batching, clock)
        # Sequences that began with this version; `sequences_over` waits for them.
        self.holds = Holds(clock)
        # Brings a cold replica back into memory; set by whoever decides what leaves for it, None where nobody does.
        self.wake: Wake | None = None
        # Why it should not be used although it is here; "" when all is well.
        self.fault = ""
        # An operator took it out of memory, and it stays out until an operator wants it back.
        self.unloaded = False
        self._on_trial = False
        # It takes nothing more, from sequences neither.
        self.closed = False
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
        # Engines that it no longer uses.
        self.endings = Endings(package.name, package.version)
        # Callers that wait until it is in memory.
        self._waking = 0
        self._make = make
        self._config = config or ReplicaConfig()
        self._clock = clock
        self._executor = executor
        self._occupancy = occupancy
        self._active: Loaded | None = None
        # The engine that was active last.
        self._described = Description()
        # Its calls wait for the event loop, which therefore must not wait for them.
        self._retrieves = any(step.retrieve for step in package.steps)
        self._failures = Failures(package.name)

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
        on_trial: bool = False,
    ) -> Replica:
        """Loads the version in `folder` and proves it: every warm-up input gives its expected outputs.

        `executor` runs it, asyncio's own if None; a process cannot end before that one's threads have. `bring` makes
        room for it first, or finds it where it is `on_trial`. Raises PackageError, ConfigError or EngineFailure when it
        cannot be loaded, WarmupFailed when it is wrong.
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
        replica.on_trial = on_trial
        replica.run = await loop.run_in_executor(executor, run_of, folder)
        replica.footprint.weights_bytes = await loop.run_in_executor(executor, weights_bytes, folder, described)
        await (bring(replica, folder) if bring else replica.activate(folder))
        return replica

    @property
    def on_trial(self) -> bool:
        """Served beside the standing version of its model, which comes first in everything."""
        return self._on_trial

    @on_trial.setter
    def on_trial(self, value: bool) -> None:
        self._on_trial = value
        if active := self._active:
            active.scheduler.apart = value or self._retrieves

    # In memory, or not.

    async def activate(self, folder: Path | None = None) -> None:
        """Loads the engine beside what may be active, then puts it in its place; with a `folder`, proves it first.

        What was active answers what it has accepted, and goes. Raises as `load`.
        """
        resident = memory.resident()
        engine = await Loading(self._open, partial(self._check, folder)).run(self._executor)
        if self.closed:
            await self.endings.end(self._loaded(engine), 0)
            raise NotReady(f"{self.name!r} is being unloaded from this node")
        self.footprint.measured(memory.resident() - resident)
        before, self._active = self._active, self._loaded(engine)
        self._description()
        self._failures.in_row, self.fault = 0, ""
        self.last_used_s = self._clock()
        self.tally.loads += 1
        log.info("loaded model=%s version=%s variant=%s", self.name, self.version, engine.variant)
        if before:
            await self.endings.end(before, self._config.close_s)

    def _open(self) -> Engine:
        """In a thread."""
        started = self._clock()
        engine = self._make()
        opened_s = getattr(engine, "opened_s", None)
        self.load_s = self._clock() - started if opened_s is None else opened_s
        return engine

    def _check(self, folder: Path | None, engine: Engine) -> None:
        """In a thread."""
        if folder:
            self.probe = prove(engine, folder, self.package)
            self.measured.warmed_up(engine, self.layout, self.probe)
        elif self.fault and self.probe:
            # What is to replace an engine that hung or failed shows that it answers before it gets requests.
            engine.infer(self.probe)

    def _loaded(self, engine: Engine) -> Loaded:
        batching = self.package.batching
        limits = Limits(waiting=self.package.queue or self._config.queue, max_delay_s=batching.max_delay_ms / 1000)
        scheduler = Scheduler(
            engine,
            self.layout,
            self.measured.times,
            limits=limits,
            clock=self._clock,
            name=f"{self.name}-{self.version}",
            occupancy=self._occupancy,
            apart=self.on_trial or self._retrieves,
        )
        return Loaded(engine, scheduler, Streams(engine, most=limits.waiting, name=scheduler.name))

    @property
    def held_bytes(self) -> int:
        """What it takes in memory at this moment, with what hangs and could not be freed."""
        # Asked by other threads as well, while it may be unloaded.
        active = self._active
        return self.footprint.held_bytes(active.copies if active else 0, self.endings.hanging)

    async def deactivate(self) -> None:
        """Gives back the memory, once what is in flight has been answered; the next request brings it back."""
        active, self._active = self._active, None
        if active:
            await self.endings.end(active, self._config.close_s)
            log.info("left memory model=%s version=%s", self.name, self.version)

    async def give_up(self, why: str) -> None:
        """Takes an engine out of use that hangs or fails: who waits behind it is told NotReady, as is who comes."""
        self.fault = why
        active, self._active = self._active, None
        log.error("not ready model=%s version=%s: %s", self.name, self.version, why)
        if active:
            await self.endings.end(active, 0, give_up=True)

    @property
    def active(self) -> bool:
        """In memory."""
        return self._active is not None

    @property
    def idle_s(self) -> float:
        """Since somebody last asked for it, or since it was loaded."""
        return max(0.0, self._clock() - self.last_used_s)

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
        return self._description().name

    @property
    def variant(self) -> str:
        return self._description().variant

    @property
    def variant_why(self) -> str:
        """Why this variant, in a few words."""
        return self._description().variant_why

    @property
    def providers(self) -> tuple[str, ...]:
        """What executes it, best first."""
        return self._description().providers

    @property
    def instances(self) -> int:
        """Engine calls at a time."""
        return self._description().instances

    def _description(self) -> Description:
        """An engine may change while it serves, from ONNX Runtime to TensorRT."""
        if active := self._active:
            self._described = active.description
        return self._described

    # Serving.

    async def infer(
        self, inputs: Mapping[str, Array], *, timeout_s: float | None = None, priority: int = DEFAULT_PRIORITY
    ) -> Answer:
        """Every output for checked `inputs`. Raises Overloaded, DeadlineExceeded, NotReady, or the engine's error."""
        active = self._active
        if active is None:
            active, timeout_s = await self._back(timeout_s)
        with self._failures:
            answer = await active.scheduler.run(inputs, timeout_s=timeout_s, priority=priority)
        self.last_used_s = self._clock()
        self.measured.answered(answer)
        return answer

    def check_room(self, rows: int, *, timeout_s: float | None = None, priority: int = DEFAULT_PRIORITY) -> None:
        """Whether a request would be taken whose tensors are still on their way; a cold replica takes all it can.

        Raises what `infer` would raise at once.
        """
        active = self._active
        if active is None:
            self._check_here()
        else:
            active.scheduler.check_room(rows, timeout_s=timeout_s, priority=priority)

    async def stream(
        self, inputs: Mapping[str, Array], *, timeout_s: float | None
    ) -> AsyncGenerator[Mapping[str, Array], None]:
        """A decoupled model's answers to checked `inputs`. Raises as `infer` does."""
        active = self._active
        if active is None:
            active, timeout_s = await self._back(timeout_s)
        with self._failures:
            async with aclosing(active.streams.run(inputs, timeout_s=timeout_s)) as answers:
                async for outputs in answers:
                    yield outputs
        self.last_used_s = self._clock()

    async def _back(self, timeout_s: float | None) -> tuple[Loaded, float | None]:
        """In memory again, and what is left of the caller's time."""
        started = self._clock()
        if self._waking > (self.package.queue or self._config.queue):
            raise Overloaded(f"{self._waking} requests wait until {self.name!r} is back in memory, as many as may")
        # Counts as use, so that nothing puts it out again before this request has had its turn.
        self._waking += 1
        try:
            async with asyncio.timeout(timeout_s):
                while self._active is None:
                    self._check_here()
                    await (self.wake(self, timeout_s) if self.wake else self.activate())
        except TimeoutError:
            raise DeadlineExceeded(f"{self.name!r} was not back in memory within {timeout_s:.3f} s") from None
        finally:
            self._waking -= 1
        return self._active, None if timeout_s is None else timeout_s - (self._clock() - started)

    def _check_here(self) -> None:
        why = "being unloaded from" if self.closed else "unloaded by an operator on" if self.unloaded else ""
        if why:
            raise NotReady(f"{self.name!r} is {why} this node; another node may serve it")
        if self.fault:
            raise NotReady(f"{self.name!r} is not ready on this node: {self.fault}; another node may serve it")

    @property
    def suspect(self) -> bool:
        """Several calls in a row failed: the engine's fault, or that of somebody's requests; its probe can tell."""
        return self._failures.suspect

    async def ask(self) -> bool:
        """One probe through the queue that all requests go through; False if it did not come to an engine call.

        Raises what the engine raises, TimeoutError if it takes far longer than a call of the smallest size.
        """
        active = self._active
        async with asyncio.timeout(max(self._config.probe_s, 10 * self.measured.times.mean_s(1))):
            answered = active is not None and await active.probe(self.probe)
        if answered:
            self._failures.in_row = 0
        return answered

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
        return bool(self._active) and self.running_s > self.measured.patience_s(self._config.stall_s)

    @property
    def running_s(self) -> float:
        """How long the oldest engine call that has not come back has taken."""
        active = self._active
        return active.longest_running_s() if active else 0.0

    def stats(self) -> ReplicaStats:
        """What the router is told."""
        return self.measured.stats(instances=self.instances, in_flight=self.in_flight)

    async def sequences_over(self) -> None:
        """Waits until the sequences that began here have ended or are idle, within `sequences_s`."""
        idle_s = self.package.sequence.idle_s if self.package.sequence else 0.0
        await self.holds.over(idle_s=idle_s, most_s=self._config.sequences_s)

    async def close(self) -> None:
        """Lets what is in flight finish, within `close_s`, and gives back the engine's memory. Safe to repeat."""
        self.closed = True
        active, self._active = self._active, None
        if active:
            await self.endings.end(active, self._config.close_s)
