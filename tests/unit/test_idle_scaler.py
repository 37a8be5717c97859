"""Models that nobody asks for, over a control plane's memory and nodes that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.idle import scaler
from nearmesh_controlplane.idle.book import LEAVES_AFTER_S, IdleBook
from nearmesh_controlplane.idle.scaler import REPLACE_AFTER_S, Scaler
from nearmesh_controlplane.idle.store import take_package
from nearmesh_controlplane.registry.wanted import wanted_state

from nearmesh.errors import InvalidInput, NotFound
from nearmesh.package import Idle
from nearmesh.v1 import node_pb2 as pb
from tests.control_plane_state import State, digest_of, state

REGIONS = {"a": "europe-west1", "b": "europe-west1", "c": "us-east1"}
AFTER_S = 30.0


class Nodes:
    """Three nodes that have what they should a second later, and the requests that they get."""

    def __init__(self, plane: State) -> None:
        self.plane = plane
        self.scaler = scaler_of(plane)
        # By node: since when it has the model, when it was asked last, and how often.
        self.has: dict[str, float] = {}
        self.asked_s: dict[str, float] = {}
        self.answered = dict.fromkeys(REGIONS, 0)
        self.waiting = dict.fromkeys(REGIONS, 0)
        self.away: set[str] = set()
        self.failing: set[str] = set()
        self.seen: list[tuple[str, ...]] = []

    def wanted(self, node: str) -> bool:
        return bool(told(self.plane, node).versions)

    def request(self, node: str) -> None:
        assert node in self.has
        self.answered[node] += 1
        self.asked_s[node] = self.plane.clock.now_s

    async def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.plane.clock.now_s += 1.0
            self.plane.wall.now_s += 1.0
            for node in REGIONS.keys() - self.away:
                await self._second(node)
            await self.scaler.look()
            if not self.seen or self.seen[-1] != self.serving:
                self.seen.append(self.serving)

    async def _second(self, node: str) -> None:
        now_s = self.plane.clock.now_s
        if not self.wanted(node):
            self.has.pop(node, None)
            self.answered[node] = 0
        elif node not in self.has:
            self.has[node] = self.asked_s[node] = now_s
        replicas = [self._replica(node)] if node in self.has else []
        status = pb.NodeStatus(replicas=replicas, held=[digest_of("m", "1")])
        await self.plane.registry.status(node, status)
        self.plane.measurements.node_status(node, status)

    def _replica(self, node: str) -> pb.ReplicaStatus:
        return pb.ReplicaStatus(
            model="m",
            digest=digest_of("m", "1"),
            state=pb.REPLICA_STATE_FAILED if node in self.failing else pb.REPLICA_STATE_READY,
            variant="fp32",
            service_ms_p50=5.0,
            service_ms_p95=5.0,
            inferences_per_second=100.0,
            answered=self.answered[node],
            idle_s=self.plane.clock.now_s - self.asked_s[node],
            load_ms={"a": 400.0, "b": 300.0, "c": 500.0}[node],
            waiting=self.waiting[node],
        )

    @property
    def serving(self) -> tuple[str, ...]:
        return tuple(sorted(self.has))

    def routed(self, region: str = "europe-west1") -> set[str]:
        return {r.candidate.node for r in self.plane.router.decide("m", region).ranking if r.candidate.ready}


def scaler_of(plane: State) -> Scaler:
    return Scaler(
        plane.idle,
        plane.registry,
        plane.catalog,
        plane.measurements,
        plane.residency,
        plane.router,
        Audit(plane.db),
        lambda model: False,
        clock=plane.clock,
        wall=plane.wall,
    )


def told(plane: State, node: str) -> pb.WantedState:
    return wanted_state(
        node,
        plane.registry,
        plane.catalog,
        jwks_json="",
        registry_url="",
        kept=plane.idle.wanted,
        unload_after_s=lambda model: plane.idle.policy(model).unload_after_s,
    )


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Model m on three nodes; it may be given up after a minute."""
    async with state(tmp_path) as plane:
        await plane.publish("m")
        for node, region in REGIONS.items():
            await plane.node(node, region)
        await plane.catalog.deploy("m", "1", (), "me")
        plane.wall.now_s = plane.catalog.deployments("m")[0].created_at_s
        await plane.idle.set_policy("m", scale_to_zero_after_s=AFTER_S)
        found = Nodes(plane)
        await found.pass_s(2)
        assert found.serving == ("a", "b", "c")
        yield found


