"""The planner on small worlds: who answers whom, and what moves that."""

from __future__ import annotations

import dataclasses

import pytest
from nearmesh_controlplane.routing.facts import Facts
from nearmesh_controlplane.routing.moves import JOINING_PART, RAMP_PER_S
from nearmesh_controlplane.routing.offers import pressures
from nearmesh_controlplane.routing.planner import RESUMED_S, Plan, Planner

from nearmesh.routing import Objective, Times
from tests.planned import IN_TIME, MODEL, asked, node, serves, world

# A dear node near by, and a cheap one that is farther and in time all the same.
NEAR, CHEAP = node("near", 2.0, region="here"), node("cheap", 1.0, region="there")
WAYS = {"here": {"near": 2.0, "cheap": 90.0}}


def shares(plan: Plan, region: str = "here", objective: Objective = IN_TIME) -> dict[str, float]:
    return {name: round(share, 3) for name, share in plan.shares(region, MODEL, objective).items()}


def priced(facts: Facts, **usd: float) -> Facts:
    nodes = tuple(dataclasses.replace(n, usd_per_hour=usd.get(n.id, n.usd_per_hour)) for n in facts.nodes)
    return dataclasses.replace(facts, nodes=nodes)


def plan_once(facts: Facts, *objectives: Objective) -> Plan:
    return Planner().plan(facts, 0.0, [("here", MODEL, objective) for objective in objectives])


def test_each_objective_has_its_own_choice() -> None:
    ways = {"here": {"near": 2.0, "cheap": 90.0, "far": 190.0}}
    plan = plan_once(world((NEAR, CHEAP, node("far", 0.5)), ways), "nearest", "cheapest")
    assert shares(plan) == {"cheap": 1.0}
    assert shares(plan, objective="nearest") == {"near": 1.0}
    assert shares(plan, objective="cheapest") == {"far": 1.0}
    assert [n.id for n in plan.order("here", MODEL, IN_TIME)] == ["cheap", "near", "far"]


def test_the_tail_decides_who_is_in_time() -> None:
    """Of the cheap node's requests 2 % take too long."""
    replicas = {"near": serves(), "cheap": serves(10.0, p95_ms=80.0)}
    assert shares(plan_once(world((NEAR, CHEAP), WAYS, replicas=replicas))) == {"near": 1.0}


def test_when_nobody_is_in_time_the_highest_chance_wins_whatever_it_costs() -> None:
    replicas = {"near": serves(150.0, p95_ms=230.0), "cheap": serves(150.0, p95_ms=230.0)}
    assert shares(plan_once(world((NEAR, CHEAP), WAYS, replicas=replicas))) == {"near": 1.0}
    # When all are hopeless the sooner one does.
    replicas = {"near": serves(900.0), "cheap": serves(900.0)}
    assert shares(plan_once(world((NEAR, CHEAP), WAYS, replicas=replicas))) == {"near": 1.0}


@pytest.mark.parametrize("count", [1, 3])
def test_to_be_late_is_dear_however_cheap_some_nodes_are(count: int) -> None:
    free = [node(f"free-{number}", 1e-5) for number in range(count)]
    ways = {"here": {"near": 2.0} | {n.id: 600.0 for n in free}}
    assert shares(plan_once(world((NEAR, *free), ways))) == {"near": 1.0}


def test_equally_dear_nodes_are_told_apart_by_the_way() -> None:
    assert shares(plan_once(priced(world((NEAR, CHEAP), WAYS), near=1.0))) == {"near": 1.0}


@pytest.mark.parametrize(("usd", "per_s"), [(2.0, 1e-3), (50.0, 0.01), (1e5, 1.0)])
def test_one_node_that_is_far_dearer_than_all_others_hides_no_other_price(usd: float, per_s: float) -> None:
    ways = {"here": {"far": 100.0, "near": 10.0, "odd": 150.0}}
    replicas = {"far": serves(), "near": serves(), "odd": serves(900.0, per_s)}
    nodes = (node("far", 1.0), node("near", 1.1), node("odd", usd))
    plan = Planner().plan(world(nodes, ways, replicas=replicas, demand=asked(here=1.0)), 0.0)
    assert plan.shares("here", MODEL, IN_TIME) == {"far": 1.0}


