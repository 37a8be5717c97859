"""Every node hears why it won or lost, and what it hears is true."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from nearmesh_controlplane.routing.facts import Facts
from nearmesh_controlplane.routing.planner import Planner
from nearmesh_controlplane.routing.reasons import verdicts

from nearmesh.routing import Objective, Ranked, Times, rank
from tests.planned import IN_TIME, MODEL, asked, node, serves, world

NEAR, CHEAP = node("near", 2.0, region="here"), node("cheap", 1.0, region="there", spot=True)
WAYS = {"here": {"near": 2.0, "cheap": 90.0}}


def heard(facts: Facts, *, planner: Planner | None = None, objective: Objective = IN_TIME, now_s: float = 0.0) -> Any:
    plan = (planner or Planner()).plan(facts, now_s, [("here", MODEL, objective)])
    found = verdicts(plan, facts.models[0], plan.blocks.get((MODEL, objective)), "here", {"near": True})
    return {ranked.candidate.node: ranked for ranked in found.ranking}


def words(found: dict[str, Ranked]) -> list[str]:
    return [f"{name}: {ranked.why}" for name, ranked in found.items()]


CASES: list[tuple[str, Facts, Objective, list[str]]] = [
    (
        "a price decides",
        world((NEAR, CHEAP), WAYS),
        IN_TIME,
        ["cheap: cheapest in time: 102 of 200 ms at p95", "near: dearer: $0.005556 against $0.002778 per 1,000"],
    ),
    (
        "the tail decides",
        world((NEAR, CHEAP), WAYS, replicas={"near": serves(), "cheap": serves(10.0, p95_ms=80.0)}),
        IN_TIME,
        [
            "near: cheapest in time: 12 of 200 ms at p95",
            "cheap: too late: 96.1% within 200 ms, 99% are wanted; 280 ms at p99",
        ],
    ),
    (
        "not in memory",
        world((NEAR, CHEAP), WAYS, replicas={"near": serves(), "cheap": serves(load_ms=1234.0)}),
        IN_TIME,
        [
            "near: cheapest in time: 12 of 200 ms at p95",
            "cheap: too late: 0.0% within 200 ms, 99% are wanted; 1337 ms at p99; cold: about 1.2 s to load",
        ],
    ),
    (
        "alone",
        world((NEAR, CHEAP), WAYS, replicas={"near": serves()}),
        IN_TIME,
        ["near: the only node that serves this model now", "cheap: not ready: does not serve this model"],
    ),
    (
        "nearest",
        world((NEAR, CHEAP), WAYS),
        "nearest",
        ["near: nearest: 2.0 ms round trip", "cheap: farther: 90.0 ms against 2.0 ms round trip"],
    ),
    (
        "cheapest",
        world((NEAR, CHEAP), WAYS),
        "cheapest",
        ["cheap: cheapest: $0.002778 per 1,000", "near: dearer: $0.005556 against $0.002778 per 1,000"],
    ),
    (
        "nobody is in time",
        world((NEAR, CHEAP), WAYS, replicas={"near": serves(900.0), "cheap": serves(900.0)}),
        IN_TIME,
        [
            "near: soonest: 0.0% within 200 ms, and no node does better at that",
            "cheap: too late: 0.0% within 200 ms, 99% are wanted; 993 ms at p99",
        ],
    ),
    (
        "a model's rule",
        world((NEAR, CHEAP), WAYS, regions=frozenset({"here"})),
        IN_TIME,
        [
            "near: cheapest in time: 12 of 200 ms at p95",
            "cheap: not ready: the model may only be served in here",
        ],
    ),
    (
        "a client region's rule that leaves nobody",
        world((NEAR, CHEAP), WAYS, residency=lambda region: frozenset({"mars"})),
        IN_TIME,
        [
            "near: not ready: clients of this region may only be answered from mars",
            "cheap: not ready: clients of this region may only be answered from mars",
        ],
    ),
    (
        "a session that broke",
        world((NEAR, dataclasses.replace(CHEAP, standing="suspect")), WAYS),
        IN_TIME,
        ["near: the only node that serves this model now", "cheap: tried last: its session just broke"],
    ),
    (
        "equally cheap",
        world((node("near", region="here"), CHEAP), WAYS),
        IN_TIME,
        ["near: cheapest in time: 12 of 200 ms at p95", "cheap: as cheap: 102 ms against 12 ms at p95"],
    ),
]


@pytest.mark.parametrize(("what", "facts", "objective", "expected"), CASES, ids=[case[0] for case in CASES])
def test_everyone_hears_why(what: str, facts: Facts, objective: Objective, expected: list[str]) -> None:
    assert words(heard(facts, objective=objective)) == expected


def test_who_is_full_says_that_others_need_it_more() -> None:
    ways = {"here": {"near": 2.0, "cheap": 90.0}, "away": {"near": 150.0, "cheap": 2.0}}
    found = heard(world((NEAR, CHEAP), ways, demand=asked(here=20.0, away=85.0)))
    assert found["near"].why.startswith("cheapest in time with room: ")
    assert found["cheap"].why == "cheaper, but full: its room goes to those whose next choice costs them more"


@pytest.mark.parametrize("objective", ["cheapest", "nearest"])
def test_who_takes_what_a_better_node_has_no_room_for_says_so(objective: Objective) -> None:
    facts = world((NEAR, CHEAP), WAYS, demand={("here", MODEL, objective): 150.0}, objective=objective)
    found = heard(facts, objective=objective)
    second = {"cheapest": "near", "nearest": "cheap"}[objective]
    assert f"{objective} with room: " in found[second].why
    assert f"{objective}: " in found["near" if second == "cheap" else "cheap"].why


def test_traffic_that_is_split_and_on_its_way_says_how_much_and_where_to() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=60.0)), Planner()
    heard(facts, planner=planner)
    (near, cheap) = facts.nodes
    cheaper = dataclasses.replace(facts, nodes=(dataclasses.replace(near, usd_per_hour=0.1), cheap))
    found = heard(cheaper, planner=planner, now_s=1.0)
    assert 0.0 < found["near"].candidate.share < 0.6
    share = f"{found['near'].candidate.share:.0%}"
    assert found["near"].why.startswith(f"{share} of this region's requests: cheapest in time")
    assert found["near"].why.endswith("; on its way to 100%")
    assert found["cheap"].why == "dearer: $0.002778 against $0.0002778 per 1,000; on its way to 0%"


def test_a_small_difference_is_given_as_the_reason_for_staying() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS), Planner()
    heard(facts, planner=planner)
    (near, cheap) = facts.nodes
    closer = dataclasses.replace(facts, nodes=(dataclasses.replace(near, usd_per_hour=0.97), cheap))
    found = heard(closer, planner=planner, now_s=1.0)
    assert next(iter(found)) == "cheap"
    assert found["near"].why == "cheaper by under 6%, which does not move traffic"
    assert found["cheap"].why == "cheapest in time, differences aside that move no traffic: 102 of 200 ms at p95"


def test_who_is_chosen_although_it_is_busy_now_says_what_stands_beside_it() -> None:
    """A burst is over before anyone has moved for it; the times of this moment are shown all the same."""
    burst = Times((0.0, 0.0, 0.0, 20.0, 150.0, 900.0, 1000.0))
    found = heard(world((NEAR, CHEAP), WAYS, replicas={"near": serves(), "cheap": serves(queue=burst)}))
    cheap = found["cheap"]
    assert next(iter(found)) == "cheap" and cheap.candidate.total_ms_p95 > 200
    shown = cheap.candidate.p_in_time(200.0)
    assert shown < 0.95
    assert cheap.why == (f"cheapest in time: 100.0% within 200 ms once its present queue is over, {shown:.1%} with it")


def test_who_is_a_little_late_and_stays_is_not_called_the_soonest() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=1.0)), Planner()
    heard(facts, planner=planner)
    just_late = world((NEAR, CHEAP), WAYS, replicas={"near": serves(), "cheap": serves(109.0)}, demand=asked(here=1.0))
    found = heard(just_late, planner=planner, now_s=10.0)
    assert found["cheap"].candidate.share == 1.0
    assert found["cheap"].why.startswith("stays: ") and found["cheap"].why.endswith("% to move traffic")
    assert found["near"].why.startswith("dearer")


def test_who_takes_what_nodes_in_time_have_no_room_for_does_not_say_that_none_does_better() -> None:
    ways = {"here": {"near": 2.0, "cheap": 195.0}}
    found = heard(world((NEAR, CHEAP), ways, demand=asked(here=120.0)))
    assert "soonest with room: 0.0% within 200 ms" in found["cheap"].why
    assert "no node does better" not in found["cheap"].why


def test_of_nodes_at_one_distance_the_dearer_says_so() -> None:
    nodes = (node("dear", 2.0, region="here"), node("cheap", 1.0, region="here"))
    found = heard(world(nodes, {"here": {"dear": 0.21, "cheap": 0.34}}), objective="nearest")
    assert found["cheap"].why == "nearest: 0.3 ms round trip"
    assert found["dear"].why == "as near, and dearer: $0.005556 against $0.002778 per 1,000"


def test_a_site_that_would_be_late_under_load_says_so() -> None:
    replicas = {"near": serves(), "cheap": serves(60.0, 16.0)}
    found = heard(world((NEAR, CHEAP), WAYS, replicas=replicas, demand=asked(here=6.0)))
    assert found["cheap"].why.startswith("too late") and found["cheap"].why.endswith(", as busy as it would be")
    # What is shown beside it is what is measured.
    assert found["cheap"].candidate.p_in_time(200.0) > 0.99


def test_candidates_carry_what_was_decided_by() -> None:
    found = heard(world((NEAR, CHEAP), WAYS))
    near, cheap = found["near"].candidate, found["cheap"].candidate
    assert (near.network_measured, cheap.network_measured) == (True, False)
    assert (near.spot, cheap.spot) == (False, True)
    assert (near.share, cheap.share) == (0.0, 1.0)
    assert cheap.network.p50_ms == 90.0 and cheap.service.p50_ms == 10.0 and cheap.usd_per_hour == 1.0


def one_world(seed: int) -> Facts:
    """Six nodes at random, of which one is surely in time."""
    chance = random.Random(seed)
    names = [f"n{number}" for number in range(6)]
    nodes = tuple(node(name, chance.uniform(0.5, 4.0)) for name in names)
    replicas = {name: serves(chance.uniform(5, 60), p95_ms=chance.uniform(60, 220)) for name in names}
    replicas["n0"] = serves(10.0)
    ways = {"here": {name: chance.uniform(1, 190) for name in names} | {"n0": chance.uniform(1, 100)}}
    return world(nodes, ways, replicas=replicas)


def moved(facts: Facts, seed: int) -> Facts:
    """A moment later: prices and ways by up to a tenth."""
    chance = random.Random(-seed)
    nodes = [dataclasses.replace(n, usd_per_hour=n.usd_per_hour * chance.uniform(0.9, 1.1)) for n in facts.nodes]
    ways = {
        key: Times(tuple(ms * factor for ms in times.ms))
        for key, times in facts.network.items()
        for factor in [chance.uniform(0.9, 1.1)]
    }
    return dataclasses.replace(facts, nodes=tuple(nodes), network=ways)


@pytest.mark.parametrize("objective", [IN_TIME, "nearest", "cheapest"])
@pytest.mark.parametrize("seed", range(40))
def test_who_has_the_route_in_hand_decides_as_the_plan_did(objective: Objective, seed: int) -> None:
    """Where there is room for everybody: who is chosen, and who is left for whom when things have moved."""
    planner, facts, chosen = Planner(), one_world(seed), None
    for at, found in enumerate((facts, moved(facts, seed))):
        planned = heard(found, planner=planner, objective=objective, now_s=1000.0 * at)
        (first,) = [name for name, ranked in planned.items() if ranked.candidate.share > 0.5]
        pool = [ranked.candidate for ranked in planned.values()]
        ranking = rank(pool, objective, found.models[0].deadline_ms, current=chosen)
        assert ranking[0].candidate.node == first
        chosen = first
