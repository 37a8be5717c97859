"""The router over real registry facts: who is a candidate, in which order, at which address."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.config import EndpointOverride
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.routing import router as routers
from nearmesh_controlplane.routing.router import Decision
from nearmesh_controlplane.routing.snapshots import Snapshots

from nearmesh.errors import NotFound
from nearmesh.package import RoutePolicy
from nearmesh.routing import HYSTERESIS
from nearmesh.snapshot import SnapshotRoutes
from nearmesh.v1 import node_pb2
from tests.control_plane_state import LEASE_S, State, replica, state

EUROPE, AMERICA, ASIA = "europe-west1", "us-east1", "asia-northeast1"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    """A node in each region that serves model m, equally fast at equal prices."""
    overrides = [
        EndpointOverride(client_region=EUROPE, node="us", address="127.0.0.1:1"),
        EndpointOverride(client_region=EUROPE, node="us", address="127.0.0.1:2", listener="mesh"),
    ]
    async with state(tmp_path, overrides) as found:
        await found.publish("m")
        for name, region in (("eu", EUROPE), ("us", AMERICA), ("asia", ASIA)):
            await found.node(name, region, hardware="h")
            await found.reports(name, replica())
        yield found


# Round trips from Europe, milliseconds.
QUIET = {"eu": 1.0, "us": 93.0, "asia": 230.0}


def measured(mesh: State, region: str = EUROPE) -> None:
    """A gateway of the region has measured the ways: by distance alone none but the nearest is surely in time."""
    for node, quiet_ms in QUIET.items():
        report(mesh, node, *[quiet_ms] * 9, region=region)
    mesh.changes.bump()


def report(mesh: State, node: str, *samples_ms: float, region: str = EUROPE) -> None:
    mesh.latencies.report(region, node, samples_ms, kind="gateway", reporter="door", now_s=mesh.clock.now_s)


def order(decision: Decision) -> list[str]:
    return [ranked.candidate.node for ranked in decision.ranking]


def why(decision: Decision, node: str) -> str:
    return next(ranked.why for ranked in decision.ranking if ranked.candidate.node == node)


@pytest.mark.parametrize(("region", "nearest"), [(EUROPE, "eu"), (AMERICA, "us"), (ASIA, "asia")])
async def test_each_region_has_its_nearest(mesh: State, region: str, nearest: str) -> None:
    assert order(mesh.router.decide("m", region, "nearest"))[0] == nearest
    assert mesh.router.table(region, "public").nearest[0].node == nearest


async def test_the_cheapest_in_time_and_a_price_that_moves_it(mesh: State) -> None:
    measured(mesh)
    assert order(mesh.router.decide("m", EUROPE))[0] == "eu"
    await mesh.registry.set_price("us", 1 - HYSTERESIS / 2)
    assert order(mesh.router.decide("m", EUROPE))[0] == "eu"
    await mesh.registry.set_price("us", 0.5)
    assert order(mesh.router.decide("m", EUROPE))[0] == "us"
    # Too far away to be in time, it wins nothing by its price.
    await mesh.catalog.set_policy("m", "", 50.0)
    assert order(mesh.router.decide("m", EUROPE))[0] == "eu"
    assert why(mesh.router.decide("m", EUROPE), "us").startswith("too late")


async def test_the_present_choice_is_kept_for_each_region_and_objective_by_itself(mesh: State) -> None:
    measured(mesh)
    await mesh.registry.set_price("us", 0.5)
    assert order(mesh.router.decide("m", EUROPE))[0] == "us"
    await mesh.registry.set_price("us", 1 + HYSTERESIS / 2)
    assert order(mesh.router.decide("m", EUROPE))[0] == "us"
    assert order(mesh.router.decide("m", ASIA))[0] == "asia"
    assert order(mesh.router.decide("m", EUROPE, "cheapest"))[0] == "us"
    assert order(mesh.router.decide("m", EUROPE, "nearest"))[0] == "eu"
    assert why(mesh.router.decide("m", EUROPE), "eu") == "cheaper by under 6%, which does not move traffic"


async def test_a_new_leader_goes_on_from_what_the_one_before_decided(mesh: State, tmp_path: Path) -> None:
    measured(mesh)
    await mesh.registry.set_price("us", 0.5)
    assert order(mesh.router.decide("m", EUROPE))[0] == "us"
    await mesh.registry.set_price("us", 1 + HYSTERESIS / 2)
    authority = Authority.open("mesh", tmp_path / "authority")
    snapshots = Snapshots(
        authority, mesh.registry, mesh.catalog, mesh.router, mesh.residency, mesh.changes, 60.0, clock=mesh.clock
    )
    await snapshots.refresh()
    gatherer = mesh.router._gatherer
    new = routers.Router("mesh", mesh.registry, mesh.catalog, gatherer, mesh.changes, [], clock=mesh.clock)
    assert order(new.decide("m", EUROPE))[0] == "eu", "without it there is a choice to make, and nothing to test"
    new.resume(SnapshotRoutes(snapshots.present))
    assert order(new.decide("m", EUROPE))[0] == "us"
    assert order(new.decide("m", ASIA))[0] == "asia"


async def test_a_policy_is_the_default_and_a_call_may_ask_otherwise(mesh: State) -> None:
    await mesh.catalog.set_policy("m", "nearest", 100.0)
    decision = mesh.router.decide("m", EUROPE)
    assert (decision.objective, decision.deadline_ms) == ("nearest", 100.0)
    assert mesh.router.decide("m", EUROPE, "cheapest").objective == "cheapest"
    assert mesh.router.table(EUROPE, "public").models["m"].default_objective == "nearest"


async def test_whose_session_broke_is_tried_last_and_then_not_at_all(mesh: State) -> None:
    mesh.registry.session_closed("eu")
    decision = mesh.router.decide("m", EUROPE, "nearest")
    assert order(decision) == ["us", "asia", "eu"]
    assert why(decision, "eu") == "tried last: its session just broke"
    endpoints = mesh.router.table(EUROPE, "public")
    assert [e.node for e in endpoints.models["m"].by_objective["nearest"]] == ["us", "asia", "eu"]
    assert [e.node for e in endpoints.nearest] == ["us", "asia", "eu"]
    mesh.clock.now_s += LEASE_S
    mesh.registry.expire()
    decision = mesh.router.decide("m", EUROPE, "nearest")
    assert why(decision, "eu") == "not ready: its session with the control plane is gone"
    endpoints = mesh.router.table(EUROPE, "public")
    assert [e.node for e in endpoints.models["m"].by_objective["nearest"]] == ["us", "asia"]
    assert [e.node for e in endpoints.nearest] == ["us", "asia"]


async def test_when_all_sessions_broke_all_are_still_tried(mesh: State) -> None:
    """As after a restart of the control plane: an empty answer would stop what goes well without it."""
    for name in ("eu", "us", "asia"):
        mesh.registry.session_closed(name)
    assert order(mesh.router.decide("m", AMERICA, "nearest"))[0] == "us"
    assert len(mesh.router.table(AMERICA, "public").models["m"].by_objective["nearest"]) == 3


async def test_when_the_control_plane_lost_everyone_the_routes_stay(mesh: State) -> None:
    await mesh.registry.drain("asia", undo=False)
    for node in ("eu", "us", "asia"):
        mesh.registry.session_closed(node)
    mesh.clock.now_s += 100 * LEASE_S
    mesh.registry.expire()
    endpoints = mesh.router.table(EUROPE, "public")
    assert [e.node for e in endpoints.models["m"].by_objective["nearest"]] == ["eu", "us"]
    assert [e.node for e in endpoints.nearest] == ["eu", "us"]
    assert why(mesh.router.decide("m", EUROPE), "eu").startswith("tried last: its session is gone")
    # One that comes back has all the traffic again.
    mesh.registry.session_opened("us")
    assert [e.node for e in mesh.router.table(EUROPE, "public").models["m"].by_objective["nearest"]] == ["us"]


async def test_a_model_keeps_the_nodes_it_had_while_others_of_other_models_are_live(mesh: State) -> None:
    await mesh.publish("other")
    await mesh.reports("asia", replica("other"))
    for node in ("eu", "us"):
        mesh.registry.session_closed(node)
    mesh.clock.now_s += 100 * LEASE_S
    mesh.registry.expire()
    models = mesh.router.table(EUROPE, "public").models
    assert [e.node for e in models["m"].by_objective["nearest"]] == ["eu", "us"]
    assert [e.node for e in models["other"].by_objective["nearest"]] == ["asia"]
    decision = mesh.router.decide("m", EUROPE)
    assert why(decision, "eu") == "tried last: its session is gone, but no live node serves this model"
    assert why(decision, "asia").endswith("it has no replica of this model")


async def test_a_draining_node_is_out_by_its_own_word_or_the_operators(mesh: State) -> None:
    await mesh.reports("eu", replica(), draining=True)
    await mesh.registry.drain("us", undo=False)
    decision = mesh.router.decide("m", EUROPE, "nearest")
    assert [(r.candidate.node, r.candidate.ready) for r in decision.ranking] == [
        ("asia", True),
        ("eu", False),
        ("us", False),
    ]
    assert why(decision, "us") == "not ready: it is being drained"
    assert [e.node for e in mesh.router.table(EUROPE, "mesh").nearest] == ["asia"]


async def test_a_removed_node_is_not_even_mentioned(mesh: State) -> None:
    await mesh.registry.remove("eu")
    assert order(mesh.router.decide("m", EUROPE, "nearest")) == ["us", "asia"]


async def test_a_replica_that_is_not_ready_says_why(mesh: State) -> None:
    await mesh.reports("eu", replica(state=node_pb2.REPLICA_STATE_FAILED, detail="WARMUP_FAILED: off by one"))
    await mesh.reports("us", replica(state=node_pb2.REPLICA_STATE_LOADING))
    await mesh.reports("asia")
    decision = mesh.router.decide("m", EUROPE)
    assert why(decision, "eu") == "not ready: WARMUP_FAILED: off by one"
    assert why(decision, "us") == why(decision, "asia") == "not ready: it has no replica of this model"
    assert mesh.router.table(EUROPE, "public").models["m"].by_objective["nearest"] == ()


async def test_twins_share_their_speed_so_that_the_price_decides(mesh: State) -> None:
    """The median over like machines: one disturbed stopwatch moves nobody."""
    for name, per_second in (("eu", 10.0), ("us", 1.0), ("asia", 12.0)):
        await mesh.reports(name, replica(per_second=per_second))
    prices = {r.candidate.node: r.candidate.usd_per_1000 for r in mesh.router.decide("m", EUROPE).ranking}
    assert prices == dict.fromkeys(("eu", "us", "asia"), pytest.approx(1000 / 36000))


async def test_the_speed_that_a_plan_reckons_with_is_told(mesh: State) -> None:
    await mesh.reports("us", replica(per_second=14.0))
    await mesh.reports("asia")
    speeds = {node: mesh.router.speed("m", node) for node in ("eu", "us", "asia", "nobody")}
    assert speeds == {"eu": 14.0, "us": 14.0, "asia": 0.0, "nobody": 0.0}
    assert mesh.router.speed("no-model", "eu") == 0.0


async def test_other_hardware_and_other_variants_have_their_own_speed(mesh: State) -> None:
    await mesh.node("gpu", EUROPE, hardware="h200")
    await mesh.reports("gpu", replica(per_second=1000.0))
    await mesh.reports("asia", replica(per_second=100.0, variant="int8"))
    await mesh.node("new", EUROPE, hardware="unknown")
    await mesh.reports("new", replica(per_second=0.0))
    prices = {r.candidate.node: r.candidate.usd_per_1000 for r in mesh.router.decide("m", EUROPE).ranking}
    assert prices["gpu"] == pytest.approx(prices["eu"] / 100)
    assert prices["asia"] == pytest.approx(prices["eu"] / 10)
    assert prices["new"] == math.inf


async def test_the_deployed_version_is_the_one_that_counts_while_two_are_ready(mesh: State) -> None:
    await mesh.publish("m", "2")
    await mesh.reports("eu", replica(service_ms=5.0), replica(version="2", service_ms=50.0))
    for version, service_ms in (("1", 5.0), ("2", 50.0)):
        await mesh.catalog.deploy("m", version, (), "tester")
        (eu,) = [r.candidate for r in mesh.router.decide("m", EUROPE).ranking if r.candidate.node == "eu"]
        assert eu.service_ms_p95 == service_ms


async def test_overrides_are_for_one_region_and_one_listener(mesh: State) -> None:
    def addresses(region: str, listener: routers.Listener) -> dict[str, str]:
        return {e.node: e.address for e in mesh.router.table(region, listener).nearest}

    assert addresses(EUROPE, "public") == {"eu": "eu:8001", "us": "127.0.0.1:1", "asia": "asia:8001"}
    assert addresses(EUROPE, "mesh") == {"eu": "eu:8003", "us": "127.0.0.1:2", "asia": "asia:8003"}
    assert addresses(ASIA, "public")["us"] == "us:8001"
    assert mesh.router.server_name("us") == "us.mesh"


async def test_measured_round_trips_change_the_order(mesh: State) -> None:
    report(mesh, "asia", *[1.0] * 3)
    report(mesh, "eu", *[80.0] * 3)
    mesh.changes.bump()
    decision = mesh.router.decide("m", EUROPE, "nearest")
    assert order(decision)[0] == "asia"
    assert decision.ranking[0].candidate.network_measured
    assert mesh.router.table(EUROPE, "public").nearest[0].node == "asia"


# One report a second, and strays that would be too late.
STRAY_MS = 900.0
STRAYS: list[tuple[str, dict[str, set[int]]]] = [
    ("none", {}),
    ("the choice's first sample", {"us": {0}}),
    ("the choice's third sample", {"us": {2}}),
    ("everyone's second sample", {"eu": {1}, "us": {1}, "asia": {1}}),
    ("now and then", {"us": {20}, "eu": {4, 25}, "asia": {0, 12}}),
]


@pytest.mark.parametrize(("what", "strays"), STRAYS, ids=[case[0] for case in STRAYS])
async def test_strays_among_few_samples_move_no_traffic(mesh: State, what: str, strays: dict[str, set[int]]) -> None:
    measured(mesh)
    await mesh.registry.set_price("us", 0.5)
    chosen = [order(mesh.router.decide("m", EUROPE))[0]]
    for second in range(60):
        mesh.clock.now_s += 1
        for node, quiet_ms in QUIET.items():
            sample = STRAY_MS if second in strays.get(node, ()) else quiet_ms
            report(mesh, node, sample)
        mesh.changes.bump()
        chosen.append(order(mesh.router.decide("m", EUROPE))[0])
    assert set(chosen) == {"us"}


async def test_a_way_that_became_slow_is_left_within_seconds_and_once(mesh: State) -> None:
    measured(mesh)
    await mesh.registry.set_price("us", 0.5)
    chosen = []
    for second in range(40):
        mesh.clock.now_s += 1
        for node, quiet_ms in QUIET.items():
            sample = STRAY_MS if node == "us" and second >= 20 else quiet_ms
            report(mesh, node, sample)
        mesh.changes.bump()
        chosen.append(order(mesh.router.decide("m", EUROPE))[0])
    # The third sample of 23 proves it.
    assert chosen == ["us"] * 22 + ["eu"] * 18


async def test_who_asks_why_hears_the_decision_that_was_given_out(mesh: State) -> None:
    """Between two looks, new measurements change neither the answer nor what the next decision starts from."""
    await mesh.registry.set_price("us", 0.5)
    table = mesh.router.table(EUROPE, "public")
    given = mesh.router.decide("m", EUROPE)
    report(mesh, "us", *[STRAY_MS] * 9)
    assert mesh.router.decide("m", EUROPE) is given and mesh.router.table(EUROPE, "public") is table
    mesh.changes.drift()
    mesh.changes.tick()
    assert order(mesh.router.decide("m", EUROPE))[0] == "eu"
    assert mesh.router.table(EUROPE, "public").models["m"].by_objective["cheapest-in-time"][0].node == "eu"


async def test_a_plan_for_a_new_region_has_a_number_of_its_own_and_all_are_told(mesh: State) -> None:
    """Everybody's requests are placed anew with it: a receipt of the plan before must not pass for one of this plan."""
    before = mesh.router.decide("m", EUROPE)
    there = mesh.router.decide("m", "mars-1")
    after = mesh.router.decide("m", EUROPE)
    assert before.generation < there.generation == after.generation == mesh.changes.value
    assert await mesh.router.changed(before.generation) == after.generation
    assert mesh.router.decide("m", "mars-1") is there, "once it is known, nothing changes"


