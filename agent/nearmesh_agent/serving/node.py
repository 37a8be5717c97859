"""Everything that serves models on one node, wired: what answers, what is in memory, and who watches over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nearmesh.transport.health import Health
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.engines.base import EngineFactory
from nearmesh_agent.health import follow_readiness
from nearmesh_agent.serving import memory
from nearmesh_agent.serving.metrics import ServingMetrics
from nearmesh_agent.serving.occupancy import Occupancy
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.replica_config import ReplicaConfig
from nearmesh_agent.serving.residency import Residency
from nearmesh_agent.serving.responses import Place
from nearmesh_agent.serving.servicer import InferenceServicer
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.serving.watchdog import Watchdog

# How the names of the threads begin that load versions; as those of engine calls, which may hang as well.
LOADER_THREADS = "engine-load"


class ServingNode:
    """Belongs to one event loop. `run` is its own task; `close` comes after the server has stopped."""

    def __init__(
        self, config: NodeConfig, place: Place, engines: EngineFactory, *, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """`on_change` hears at once when a model becomes ready or ceases to be."""
        self.table = ReplicaTable()
        self.metrics = ServingMetrics(self.table)
        self.residency = Residency(memory.budget(config.memory_budget_mib), idle_unload_s=config.idle_unload_s)
        self.servicer = InferenceServicer(self.table, place, metrics=self.metrics, residency=self.residency)
        self.health = Health()
        self._watchdog = Watchdog(self.table, self.residency.load, on_change=self._changed)
        self._engines = engines
        self._limits = ReplicaConfig(queue=config.queue_limit, close_s=config.grace_s)
        self._on_change = on_change
        self._told = asyncio.Event()
        self.occupancy = Occupancy()
        self._loader = _loader()

    async def load(self, folder: Path, digest: str, *, on_trial: bool = False) -> Replica:
        """A version, proven; one `on_trial` gets the memory that is free. Raises as `Residency.bring`."""
        # A thread of its own: one on trial may hang, and has no thread of others to take along.
        executor = _loader(1) if on_trial else self._loader
        return await Replica.load(
            folder,
            digest,
            engine_factory=self._engines,
            config=self._limits,
            executor=executor,
            occupancy=self.occupancy,
            bring=self.residency.bring,
            on_trial=on_trial,
        )

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow_readiness(self.health, self.servicer, self.table, self._told))
            tasks.create_task(self._watchdog.run())
            tasks.create_task(self.residency.run())
            tasks.create_task(self.servicer.forget_idle())
            tasks.create_task(self.servicer.mirror.run())

    async def close(self) -> None:
        """Ends loads that are under way; replicas are closed by whoever put them into the table."""
        await self.residency.close()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _changed(self) -> None:
        self._told.set()
        self._on_change()


def _loader(threads: int | None = None) -> ThreadPoolExecutor:
    """Not asyncio's own, whose threads the loop waits for at its end: a load may take minutes, or hang."""
    return ThreadPoolExecutor(threads, thread_name_prefix=LOADER_THREADS)
