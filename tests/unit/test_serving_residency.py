"""What is in memory: the budget, who leaves, who waits, and what an operator says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.server import idle_rules
from nearmesh_agent.serving import residency as residencies
from nearmesh_agent.serving.memory import MIB, Footprint, budget, weights_bytes
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.residency import Residency

from nearmesh.errors import ConfigError, DeadlineExceeded, EngineFailure, InvalidInput, NotReady
from nearmesh.package import Quantize, Source, Step, Variant
from nearmesh.v1 import node_pb2
from tests.gated_engine import Gate
from tests.tiny_models import package, spec

INPUT = {"x": np.array([1.0, 2.0], np.float32)}


class Shelf:
    """Replicas of 10 MiB each under one residency; loads wait for `open`, and fail while `error` is set."""

    def __init__(self, folder: Path, room: int, **config: float) -> None:
        self.now = 0.0
        self.folder = folder
        self.residency = Residency(room * 10 * MIB, clock=lambda: self.now, **config)
        self.replicas: dict[str, Replica] = {}
        self.engines: dict[str, list[Gate]] = {}
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Semaphore(0)
        self.order: list[str] = []
        self.error: Exception | None = None
        self.slow_s = 0.0

    def _make(self, name: str) -> Gate:
        self.order.append(name)
        self.begun.release()
        assert self.open.wait(20)
        self.now += self.slow_s
        if self.error:
            raise self.error
        self.engines.setdefault(name, []).append(Gate())
        return self.engines[name][-1]

    async def add(self, name: str, mib: int = 10, version: str = "1", *, on_trial: bool = False) -> Replica:
        described = package(
            name, [spec("x", "FP32", -1)], [spec("y", "FP32", -1)], version=version, memory_bytes=mib * MIB
        )
        replica = Replica(described, f"sha256:{name}{version}", make=lambda: self._make(name), clock=lambda: self.now)
        replica.on_trial = on_trial
        await self.residency.bring(replica, self.folder)
        self.replicas[name + version if version != "1" else name] = replica
        return replica

    async def use(self, *names: str) -> None:
        for name in names:
            self.now += 1
            answer = await self.replicas[name].infer(INPUT)
            assert answer.outputs["y"].tolist() == [2, 4]

    @property
    def here(self) -> set[str]:
        return {name for name, replica in self.replicas.items() if replica.active}

    async def loading(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=20)


@asynccontextmanager
async def shelf(folder: Path, room: int, **config: float) -> AsyncIterator[Shelf]:
    found = Shelf(folder, room, **config)
    try:
        yield found
    finally:
        found.open.set()
        await found.residency.close()
        for replica in found.replicas.values():
            await replica.close()


async def test_what_was_used_longest_ago_leaves_and_comes_back_when_asked_for(tmp_path):
    async with shelf(tmp_path, 2) as it:
        for name in ("a", "b", "c"):
            await it.add(name)
        assert it.here == {"b", "c"}
        assert it.engines["a"][0].closed == 1
        await it.use("b", "c", "b", "a")
        assert it.here == {"a", "b"}
        assert [it.replicas[name].tally.loads for name in "abc"] == [2, 1, 1]
        assert [it.replicas[name].tally.evictions for name in "abc"] == [1, 0, 1]
        assert it.residency.used_bytes == 20 * MIB
        assert it.replicas["a"].ready and it.replicas["c"].ready


async def test_one_in_use_never_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(residencies, "ROOM_S", 0.0)
    async with shelf(tmp_path, 2) as it:
        held, other = await it.add("held"), await it.add("other")
        # A sequence began with it, and it was not used since.
        held.holds.take()
        await it.use("other")
        await it.add("third")
        assert it.here == {"held", "third"}
        it.replicas["third"].holds.take()
        with pytest.raises(NotReady, match=r"no room for 'other'.* all 20 MiB of `memory_budget_mib` are in use"):
            await other.infer(INPUT)
        assert it.here == {"held", "third"} and not other.fault
        held.holds.give_back()
        await it.use("other")
        assert it.here == {"other", "third"}


async def test_steady_traffic_on_one_model_does_not_keep_another_out(tmp_path, monkeypatch):
    monkeypatch.setattr(residencies, "PATIENCE_S", 0.0)
    async with shelf(tmp_path, 1) as it:
        first, second = await it.add("a"), await it.add("b")
        gate = it.engines["b"][0]
        gate.open.clear()
        under_way = asyncio.create_task(second.infer(INPUT))
        await gate.entered()
        other = asyncio.create_task(first.infer(INPUT))
        while second.active:  # noqa: ASYNC110  # each turn of the loop is a step of the others
            await asyncio.sleep(0)
        # It answers what it has accepted before it goes; what comes now waits for its turn to be loaded.
        later = asyncio.create_task(second.infer(INPUT))
        assert gate.closed == 0
        gate.open.set()
        for answer in await asyncio.gather(under_way, other, later):
            assert answer.outputs["y"].tolist() == [2, 4]
        assert it.order == ["a", "b", "a", "b"] and gate.closed == 1


async def test_loads_come_in_the_order_in_which_they_were_asked_for(tmp_path):
    async with shelf(tmp_path, 1) as it:
        for name in "abcd":
            await it.add(name)
        it.order.clear()
        asked = [asyncio.create_task(it.replicas[name].infer(INPUT)) for name in ("b", "a", "c", "a", "b")]
        await asyncio.gather(*asked)
        assert it.order == ["b", "a", "c"]


async def test_those_who_wait_share_one_load_and_one_who_leaves_does_not_end_it(tmp_path):
    async with shelf(tmp_path, 1) as it:
        await it.add("a")
        await it.add("b")
        it.open.clear()
        it.order.clear()
        waiting = [asyncio.create_task(it.replicas["a"].infer(INPUT)) for _ in range(3)]
        late = asyncio.create_task(it.replicas["a"].infer(INPUT, timeout_s=0.05))
        await asyncio.sleep(0)
        assert it.replicas["a"].waiting == it.replicas["a"].in_flight == 4 and it.replicas["a"].in_use
        waiting[0].cancel()
        with pytest.raises(DeadlineExceeded, match="not back in memory"):
            await late
        it.open.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert [answer.outputs["y"].tolist() for answer in results[1:]] == [[2, 4]] * 2
        assert it.order == ["a"] and it.replicas["a"].in_flight == 0


async def test_a_request_with_too_little_time_is_refused_at_once_and_still_begins_the_load(tmp_path):
    async with shelf(tmp_path, 1) as it:
        it.slow_s = 0.4
        await it.add("a")
        await it.add("b")
        await it.use("a")
        it.open.clear()
        it.order.clear()
        with pytest.raises(NotReady, match="takes about 400 ms; the request has 300 ms left") as caught:
            await it.replicas["b"].infer(INPUT, timeout_s=0.3)
        assert caught.value.retry_after_ms == 400
        await it.loading()
        # The next one has to wait for that load as well.
        with pytest.raises(NotReady, match="takes about 800 ms; the request has 500 ms left"):
            await it.replicas["a"].infer(INPUT, timeout_s=0.5)
        it.open.set()
        await it.use("b")
        assert it.order[0] == "b"


async def test_a_load_that_fails_tells_all_and_is_left_to_whoever_heals(tmp_path):
    async with shelf(tmp_path, 1) as it:
        await it.add("a")
        await it.add("b")
        it.open.clear()
        it.error = EngineFailure("no device")
        it.order.clear()
        waiting = [asyncio.create_task(it.replicas["a"].infer(INPUT)) for _ in range(3)]
        await asyncio.sleep(0)
        it.open.set()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, NotReady) and "could not be loaded: no device" in error.message
        assert not it.replicas["a"].ready
        with pytest.raises(NotReady, match="no device"):
            await it.replicas["a"].infer(INPUT)
        assert it.order == ["a"]
        it.error = None
        await it.residency.load(it.replicas["a"])
        assert it.replicas["a"].ready
        await it.use("a")


async def test_what_is_larger_than_the_budget_is_refused(tmp_path):
    async with shelf(tmp_path, 2) as it:
        await it.add("a")
        with pytest.raises(ConfigError, match=r"needs about 30.0 MiB of memory.* 20.0 MiB: raise `memory_budget_mib`"):
            await it.add("giant", mib=30)
        assert it.here == {"a"} and it.order == ["a"]


async def test_p4_a_swap_puts_others_out_before_the_version_that_serves(tmp_path):
    async with shelf(tmp_path, 2) as it:
        await it.add("a")
        await it.add("b")
        await it.use("b")
        await it.add("a", version="2")
        assert it.here == {"a", "a2"}


async def test_idle_versions_leave_and_come_back(tmp_path):
    async with shelf(tmp_path, 2, idle_unload_s=10.0) as it:
        await it.add("a")
        await it.add("b")
        it.now += 9
        await it.use("b")
        it.replicas["b"].holds.take()
        it.now += 9
        await it.residency.unload_idle()
        assert it.here == {"b"}
        it.now += 10
        await it.residency.unload_idle()
        assert it.here == {"b"}, "a sequence holds it"
        await it.use("a")
        assert it.here == {"a", "b"}


async def test_the_mesh_s_rule_for_a_version_counts_before_the_node_s_own(tmp_path):
    async with shelf(tmp_path, 3, idle_unload_s=100.0) as it:
        for name in "abc":
            await it.add(name)
        it.residency.idle_rules = {"sha256:a1": 10.0, "sha256:b1": 1000.0}
        it.now += 10
        await it.residency.unload_idle()
        assert it.here == {"b", "c"}
        it.now += 100
        await it.residency.unload_idle()
        assert it.here == {"b"}


async def test_a_rule_of_the_mesh_counts_where_the_node_has_none(tmp_path):
    async with shelf(tmp_path, 2) as it:
        await it.add("a")
        await it.add("b")
        it.residency.idle_rules = idle_rules(
            node_pb2.WantedState(
                versions=[
                    node_pb2.WantedVersion(model="a", digest="sha256:a1", idle_unload_s=10.0),
                    node_pb2.WantedVersion(model="b", digest="sha256:b1"),
                ]
            )
        )
        it.now += 1000
        await it.residency.unload_idle()
        assert it.here == {"b"}


async def test_what_an_operator_unloads_stays_out_until_it_is_loaded(tmp_path):
    async with shelf(tmp_path, 2) as it:
        replica = await it.add("a")
        await it.residency.unload(replica)
        assert (it.here, replica.ready) == (set(), False)
        with pytest.raises(NotReady, match="'a' is unloaded by an operator on this node"):
            await replica.infer(INPUT)
        # A version that comes later stays out as well, proven.
        later = await it.add("a", version="2")
        assert (later.active, later.ready, later.tally.loads) == (False, False, 1)
        await it.residency.load(later)
        assert later.active and later.ready
        await it.use("a2")
        assert not replica.active
        await it.residency.load(replica)
        await it.use("a")


async def test_a_version_that_is_closed_frees_its_place(tmp_path):
    async with shelf(tmp_path, 1) as it:
        await it.add("a")
        await it.replicas["a"].close()
        assert it.residency.used_bytes == 0
        await it.add("b")
        assert it.replicas["a"].tally.evictions == 0


@pytest.mark.parametrize(("grown", "kept"), [(0, 4 * MIB), (-MIB, 4 * MIB), (7 * MIB, 7 * MIB), (999 * MIB, 32 * MIB)])
def test_a_footprint_is_what_was_measured_within_reason(grown, kept):
    footprint = Footprint()
    footprint.weights_bytes = 4 * MIB
    assert (footprint.needed_bytes, footprint.loaded_bytes) == (9 * MIB, 0)
    footprint.measured(grown)
    # Later loads find memory to reuse, and say less.
    footprint.measured(0)
    assert footprint.needed_bytes == footprint.loaded_bytes == kept


def test_a_package_may_say_what_it_takes():
    footprint = Footprint(50 * MIB)
    assert (footprint.needed_bytes, footprint.loaded_bytes) == (50 * MIB, 0)
    footprint.measured(MIB)
    assert footprint.loaded_bytes == 50 * MIB


def test_weights_are_those_that_one_node_loads(tmp_path):
    plain = package("p", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)])
    assert weights_bytes(tmp_path, plain) == 0
    for file, size in (("fp32.onnx", 100), ("int8.onnx", 30), ("one.fp32.onnx", 7), ("two.fp32.onnx", 5)):
        (tmp_path / file).write_bytes(bytes(size))
    source = Source(path="x.onnx")
    both = (Variant(name="fp32", source=source), Variant(name="int8", source=source))
    assert weights_bytes(tmp_path, package("p", plain.inputs, plain.outputs, variants=both)) == 100
    made = (Quantize(variant="int8", kind="int8-dynamic"),)
    assert weights_bytes(tmp_path, package("p", plain.inputs, plain.outputs, quantize=made)) == 100
    steps = (Step(name="one"), Step(name="two"))
    each = tuple(Variant(name="fp32", source=source, step=step.name) for step in steps)
    assert weights_bytes(tmp_path, package("p", plain.inputs, plain.outputs, variants=each, steps=steps)) == 12


def test_the_budget_is_a_share_of_the_machine_unless_said():
    assert budget(100) == 100 * MIB
    assert 64 * MIB < budget(0) < 2**50


@pytest.mark.parametrize("key", ["memory_budget_mib", "idle_unload_s", "drain_s"])
def test_a_node_s_settings_are_not_below_nothing(tmp_path, key):
    with pytest.raises(InvalidInput, match=key):
        NodeConfig(data=tmp_path, **{key: -1})


@pytest.mark.parametrize("standing_is_used", [True, False])
async def test_a_trial_never_pushes_the_standing_version_out(tmp_path, monkeypatch, standing_is_used):
    monkeypatch.setattr(residencies, "PATIENCE_S", 0.0)
    async with shelf(tmp_path, 1) as it:
        standing = await it.add("a")
        if standing_is_used:
            standing.holds.take()
        with pytest.raises(ConfigError) as caught:
            await it.add("a", version="2", on_trial=True)
        assert caught.value.message == (
            "'a' version 2 does not fit beside the standing version: it needs about 10.0 MiB, and of the 10.0 MiB that "
            "this node gives its models 10.0 MiB are in use; raise `memory_budget_mib` in node.toml, or let it take "
            "over without a trial"
        )
        assert it.here == {"a"} and it.order == ["a"]
        # As a successor it may.
        standing.holds.give_back() if standing_is_used else None
        await it.add("a", version="2")
        assert it.here == {"a2"}


async def test_a_trial_takes_the_place_of_what_nobody_uses_and_of_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(residencies, "PATIENCE_S", 0.0)
    async with shelf(tmp_path, 2) as it:
        await it.add("a")
        other = await it.add("b")
        gate = it.engines["b"][0]
        gate.open.clear()
        under_way = asyncio.create_task(other.infer(INPUT))
        await gate.entered()
        with pytest.raises(ConfigError, match="does not fit beside"):
            await it.add("a", version="2", on_trial=True)
        gate.open.set()
        await under_way
        await it.add("a", version="2", on_trial=True)
        assert it.here == {"a", "a2"}


async def test_a_trial_that_turns_out_larger_than_it_was_said_to_be_does_not_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(Footprint, "needed_bytes", property(lambda self: MIB))
    async with shelf(tmp_path, 2) as it:
        await it.add("a")
        with pytest.raises(
            ConfigError, match=r"it needs about 15\.0 MiB, and of the 20\.0 MiB .* 10\.0 MiB are in use"
        ):
            await it.add("a", 15, version="2", on_trial=True)
        assert it.here == {"a"} and it.residency.used_bytes == 10 * MIB