async def asleep(nodes: Nodes) -> None:
    await nodes.pass_s(2 * AFTER_S)


async def test_replicas_leave_all_nodes_but_the_one_that_loads_fastest(nodes: Nodes) -> None:
    await nodes.pass_s(AFTER_S - 3)
    assert nodes.routed() == {"a", "b", "c"}
    await nodes.pass_s(5)
    assert nodes.routed() == {"b"}
    await asleep(nodes)
    assert nodes.serving == ("b",) and nodes.routed("us-east1") == {"b"}
    # Each once: nothing flaps.
    assert nodes.seen == [("a", "b", "c"), ("b",)]
    entry = nodes.plane.idle.entry("m")
    assert entry.nodes == ("b",) and entry.since_s > 0


async def test_the_routes_leave_a_node_before_the_replica_does(nodes: Nodes) -> None:
    while nodes.routed() != {"b"}:
        await nodes.pass_s(1)
    assert nodes.serving == ("a", "b", "c")
    await nodes.pass_s(LEAVES_AFTER_S - 2)
    assert nodes.serving == ("a", "b", "c")
    await nodes.pass_s(4)
    assert nodes.serving == ("b",)


async def test_a_request_a_minute_keeps_it_and_a_single_one_does_not_bring_the_others_back(nodes: Nodes) -> None:
    for _ in range(5):
        await nodes.pass_s(AFTER_S - 5)
        nodes.request("c")
    assert nodes.serving == ("a", "b", "c")
    await asleep(nodes)
    for _ in range(4):
        nodes.request("b")
        await nodes.pass_s(50)
    assert nodes.seen == [("a", "b", "c"), ("b",)]


async def test_requests_that_follow_each_other_bring_all_back(nodes: Nodes) -> None:
    await asleep(nodes)
    for _ in range(3):
        nodes.request("b")
        await nodes.pass_s(1)
    await nodes.pass_s(2)
    assert nodes.serving == ("a", "b", "c") and nodes.routed() == {"a", "b", "c"}
    # They stay as long as the policy says, also those that nobody asks.
    await nodes.pass_s(AFTER_S - 10)
    assert nodes.seen[-1] == ("a", "b", "c")
    await asleep(nodes)
    assert nodes.seen == [("a", "b", "c"), ("b",), ("a", "b", "c"), ("b",)]


async def test_a_queue_at_the_one_that_keeps_it_brings_all_back(nodes: Nodes) -> None:
    await asleep(nodes)
    nodes.waiting["b"] = 3
    await nodes.pass_s(3)
    assert nodes.serving == ("a", "b", "c")


async def test_with_nobody_who_keeps_it_a_client_s_question_brings_it_back_where_it_is_soonest(nodes: Nodes) -> None:
    await nodes.plane.idle.set_policy("m", keep=0)
    await asleep(nodes)
    assert nodes.serving == () and nodes.routed() == set()
    # Europe's clients are nearest to b, which loads it in 300 ms; the network comes on top.
    assert 300 < await nodes.scaler.ask("m", "europe-west1") < 400
    assert nodes.routed() == set()
    # Whoever asks meanwhile waits for the same node.
    assert 100 <= await nodes.scaler.ask("m", "us-east1") < 500
    await nodes.pass_s(2)
    assert nodes.serving == ("b",) and nodes.routed() == {"b"}
    await nodes.pass_s(AFTER_S - 10)
    assert nodes.serving == ("b",)
    await asleep(nodes)
    assert nodes.seen == [("a", "b", "c"), (), ("b",), ()]