def test_what_a_site_cannot_take_goes_to_the_next_and_those_it_suits_least_go() -> None:
    ways = {"here": {"near": 2.0, "cheap": 90.0}, "away": {"near": 150.0, "cheap": 2.0}}
    facts = world((NEAR, CHEAP), ways, demand=asked(here=60.0, away=60.0))
    plan = plan_once(facts)
    assert shares(plan, "away")["cheap"] == 1.0
    assert 0.0 < shares(plan)["cheap"] < 0.8
    assert plan.taken["cheap"] == pytest.approx(1.0) and plan.scarcity["cheap"] > 0.0
    assert plan.unplaced_per_s == 0.0 and plan.rounds > 0


def test_twins_at_one_site_share_evenly_and_one_that_is_slow_is_left_out() -> None:
    nodes = (node("a", site="s", region="here"), node("b", site="s", region="here"), node("c", site="s", region="here"))
    ways = {"here": {"a": 2.0, "b": 2.0, "c": 2.0}}
    plan = plan_once(world(nodes, ways, demand=asked(here=90.0)))
    assert shares(plan) == {"a": 0.333, "b": 0.333, "c": 0.333}
    replicas = {"a": serves(), "b": serves(), "c": serves(150.0, p95_ms=400.0)}
    assert shares(plan_once(world(nodes, ways, replicas=replicas))) == {"a": 0.5, "b": 0.5}


def test_a_small_change_of_a_price_moves_nobody_and_a_large_one_does() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=10.0)), Planner()
    assert shares(planner.plan(facts, 0.0)) == {"cheap": 1.0}
    assert shares(planner.plan(priced(facts, cheap=2.1), 10.0)) == {"cheap": 1.0}
    assert shares(planner.plan(priced(facts, cheap=2.3), 20.0)) == {"near": 1.0}
    assert shares(planner.plan(priced(facts, cheap=1.95), 30.0)) == {"near": 1.0}


def test_much_traffic_moves_by_a_ramp_and_the_plan_says_so() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=60.0)), Planner()
    planner.plan(facts, 0.0)
    found, seconds = planner.plan(priced(facts, near=0.1), 1.0), 1
    assert found.moving and 0.0 < shares(found)["near"] < 0.6
    while found.moving:
        before = found.taken["near"]
        found, seconds = planner.plan(priced(facts, near=0.1), 1.0 + seconds), seconds + 1
        assert found.taken["near"] - before <= RAMP_PER_S + 1e-9
    assert shares(found) == {"near": 1.0} and seconds > 2


@pytest.mark.parametrize("standing", ["suspect", "gone"])
def test_who_is_not_surely_there_is_left_at_once_and_asked_last(standing: str) -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=60.0)), Planner()
    planner.plan(facts, 0.0)
    lost = dataclasses.replace(CHEAP, standing=standing)
    found = planner.plan(dataclasses.replace(facts, nodes=(NEAR, lost)), 0.1)
    assert shares(found) == {"near": 1.0} and not found.moving
    assert [n.id for n in found.order("here", MODEL, IN_TIME)] == ["near", "cheap"]


def test_when_all_are_doubtful_the_best_of_them_is_asked() -> None:
    nodes = (dataclasses.replace(NEAR, standing="gone"), dataclasses.replace(CHEAP, standing="suspect"))
    assert shares(plan_once(world(nodes, WAYS))) == {"cheap": 1.0}


def test_a_node_that_became_late_is_left_at_once() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=60.0)), Planner()
    planner.plan(facts, 0.0)
    (model,) = facts.models
    slow = dataclasses.replace(model, replicas={"near": serves(), "cheap": serves(300.0)})
    found = planner.plan(dataclasses.replace(facts, models=(slow,)), 0.1)
    assert shares(found) == {"near": 1.0}