async def test_a_table_is_made_once_for_each_change(mesh: State) -> None:
    table = mesh.router.table(EUROPE, "public")
    assert mesh.router.table(EUROPE, "public") is table
    assert mesh.router.table(EUROPE, "mesh") is not table
    mesh.changes.bump()
    again = mesh.router.table(EUROPE, "public")
    assert again is not table and again == table
    assert await mesh.router.changed(0) == mesh.changes.value


async def test_a_model_nobody_published_is_not_found_and_one_nobody_serves_is_explained(mesh: State) -> None:
    with pytest.raises(NotFound, match="no model 'x'; published are m"):
        mesh.router.decide("x", EUROPE)
    await mesh.publish("idle", policy=RoutePolicy(objective="nearest"))
    decision = mesh.router.decide("idle", EUROPE)
    assert not any(ranked.candidate.ready for ranked in decision.ranking)
    assert len(decision.ranking) == 3


async def test_what_clients_name_fills_no_memory(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routers, "MAX_DECISIONS", 5)
    monkeypatch.setattr(routers, "MAX_ASKED_REGIONS", 3)
    for number in range(40):
        mesh.router.decide("m", f"region-{number}")
        mesh.router.table(f"region-{number}", "public")
    last = mesh.router.table("region-39", "public")
    assert last.region == "region-39" and [e.node for e in last.nearest] == ["asia", "eu", "us"]
    assert len(mesh.router.plan.regions) == 3 + 3 + 1
    assert len(mesh.router._decisions) <= 5 and len(mesh.router._made) <= 4 * 3 + 1
    mesh.changes.bump()
    mesh.router.table(EUROPE, "public")
    assert len({key[0] for key in mesh.router._tables._rows}) <= 4 * 3 + 1 + 3