async def test_a_client_whose_region_is_bound_gets_a_node_that_may_answer_it(nodes: Nodes) -> None:
    await nodes.plane.residency.set("us-east1", ["us-east1"])
    await asleep(nodes)
    assert nodes.serving == ("b", "c") and nodes.routed("us-east1") == {"c"}
    await nodes.plane.idle.set_policy("m", keep=0)
    await asleep(nodes)
    assert nodes.serving == ()
    assert await nodes.scaler.ask("m", "us-east1") > 500
    await nodes.pass_s(2)
    assert nodes.serving == ("c",)
    await nodes.plane.residency.set("asia-east1", ["asia-east1"])
    assert await nodes.scaler.ask("m", "asia-east1") == 0


async def test_nobody_is_brought_back_who_is_awake(nodes: Nodes) -> None:
    assert await nodes.scaler.ask("m", "europe-west1") == 0


async def test_another_node_keeps_it_when_the_one_that_does_is_gone_for_long(nodes: Nodes) -> None:
    await asleep(nodes)
    nodes.away.add("b")
    nodes.plane.registry.session_closed("b")
    await nodes.pass_s(REPLACE_AFTER_S - 5)
    assert nodes.plane.idle.kept("m") == {"b"}
    await nodes.pass_s(30)
    assert nodes.plane.idle.kept("m") == {"a"}


async def test_one_that_cannot_load_it_is_replaced_and_not_asked_again(nodes: Nodes) -> None:
    await asleep(nodes)
    nodes.failing.add("b")
    await nodes.pass_s(REPLACE_AFTER_S - 5)
    assert nodes.plane.idle.kept("m") == {"b"}
    await nodes.pass_s(20)
    assert nodes.plane.idle.kept("m") == {"a"} and nodes.serving == ("a",)
    nodes.away.add("a")
    nodes.plane.registry.session_closed("a")
    await nodes.pass_s(REPLACE_AFTER_S + 15)
    assert nodes.plane.idle.kept("m") == {"c"}


async def test_a_client_does_not_wait_for_one_that_cannot_load_it(nodes: Nodes) -> None:
    await nodes.plane.idle.set_policy("m", keep=0)
    await asleep(nodes)
    nodes.failing.add("b")
    await nodes.scaler.ask("m", "europe-west1")
    await nodes.pass_s(2)
    assert nodes.routed() == set()
    assert 400 < await nodes.scaler.ask("m", "europe-west1") < 500
    await nodes.pass_s(2)
    assert nodes.routed() == {"a"}


async def test_clients_who_ask_at_once_get_one_node(nodes: Nodes) -> None:
    await nodes.plane.idle.set_policy("m", keep=0)
    await asleep(nodes)
    regions = ("europe-west1", "us-east1") * 5
    await asyncio.gather(nodes.scaler.look(), *(nodes.scaler.ask("m", region) for region in regions))
    assert nodes.plane.idle.kept("m") == {"b"}


async def test_another_node_keeps_it_when_the_one_that_does_is_drained(nodes: Nodes) -> None:
    await asleep(nodes)
    await nodes.plane.registry.drain("b", undo=False)
    await nodes.pass_s(3)
    assert nodes.routed() == {"a"}


async def test_a_new_deployment_wakes_it(nodes: Nodes) -> None:
    await asleep(nodes)
    await nodes.plane.catalog.deploy("m", "1", (), "me")
    await nodes.pass_s(2)
    assert nodes.serving == ("a", "b", "c")
    await nodes.pass_s(AFTER_S - 10)
    assert nodes.serving == ("a", "b", "c")


async def test_it_stays_asleep_over_a_restart_of_the_control_plane(nodes: Nodes) -> None:
    await asleep(nodes)
    again = IdleBook(nodes.plane.db, nodes.plane.changes, nodes.plane.catalog, nodes.plane.wall)
    await again.restore()
    assert again.kept("m") == {"b"} and again.entry("m") == nodes.plane.idle.entry("m")