def test_a_new_replica_gets_traffic_by_a_ramp() -> None:
    """It is the cheapest from the start, and has room for a part of what it will have room for."""
    facts = world((NEAR, CHEAP), WAYS, demand=asked(here=60.0))
    young = dataclasses.replace(facts, ready_for_s={("cheap", MODEL): 0.0})
    plan = plan_once(young)
    whole = plan_once(facts)
    assert shares(whole) == {"cheap": 1.0}
    bound = JOINING_PART * whole.blocks[MODEL, IN_TIME].offers.utilization[1]
    assert shares(plan)["cheap"] == pytest.approx(bound * 100 / 60, abs=0.002)
    older = dataclasses.replace(facts, ready_for_s={("cheap", MODEL): 15.0})
    assert shares(plan)["cheap"] < shares(plan_once(older))["cheap"] < 1.0


def test_rules_of_owners_never_yield() -> None:
    facts = world((NEAR, CHEAP), WAYS, regions=frozenset({"here"}))
    assert shares(plan_once(facts)) == {"near": 1.0}
    assert [n.id for n in plan_once(facts).order("here", MODEL, IN_TIME)] == ["near"]
    bound = world((NEAR, CHEAP), WAYS, residency=lambda region: frozenset({"there"}))
    assert shares(plan_once(bound)) == {"cheap": 1.0}
    # Also where nothing is left, and whatever the demand.
    nowhere = world((NEAR, CHEAP), WAYS, residency=lambda region: frozenset({"mars"}), demand=asked(here=5.0))
    plan = plan_once(nowhere)
    assert shares(plan) == {} and plan.order("here", MODEL, IN_TIME) == []


def test_a_rule_takes_effect_at_once() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=60.0)), Planner()
    assert shares(planner.plan(facts, 0.0)) == {"cheap": 1.0}
    bound = dataclasses.replace(facts, residency=lambda region: frozenset({"here"}))
    assert shares(planner.plan(bound, 0.1)) == {"near": 1.0}


def test_moving_the_data_is_part_of_the_cost() -> None:
    def per_gb(a: str, b: str) -> float:
        return 0.1 if a != b else 0.0

    small = world((NEAR, CHEAP), WAYS, transfer_bytes=1_000.0, transfer_usd_per_gb=per_gb)
    large = world((NEAR, CHEAP), WAYS, transfer_bytes=1_000_000.0, transfer_usd_per_gb=per_gb)
    assert shares(plan_once(small)) == {"cheap": 1.0} and shares(plan_once(large)) == {"near": 1.0}


def test_requests_pay_for_the_way_there_and_answers_for_the_way_back() -> None:
    def per_gb(a: str, b: str) -> float:
        return {("here", "there"): 0.1, ("there", "here"): 0.3}.get((a, b), 0.0)

    facts = world((NEAR, CHEAP), WAYS, transfer_bytes=5e6, answer_bytes=1e6, transfer_usd_per_gb=per_gb)
    offers = plan_once(facts).blocks[MODEL, IN_TIME].offers
    assert offers.nodes == (NEAR, CHEAP)
    found = dict(zip(facts.regions, offers.transfer_usd_per_1000.tolist(), strict=True))
    # 4 GB there at 0.1, 1 GB back at 0.3.
    assert found["here"] == pytest.approx([0.0, 0.7])


def test_a_version_that_is_not_in_memory_takes_as_long_as_its_load() -> None:
    replicas = {"near": serves(), "cheap": serves(load_ms=500.0)}
    assert shares(plan_once(world((NEAR, CHEAP), WAYS, replicas=replicas))) == {"near": 1.0}


@pytest.mark.parametrize(
    ("usd", "load_ms", "expected"),
    [
        # As dear, or cheaper by little: the one that is in memory.
        (1.0, 50.0, {"warm": 1.0}),
        (0.9, 50.0, {"warm": 1.0}),
        # Cheaper by much: it is loaded once, if there is time for that.
        (0.5, 50.0, {"cold": 1.0}),
        (0.5, 500.0, {"warm": 1.0}),
    ],
)
def test_what_is_in_memory_is_preferred(usd: float, load_ms: float, expected: dict[str, float]) -> None:
    nodes = (node("warm", 1.0, region="here"), node("cold", usd, region="here"))
    ways = {"here": {"warm": 2.0, "cold": 2.0}}
    replicas = {"warm": serves(), "cold": serves(load_ms=load_ms)}
    assert shares(plan_once(world(nodes, ways, replicas=replicas))) == expected


