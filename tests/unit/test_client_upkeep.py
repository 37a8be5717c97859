"""Which nodes are probed beside the calls, and when, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from benchmarks.jumping_clock import on_jumping_clock
from nearmesh import errors
from nearmesh.client.experience import MIN_SAMPLES, Experience
from nearmesh.client.picker import Endpoint
from nearmesh.client.upkeep import PROBE_EVERY_S, Prober
from tests.client_routes import endpoint

ALL = [endpoint(name) for name in "abc"]


class Nodes:
    """Counts probes, and answers those of nodes that are up."""

    def __init__(self) -> None:
        self.probes: Counter[str] = Counter()
        self.down: set[str] = set()

    async def live(self, endpoint: Endpoint, timeout_s: float) -> bool:
        self.probes[endpoint.node] += 1
        await asyncio.sleep(0.01)
        if endpoint.node in self.down:
            raise errors.Unreachable("reset")
        return True

    async def infer(self, endpoint: Endpoint, request: Any, timeout_s: float) -> Any:
        raise NotImplementedError


class Setting:
    """A prober of three nodes."""

    def __init__(self) -> None:
        self.nodes = Nodes()
        self.experience = Experience(on_failed=lambda node: self.prober.wake(node))
        self.prober = Prober(self.nodes, self.experience)

    def out(self) -> set[str]:
        return self.experience.out("m", now_s=asyncio.get_running_loop().time())


def test_only_some_are_probed_by_the_clock() -> None:
    async def run() -> Counter[str]:
        setting = Setting()
        setting.prober.follow(ALL, {"a"})
        await asyncio.sleep(10 * PROBE_EVERY_S)
        setting.prober.follow(ALL, {"b"})
        await asyncio.sleep(PROBE_EVERY_S / 2)
        await setting.prober.close()
        return setting.nodes.probes

    found = on_jumping_clock(run())
    assert set(found) == {"a", "b"}
    assert found["b"] == MIN_SAMPLES + 1, "measured at once when it comes to matter"
    assert 8 <= found["a"] - found["b"] <= 13


def test_any_node_that_failed_is_probed_until_it_is_back_and_no_longer() -> None:
    async def run() -> None:
        setting = Setting()
        setting.prober.follow(ALL, {"a"})
        await asyncio.sleep(0)
        setting.nodes.down.add("c")
        setting.experience.failed("c", now_s=asyncio.get_running_loop().time())
        await asyncio.sleep(5.0)
        assert setting.nodes.probes["c"] >= 3 and setting.out() == {"c"}
        setting.nodes.down.clear()
        await asyncio.sleep(15.0)
        assert setting.out() == set()
        probes = setting.nodes.probes["c"]
        await asyncio.sleep(10 * PROBE_EVERY_S)
        assert setting.nodes.probes["c"] == probes
        await setting.prober.close()

    on_jumping_clock(run())


def test_who_is_in_no_route_any_more_is_forgotten() -> None:
    async def run() -> None:
        setting = Setting()
        setting.prober.follow(ALL, {"a", "b", "c"})
        await asyncio.sleep(1.0)
        setting.prober.follow(ALL[:1], {"a"})
        probes = setting.nodes.probes["c"]
        await asyncio.sleep(10 * PROBE_EVERY_S)
        assert setting.nodes.probes["c"] == probes
        assert set(setting.experience.measured(now_s=asyncio.get_running_loop().time())) == {"a"}
        await setting.prober.close()

    on_jumping_clock(run())
