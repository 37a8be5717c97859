"""Over gRPC: a wedged engine is not ready within five seconds, in silence and under traffic, and heals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.serving.watchdog import SILENCE_S
from tritonclient.utils import InferenceServerException

from tests.gated_engine import Gate
from tests.serving_node import Running, scaler, serving_node

# P10's bound.
WITHIN_S = 5.0


class Slow(Gate):
    """Takes as long as a small real engine, so that it is run in a thread."""

    def compute(self, inputs):
        time.sleep(0.002)
        return {"y": inputs["x"] * 2}


class Engines:
    """Makes Slow engines and keeps them."""

    def __init__(self) -> None:
        self.made: list[Slow] = []
        self._open = True

    def __call__(self, folder: Path, package: object) -> Slow:
        self.made.append(Slow(is_open=self._open))
        return self.made[-1]

    def wedge(self) -> None:
        """All of them, and those to come: nothing can heal."""
        self._open = False
        for engine in self.made:
            engine.open.clear()

    def let_new_ones_work(self) -> None:
        self._open = True
        for engine in self.made[1:]:
            engine.open.set()


async def until(check: Callable[[], Awaitable[bool]], within_s: float) -> float:
    """Seconds until it is so."""
    started_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await check():  # noqa: ASYNC110  # readiness is asked for from outside
            await asyncio.sleep(0.02)
    return time.monotonic() - started_s


async def unready(node: Running) -> bool:
    """Wherever readiness is told."""
    return not (
        await node.client.is_model_ready("m")
        or await node.client.is_server_ready()
        or await node.serving()
        or await node.serving("m")
    )


async def ready(node: Running) -> bool:
    return bool(
        await node.client.is_model_ready("m")
        and await node.client.is_server_ready()
        and await node.serving()
        and await node.serving("m")
    )


async def test_p10_in_silence_a_wedged_engine_is_not_ready_within_five_seconds_and_heals(tmp_path: Path) -> None:
    engines = Engines()
    async with serving_node(NodeConfig(data=tmp_path), engines) as node:
        await node.add(scaler(tmp_path / "m", "m"))
        assert await node.ask("m") == 2
        await until(lambda: ready(node), 5)
        engines.wedge()
        await until(lambda: unready(node), WITHIN_S)
        assert node.changes >= 1
        engines.let_new_ones_work()
        # Without a word from anyone: a new engine beside the one that hangs.
        await until(lambda: ready(node), 5)
        assert await node.ask("m") == 2 and len(engines.made) == 2
        engines.made[0].open.set()


async def test_p10_under_traffic_a_wedged_engine_is_not_ready_within_five_seconds_and_heals(tmp_path: Path) -> None:
    engines = Engines()
    async with serving_node(NodeConfig(data=tmp_path), engines) as node:
        await node.add(scaler(tmp_path / "m", "m"))
        refused: list[float] = []

        async def caller() -> None:
            while True:
                started_s = time.monotonic()
                try:
                    await node.ask("m", timeout_s=20)
                except InferenceServerException as error:
                    assert "UNAVAILABLE" in error.status(), error
                    refused.append(time.monotonic() - started_s)
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as tasks:
            callers = [tasks.create_task(caller()) for _ in range(6)]
            await until(lambda: _answered(node, 20), 10)
            engines.wedge()
            await until(lambda: unready(node), WITHIN_S)
            engines.let_new_ones_work()
            await until(lambda: ready(node), 5)
            before = node.node.table.get("m").tally.outcomes["OK"]
            await until(lambda: _answered(node, before + 20), 10)
            for task in callers:
                task.cancel()
        # Who waited behind the call that hung was told long before the deadline.
        assert refused and max(refused) < WITHIN_S
        engines.made[0].open.set()


async def _answered(node: Running, count: int) -> bool:
    return node.node.table.get("m").tally.outcomes.get("OK", 0) >= count


async def test_a_healthy_node_stays_ready_through_silence(tmp_path: Path) -> None:
    engines = Engines()
    async with serving_node(NodeConfig(data=tmp_path), engines) as node:
        await node.add(scaler(tmp_path / "m", "m"))
        await until(lambda: ready(node), 5)
        calls = engines.made[0].calls
        seen: set[bool] = set()
        until_s = time.monotonic() + SILENCE_S + 1.5
        while time.monotonic() < until_s:
            seen.add(await ready(node))
            await asyncio.sleep(0.05)
        assert seen == {True}
        assert engines.made[0].calls == calls + 1


@pytest.mark.parametrize("method", ["load_model", "unload_model"])
async def test_models_that_are_not_here(tmp_path: Path, method: str) -> None:
    async with serving_node(NodeConfig(data=tmp_path), Engines()) as node:
        with pytest.raises(InferenceServerException, match="no model 'ghost' on this node") as caught:
            await getattr(node.client, method)("ghost")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