def test_where_the_one_in_memory_is_too_late_it_is_loaded_elsewhere() -> None:
    nodes = (node("warm", 1.0, region="there"), node("cold", 1.0, region="here"))
    ways = {"here": {"warm": 250.0, "cold": 2.0}}
    replicas = {"warm": serves(), "cold": serves(load_ms=100.0)}
    assert shares(plan_once(world(nodes, ways, replicas=replicas))) == {"cold": 1.0}


def test_with_nobody_in_memory_it_is_loaded_where_it_is_ready_soonest() -> None:
    nodes = (node("far", 1.0, region="there"), node("near", 1.0, region="here"))
    ways = {"here": {"far": 90.0, "near": 2.0}}
    replicas = {"far": serves(load_ms=1200.0), "near": serves(load_ms=2400.0)}
    assert shares(plan_once(world(nodes, ways, replicas=replicas))) == {"far": 1.0}


def test_who_waits_much_longer_than_expected_is_judged_by_that() -> None:
    replicas = {"near": serves(), "cheap": serves(queue=Times.spread(120.0, 200.0))}
    assert shares(plan_once(world((NEAR, CHEAP), WAYS, replicas=replicas))) == {"near": 1.0}


def test_what_a_burst_leaves_moves_nobody() -> None:
    burst = Times((0.0, 0.0, 0.0, 20.0, 150.0, 200.0, 250.0))
    replicas = {"near": serves(), "cheap": serves(queue=burst)}
    assert shares(plan_once(world((NEAR, CHEAP), WAYS, replicas=replicas))) == {"cheap": 1.0}


def with_service(facts: Facts, **ms: float) -> Facts:
    (model,) = facts.models
    return dataclasses.replace(
        facts, models=(dataclasses.replace(model, replicas={n: serves(value) for n, value in ms.items()}),)
    )


def test_who_is_on_the_edge_of_the_deadline_stays_and_nobody_comes() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=1.0)), Planner()
    just_late = with_service(facts, near=10.0, cheap=109.0)
    assert shares(planner.plan(with_service(facts, near=10.0, cheap=105.0), 0.0)) == {"cheap": 1.0}
    assert shares(planner.plan(just_late, 10.0)) == {"cheap": 1.0}
    assert shares(plan_once(just_late)) == {"near": 1.0}
    assert shares(planner.plan(with_service(facts, near=10.0, cheap=115.0), 20.0)) == {"near": 1.0}


def test_the_nearest_node_is_one_that_works() -> None:
    facts = world((NEAR, CHEAP), WAYS)
    assert shares(plan_once(with_service(facts, near=400.0, cheap=10.0), "nearest"), objective="nearest") == {
        "cheap": 1.0
    }
    # Where all are late, distance alone counts.
    assert shares(plan_once(with_service(facts, near=400.0, cheap=300.0), "nearest"), objective="nearest") == {
        "near": 1.0
    }


def test_of_nodes_at_one_distance_the_cheaper_is_the_nearest() -> None:
    nodes = (node("dear", 2.0, region="here"), node("cheap", 1.0, region="here"))
    facts = world(nodes, {"here": {"dear": 0.21, "cheap": 0.34}})
    assert shares(plan_once(facts, "nearest"), objective="nearest") == {"cheap": 1.0}


