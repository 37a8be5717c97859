"""Who is asked and when, what counts as hung, and how it is healed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from nearmesh_agent.serving import watchdog as watchdogs
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.replica_config import ReplicaConfig
from nearmesh_agent.serving.watchdog import Watchdog

from nearmesh.errors import EngineFailure, NotReady
from tests.gated_engine import Gate
from tests.tiny_models import package, spec

INPUT = {"x": np.array([1.0, 2.0], np.float32)}


class Kennel:
    """One replica with a probe, its engines, and a watchdog that looks when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.engines: list[Gate] = []
        # Engines to come begin like this.
        self.open, self.broken = True, False
        self.changes = 0
        described = package("doubler", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)])
        config = ReplicaConfig(stall_s=0.1, probe_s=0.1, close_s=0.1)
        self.replica = Replica(described, "sha256:1", make=self._make, config=config, clock=lambda: self.now)
        self.replica.probe = INPUT
        self.replicas = [self.replica]
        self.watchdog = Watchdog(self.replicas, Replica.activate, on_change=self._changed, clock=lambda: self.now)

    def _make(self) -> Gate:
        gate = Broken() if self.broken else Gate(is_open=self.open)
        self.engines.append(gate)
        return gate

    def _changed(self) -> None:
        self.changes += 1

    async def look(self) -> None:
        await self.watchdog.look()

    def quiet(self) -> bool:
        """No probe is under way."""
        return self.watchdog._watched[self.replica].probe is None

    @property
    def calls(self) -> int:
        return self.engines[-1].calls


class Broken(Gate):
    def compute(self, inputs):
        raise EngineFailure("device lost")


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110  # each turn of the loop is a step of the others
            await asyncio.sleep(0)


@asynccontextmanager
async def _kennel() -> AsyncIterator[Kennel]:
    it = Kennel()
    await it.replica.activate()
    try:
        yield it
    finally:
        it.open, it.broken = True, False
        for engine in it.engines:
            engine.open.set()
        await it.replica.close()


@pytest.fixture
async def kennel(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kennel]:
    monkeypatch.setattr(watchdogs, "BACKOFF_S", (0.0, 0.0))
    async with _kennel() as it:
        yield it


async def test_a_silent_replica_is_asked_once_in_three_seconds(kennel):
    await kennel.look()
    assert kennel.calls == 0
    kennel.now += 3
    await kennel.look()
    await until(lambda: kennel.calls == 1 and kennel.quiet())
    await kennel.look()
    kennel.now += 2.9
    await kennel.look()
    assert kennel.calls == 1
    kennel.now += 0.2
    await kennel.look()
    await until(lambda: kennel.calls == 2)
    assert kennel.replica.ready and kennel.changes == 0


async def test_one_that_answers_or_is_cold_or_unloaded_is_not_asked(kennel):
    for _ in range(4):
        kennel.now += 2
        await kennel.replica.infer(INPUT)
        await kennel.look()
    assert kennel.calls == 4
    await kennel.replica.deactivate()
    kennel.now += 60
    await kennel.look()
    await kennel.look()
    assert len(kennel.engines) == 1 and kennel.calls == 4


async def test_p10_a_probe_that_does_not_come_back_makes_it_not_ready_and_a_new_engine_heals_it(kennel, caplog):
    stuck = kennel.engines[0]
    stuck.open.clear()
    kennel.now += 3
    await kennel.look()
    await until(lambda: kennel.changes == 1)
    assert kennel.replica.fault == "a probe has not come back"
    assert not kennel.replica.ready
    with pytest.raises(NotReady, match="a probe has not come back; another node may serve it"):
        await kennel.replica.infer(INPUT)
    await kennel.look()
    await until(lambda: kennel.replica.ready and kennel.changes == 2)
    assert kennel.replica.endings.hanging == 1
    assert (await kennel.replica.infer(INPUT)).outputs["y"].tolist() == [2, 4]
    # Its memory is freed when the call comes back after all, and not before.
    await kennel.replica.endings.tidy()
    assert stuck.closed == 0 and "did not end; its memory stays" in caplog.text
    stuck.open.set()
    lost = kennel.replica.endings._lost[0]
    await until(lambda: not lost.hangs())
    await kennel.replica.endings.tidy()
    assert (stuck.closed, kennel.replica.endings.hanging) == (1, 0)