async def test_one_that_does_not_lead_decides_nothing(nodes: Nodes) -> None:
    nodes.scaler.leads = lambda: False
    await asleep(nodes)
    assert nodes.serving == ("a", "b", "c")
    nodes.scaler.leads = lambda: True
    # Nor one that leads since a moment ago: it has not heard of everybody yet.
    await nodes.pass_s(8)
    assert nodes.plane.idle.kept("m") is None
    await asleep(nodes)
    assert nodes.serving == ("b",)


async def test_taking_the_policy_back_brings_all_back(nodes: Nodes) -> None:
    await asleep(nodes)
    await nodes.plane.idle.set_policy("m", scale_to_zero_after_s=0.0)
    await nodes.pass_s(2)
    assert nodes.serving == ("a", "b", "c")


async def test_what_is_decided_stands_in_the_audit_log(nodes: Nodes) -> None:
    await asleep(nodes)
    await nodes.plane.idle.set_policy("m", scale_to_zero_after_s=0.0)
    await nodes.pass_s(2)
    said = [(entry.action, entry.subject, entry.detail) for entry in await Audit(nodes.plane.db).latest(10)]
    assert ("sleep", "m", "kept by b") in said
    assert any(action == "wake" for action, _, _ in said)


async def test_nodes_are_told_when_a_model_leaves_their_memory(nodes: Nodes) -> None:
    assert [v.idle_unload_s for v in told(nodes.plane, "a").versions] == [0.0]
    await nodes.plane.idle.set_policy("m", unload_after_s=600.0)
    assert [v.idle_unload_s for v in told(nodes.plane, "a").versions] == [600.0]


async def test_an_operator_s_word_outlives_packages(nodes: Nodes) -> None:
    plane = nodes.plane
    own = Idle(unload_after_s=5.0, scale_to_zero_after_s=50.0, keep=2)
    await plane.publish("n")
    await plane.db.run(take_package, "n", own)
    await plane.idle.restore()
    assert plane.idle.policy("n") == own
    await plane.idle.set_policy("n", keep=3)
    await plane.db.run(take_package, "n", Idle())
    await plane.idle.restore()
    assert plane.idle.policy("n") == Idle(unload_after_s=5.0, scale_to_zero_after_s=50.0, keep=3)


@pytest.mark.parametrize(
    "change",
    [
        {"unload_after_s": -1.0},
        {"unload_after_s": float("nan")},
        {"scale_to_zero_after_s": 0.5},
        {"scale_to_zero_after_s": float("inf")},
        {"keep": 100_000},
    ],
)
async def test_a_policy_that_cannot_be_is_refused(nodes: Nodes, change: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=f"idle.{next(iter(change))}"):
        await nodes.plane.idle.set_policy("m", **change)
    assert nodes.plane.idle.policy("m") == Idle(scale_to_zero_after_s=AFTER_S)


async def test_a_model_that_is_not_there_has_no_policy(nodes: Nodes) -> None:
    with pytest.raises(NotFound, match="no model 'x'"):
        await nodes.plane.idle.set_policy("x", keep=1)


async def test_only_a_region_that_may_serve_the_model_keeps_it_or_brings_it_back(nodes: Nodes) -> None:
    await nodes.plane.catalog.set_policy("m", "", 0.0, ("us-east1",))
    await asleep(nodes)
    assert nodes.plane.idle.kept("m") is None, "one node alone may serve it, so there is nothing to give up"
    await nodes.plane.idle.set_policy("m", keep=0)
    await asleep(nodes)
    assert nodes.serving == ()
    assert await nodes.scaler.ask("m", "europe-west1") > 500
    await nodes.pass_s(2)
    assert nodes.serving == ("c",)


async def test_of_many_models_and_nodes_each_has_its_turn(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("n", "o"):
        await nodes.plane.publish(model)
        await nodes.plane.idle.set_policy(model, scale_to_zero_after_s=AFTER_S)
    looked: list[str] = []

    async def look(model: str) -> None:
        looked.append(model)

    monkeypatch.setattr(scaler, "MOST_PLACES", 6)
    monkeypatch.setattr(nodes.scaler, "_decide", look)
    for _ in range(3):
        await nodes.scaler.look()
    assert looked == ["m", "n", "o", "m", "n", "o"]