def test_a_node_is_judged_at_the_load_that_it_may_come_to_have() -> None:
    """One slow server: alone in time, under the whole demand not."""
    replicas = {"near": serves(40.0, 25.0), "cheap": serves(40.0, 25.0)}
    calm = world((NEAR, CHEAP), WAYS, replicas=replicas)
    busy = world((NEAR, CHEAP), WAYS, replicas=replicas, demand=asked(here=20.0))
    assert pressures(calm) == {"near": 0.0, "cheap": 0.0} and pressures(busy) == {"near": 0.8, "cheap": 0.8}
    here = {found: plan_once(facts).blocks[MODEL, IN_TIME].offers for found, facts in (("calm", calm), ("busy", busy))}
    assert here["busy"].p_in_time[0, 1] < here["calm"].p_in_time[0, 1]
    assert here["busy"].service_times(1) == here["calm"].service_times(1), "what is shown is what is measured"


def test_a_model_that_nobody_serves_for_a_moment_comes_back_to_where_it_was() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=10.0)), Planner()
    planner.plan(priced(facts, near=0.5), 0.0)
    (model,) = facts.models
    nobody = dataclasses.replace(model, replicas={})
    assert shares(planner.plan(dataclasses.replace(facts, models=(nobody,)), 1.0)) == {}
    assert shares(planner.plan(priced(facts, near=1.04), 2.0)) == {"near": 1.0}


def test_after_a_change_of_the_leader_nobody_moves_before_it_is_known_who_asks() -> None:
    """Who is full for clients that have not told yet is full all the same."""
    ways = {"here": {"a": 10.0, "b": 10.0}}
    facts = world((node("a", 1.0), node("b", 1.5)), ways, demand=asked(here=100.0))
    before, at_s = Planner(), 0.0
    for _ in range(20):
        at_s += 1.0
        held = before.plan(facts, at_s).shares("here", MODEL, IN_TIME)
    assert 0.1 < held["b"] < 0.9
    quiet, key = dataclasses.replace(facts, demand={}), ("here", MODEL, IN_TIME)
    after = Planner()
    after.resume({key: held}, at_s)
    assert after.plan(quiet, at_s + 0.1, [key]).shares(*key) == pytest.approx(held)
    assert after.plan(facts, at_s + 1.0, [key]).shares(*key) == pytest.approx(held, abs=0.02)
    assert after.plan(quiet, at_s + 2.0, [key]).shares(*key) == pytest.approx(held, abs=0.02)
    lost = dataclasses.replace(quiet, nodes=(facts.nodes[0], dataclasses.replace(facts.nodes[1], standing="suspect")))
    assert after.plan(lost, at_s + 3.0, [key]).shares(*key) == {"a": pytest.approx(1.0)}
    assert after.plan(quiet, at_s + RESUMED_S, [key]).shares(*key) == {"a": pytest.approx(1.0)}


def test_nothing_at_all_is_planned_too() -> None:
    plan = Planner().plan(Facts(nodes=(), models=(), regions=(), network={}), 0.0)
    assert plan.shares("here", MODEL, IN_TIME) == {} and not plan.moving


def test_who_only_wants_the_nearest_may_fill_it_further_than_who_wants_to_be_in_time() -> None:
    """One slow server: under a load at which no deadline could be kept, the nearest is still the nearest."""
    replicas = {"near": serves(40.0, 25.0), "cheap": serves(40.0, 25.0)}
    wanted: list[Objective] = [IN_TIME, "nearest"]
    found = {
        objective: plan_once(
            world((NEAR, CHEAP), WAYS, replicas=replicas, deadline_ms=150.0, demand={("here", MODEL, objective): 15.0})
        )
        for objective in wanted
    }
    assert shares(found["nearest"], objective="nearest") == {"near": 1.0}
    assert shares(found[IN_TIME]) != {"near": 1.0}


# A deadline that nobody keeps surely: 95 % of answers without waiting come in time, and one call at a time is served.
LATE = {"ms": 150.0, "per_s": 6.0, "p95_ms": 190.0}