async def test_p10_a_call_that_does_not_come_back_and_who_waits_behind_it(kennel):
    kennel.engines[0].open.clear()
    hung = asyncio.create_task(kennel.replica.infer(INPUT))
    await kennel.engines[0].entered()
    behind = asyncio.create_task(kennel.replica.infer(INPUT, timeout_s=60))
    await asyncio.sleep(0)
    kennel.now += 0.05
    await kennel.look()
    assert kennel.replica.ready
    kennel.now += 0.1
    assert not kennel.replica.ready
    kennel.open = False
    await kennel.look()
    with pytest.raises(NotReady):
        await behind
    assert kennel.replica.fault.startswith("an engine call has not come back for 0.1")
    hung.cancel()


async def test_calls_that_fail_are_the_engines_fault_only_if_its_probe_fails(kennel):
    poison = {"x": np.array([np.nan], np.float32)}
    for _ in range(3):
        with pytest.raises(EngineFailure):
            await kennel.replica.infer(poison)
    assert kennel.replica.suspect and kennel.replica.ready
    await kennel.look()
    await until(lambda: not kennel.replica.suspect)
    assert kennel.replica.ready and kennel.calls == 4 and kennel.changes == 0


async def test_an_engine_that_fails_its_probe_is_replaced_by_one_that_does_not(kennel):
    kennel.broken = True
    await kennel.replica.activate()
    assert kennel.replica.ready
    kennel.now += 3
    await kennel.look()
    await until(lambda: bool(kennel.replica.fault) and kennel.quiet())
    assert kennel.replica.fault == "a probe failed: device lost"
    assert kennel.engines[1].closed == 1
    # One that fails as well is never put in place.
    await kennel.look()
    await until(lambda: len(kennel.engines) >= 4)
    assert not kennel.replica.ready and not kennel.replica.active
    kennel.broken = False
    await until(lambda: kennel.replica.ready)
    assert kennel.replica.active


async def test_no_more_engines_are_given_up_to_hang_than_memory_bears(kennel, monkeypatch, caplog):
    monkeypatch.setattr(watchdogs, "MOST_HANGING", 1)
    kennel.engines[0].open.clear()
    kennel.now += 3
    await kennel.look()
    await until(lambda: kennel.replica.endings.hanging == 1)
    await kennel.look()
    await until(lambda: "1 engines of it hang already" in caplog.text)
    assert len(kennel.engines) == 1
    kennel.engines[0].open.set()
    await until(lambda: not kennel.replica.endings._lost[0].hangs())
    await kennel.replica.endings.tidy()
    await until(lambda: kennel.replica.ready)
    assert len(kennel.engines) == 2


async def test_attempts_to_heal_come_less_and_less_often(monkeypatch):
    waits: list[float] = []
    asleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await asleep(0)

    monkeypatch.setattr(watchdogs.asyncio, "sleep", sleep)
    monkeypatch.setattr(watchdogs.random, "uniform", lambda low, high: 1.0)
    async with _kennel() as it:
        it.broken = True
        await it.replica.give_up("for a test")
        await it.look()
        while len(waits) < 9:
            await asleep(0)
        it.broken = False
        while not it.replica.ready:
            await asleep(0)
    assert waits[:9] == [0, 1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_trial_that_hangs_is_given_up_and_not_healed(kennel):
    kennel.replica.on_trial = True
    kennel.engines[0].open.clear()
    kennel.now += 3
    await kennel.look()
    await until(lambda: kennel.changes == 1)
    for _ in range(5):
        kennel.now += 60
        await kennel.look()
        await asyncio.sleep(0)
    assert len(kennel.engines) == 1 and not kennel.replica.ready
    # As the standing version it is.
    kennel.replica.on_trial = False
    await kennel.look()
    await until(lambda: kennel.replica.ready)