async def test_a_rule_of_residency_holds_however_many_regions_clients_name(
    mesh: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routers, "MAX_ASKED_REGIONS", 2)
    for number in range(5):
        mesh.router.decide("m", f"region-{number}")
    assert len(mesh.router.table("bound", "public").nearest) == 3
    await mesh.residency.set("bound", [ASIA])
    for objective in routers.OBJECTIVES:
        decision = mesh.router.decide("m", "bound", routers.parse_objective(objective))
        assert [r.candidate.node for r in decision.ranking if r.candidate.ready] == ["asia"]
        assert [r.candidate.node for r in mesh.router.best("m", "bound", decision.objective, 16)] == ["asia"]
    table = mesh.router.table("bound", "public")
    assert [e.node for e in table.nearest] == ["asia"]
    assert {e.node for route in table.models["m"].by_objective.values() for e in route} == {"asia"}
    assert len(mesh.router.table("region-4", "public").nearest) == 3


async def test_calls_without_a_model_have_nowhere_to_go_where_a_rule_leaves_nobody(mesh: State) -> None:
    await mesh.residency.set(EUROPE, ["africa-south1"])
    assert mesh.router.table(EUROPE, "mesh").nearest == ()


async def test_a_region_that_nobody_asks_for_any_more_makes_room(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routers, "MAX_ASKED_REGIONS", 2)
    for region in ("a", "b", "c"):
        mesh.router.decide("m", region)
    assert {"a", "b"} <= mesh.router.plan.regions.keys() and "c" not in mesh.router.plan.regions
    mesh.clock.now_s += routers.ASKED_FOR_S - 1
    mesh.router.decide("m", "b")
    mesh.clock.now_s += 1
    mesh.router.decide("m", "c")
    assert {"b", "c"} <= mesh.router.plan.regions.keys() and "a" not in mesh.router.plan.regions