def test_where_all_are_late_a_region_is_spread_before_its_best_node_is_later_still() -> None:
    nodes = (node("a", 1.0), node("b", 3.0), node("far", 1.0))
    ways = {"here": {"a": 2.0, "b": 8.0, "far": 900.0}}
    facts = world(nodes, ways, replicas={n.id: serves(**LATE) for n in nodes}, demand=asked(here=4.7))
    found = plan_once(facts)
    chances = found.blocks[MODEL, IN_TIME].offers.p_in_time[0]
    assert chances.max() < 0.99, "or there is nothing to test"
    assert 0.2 < shares(found)["b"] < shares(found)["a"] and "far" not in shares(found)
    assert found.unplaced_per_s == 0.0 and max(found.taken.values()) < 1.001
    # As long as the best one has room it has all of it, whatever it costs.
    few = dataclasses.replace(facts, demand=asked(here=0.5))
    assert shares(plan_once(few)) == {"a": 1.0}


def test_where_all_are_late_and_full_what_is_too_much_is_for_everyone() -> None:
    nodes = (node("a", 1.0), node("b", 3.0))
    facts = world(
        nodes, {"here": {"a": 2.0, "b": 8.0}}, replicas={n.id: serves(**LATE) for n in nodes}, demand=asked(here=20.0)
    )
    found = plan_once(facts)
    assert found.unplaced_per_s > 5 and shares(found) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.02)


def test_twins_that_are_late_share_evenly_but_with_one_that_is_far_later() -> None:
    nodes = tuple(node(name, site="s", region="here") for name in ("a", "b", "c"))
    ways = {"here": {"a": 2.0, "b": 2.0, "c": 2.0}}
    replicas = {"a": serves(**LATE), "b": serves(152.0, 6.0, p95_ms=192.0), "c": serves(400.0, 6.0, p95_ms=500.0)}
    found = plan_once(world(nodes, ways, replicas=replicas, demand=asked(here=1.0)))
    assert shares(found) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.05)
    hopeless = {"a": serves(900.0), "b": serves(905.0), "c": serves(2000.0)}
    assert shares(plan_once(world(nodes, ways, replicas=hopeless))) == {"a": 0.5, "b": 0.5}


def test_a_dear_model_that_nobody_asks_for_does_not_leave_a_cheap_one_without_room() -> None:
    """What being late weighs and what having no room weighs are measured by the same costs."""
    nodes = (node("a", 1.0), node("b", 1.0))
    late = world(nodes, {"here": {"a": 300.0, "b": 310.0}}, demand=asked(here=100.0))
    dear = dataclasses.replace(late.models[0], name="dear", replicas={n.id: serves(900.0, 1e-3) for n in nodes})
    found = plan_once(dataclasses.replace(late, models=(*late.models, dear)))
    assert found.unplaced_per_s == 0.0 and shares(found) == shares(plan_once(late))


def test_a_price_changes_no_chance_and_what_no_price_changes_is_not_worked_out_again() -> None:
    facts, planner = world((NEAR, CHEAP), WAYS, demand=asked(here=1.0)), Planner()
    before = planner.plan(facts, 0.0).blocks[MODEL, IN_TIME].offers
    after = planner.plan(priced(facts, near=0.1), 1.0).blocks[MODEL, IN_TIME].offers
    assert after.p_in_time is before.p_in_time and after.usd_per_1000[0, 0] == pytest.approx(0.1 * 1000 / 360_000)
    slow = planner.plan(with_service(facts, near=10.0, cheap=300.0), 2.0).blocks[MODEL, IN_TIME]
    assert slow.offers.p_in_time[0].tolist() == [1.0, 0.0]
    alone = world((CHEAP,), {"here": {"cheap": 90.0}}, demand=asked(here=1.0))
    fewer = planner.plan(alone, 3.0).blocks[MODEL, IN_TIME]
    assert fewer.offers.nodes == (CHEAP,) and fewer.shares.tolist() == [[1.0]]


def test_who_wants_the_nearest_does_not_want_to_wait_there_for_long() -> None:
    replicas = {"near": serves(40.0, 25.0), "cheap": serves(40.0, 25.0)}
    facts = world((NEAR, CHEAP), WAYS, replicas=replicas, demand={("here", MODEL, "nearest"): 20.0})
    assert shares(plan_once(facts), objective="nearest") == {"near": 0.875, "cheap": 0.125}
