"""What is asked of a version on trial after others have answered it, and when it is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from nearmesh_agent.serving import mirror as mirrors
from nearmesh_agent.serving import wire
from nearmesh_agent.serving.mirror import MOST, Mirror
from nearmesh_agent.serving.replica import Replica

from nearmesh import tensors
from nearmesh.errors import EngineFailure
from tests.gated_engine import Gate
from tests.tiny_models import package, spec

INPUT = {"x": np.array([1.0, 2.0], np.float32)}
RIGHT = {"y": INPUT["x"] * 2}


class Wrong(Gate):
    def compute(self, inputs):
        return {"y": inputs["x"] * 3}


class Broken(Gate):
    def compute(self, inputs):
        raise EngineFailure("device lost")


class Buggy(Gate):
    def compute(self, inputs):
        raise ZeroDivisionError("a bug of a runtime")


class Pair:
    """A standing version and one on trial, with a mirror between them."""

    def __init__(self, engine: Gate, output: str = "y") -> None:
        self.standing_engine, self.engine = Gate(), engine
        self.standing = self._replica("1", self.standing_engine)
        self.trial = self._replica("2", engine)
        self.trial.on_trial = True
        self.mirror = Mirror([self.standing, self.trial])

    def _replica(self, version: str, engine: Gate) -> Replica:
        described = package("m", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)], version=version)
        return Replica(described, f"sha256:{version}", make=lambda: engine)

    def offer(self, count: int = 1, inputs=INPUT, outputs=RIGHT) -> None:
        for _ in range(count):
            request = wire.received(tensors.encode_request("m", inputs))
            self.mirror.offer(self.standing, self.trial, request, outputs)

    @property
    def counted(self) -> tuple[int, int, int]:
        """Compared, agreed, and failed."""
        tally = self.trial.tally
        return tally.compared, tally.agreed, sum(tally.outcomes.values())

    async def idle(self) -> None:
        """Until nothing waits, and what was asked has been answered."""
        async with asyncio.timeout(10):
            while self.mirror._waiting.qsize() or self.trial.in_flight or self.mirror._attempts._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)


@asynccontextmanager
async def pair(engine: Gate) -> AsyncIterator[Pair]:
    found = Pair(engine)
    for replica in (found.standing, found.trial):
        await replica.activate()
    task = asyncio.create_task(found.mirror.run())
    try:
        yield found
    finally:
        assert not task.done()
        task.cancel()
        for each in (found.standing_engine, found.engine):
            each.open.set()
        for replica in (found.standing, found.trial):
            await replica.close()


@pytest.mark.parametrize(
    ("engine", "counted"), [(Gate, (3, 3, 0)), (Wrong, (3, 0, 0)), (Broken, (3, 0, 3)), (Buggy, (3, 0, 3))]
)
async def test_answers_are_compared_and_counted(engine, counted):
    async with pair(engine()) as it:
        it.offer(3)
        await it.idle()
        assert it.counted == counted
        # None of them was a request that it answered.
        assert it.trial.tally.success.count == 0
        assert it.trial.tally.outcomes == (
            {"ENGINE_FAILURE": 3} if engine is Broken else {"INTERNAL": 3} if engine is Buggy else {}
        )


async def test_what_the_standing_version_took_and_this_one_refuses_counts_against_it():
    async with pair(Gate()) as it:
        it.offer(inputs={"x": np.array([1], np.int64)})
        await it.idle()
        assert it.counted == (1, 0, 1) and it.engine.calls == 0


async def test_nothing_is_asked_where_there_is_no_room():
    async with pair(Gate()) as it:
        it.standing_engine.open.clear()
        # Its one engine computes.
        busy = asyncio.create_task(it.standing.infer(INPUT))
        await it.standing_engine.entered()
        it.offer()
        await it.idle()
        it.standing_engine.open.set()
        await busy
        assert it.counted == (0, 0, 0)
        it.offer()
        await it.idle()
        assert it.counted == (1, 1, 0)


async def test_what_waits_is_bounded_in_number_and_in_bytes(monkeypatch):
    async with pair(Gate()) as it:
        it.offer(MOST + 5)
        await it.idle()
        assert it.engine.calls == MOST
        monkeypatch.setattr(mirrors, "MOST_BYTES", 100)
        it.offer(5)
        assert 1 <= it.mirror._waiting.qsize() < 5
        await it.idle()
        assert it.mirror._bytes == 0


async def test_a_trial_that_is_over_out_of_memory_or_at_fault_is_left_alone():
    async with pair(Gate()) as it:
        it.trial.on_trial = False
        it.offer()
        await it.idle()
        it.trial.on_trial = True
        await it.trial.deactivate()
        it.offer()
        await it.idle()
        await it.trial.activate()
        it.trial.fault = "a call hung"
        it.offer()
        await it.idle()
        assert it.counted == (0, 0, 0) and it.engine.calls == 0


async def test_a_trial_that_hangs_is_dropped_and_says_nothing(monkeypatch):
    monkeypatch.setattr(mirrors, "patience_s", lambda left_s, p95_s: 0.05)
    async with pair(Gate(is_open=False)) as it:
        it.offer()
        await it.engine.entered()
        async with asyncio.timeout(10):
            while it.mirror._attempts._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert it.counted == (0, 0, 0)


async def test_large_answers_are_compared_in_a_thread(monkeypatch):
    monkeypatch.setattr(mirrors, "_LARGE_BYTES", 1)
    async with pair(Gate()) as it:
        it.offer()
        async with asyncio.timeout(10):
            while not it.trial.tally.compared:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert it.counted == (1, 1, 0)
