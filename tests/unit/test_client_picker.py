"""The order in which a client tries nodes, and how long it waits for each."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter

import pytest

from nearmesh import routing
from nearmesh.client import picker
from nearmesh.client.picker import Route
from nearmesh.errors import InvalidInput
from nearmesh.routing import Times
from nearmesh.v1 import route_pb2
from tests.client_routes import endpoint, route


def nodes(found: list[picker.Choice]) -> list[str]:
    return [choice.node for choice in found]


@pytest.mark.parametrize(
    ("objective", "measured", "out", "current", "expected"),
    [
        ("nearest", {}, (), None, ["a", "b", "c"]),
        # One's own measurement wins over the control plane's.
        ("nearest", {"a": (300.0, 300.0)}, (), None, ["b", "c", "a"]),
        # Who failed comes after all who did not.
        ("nearest", {}, ("a",), None, ["b", "c", "a"]),
        ("nearest", {}, ("a", "b", "c"), None, ["a", "b", "c"]),
        # The choice in use keeps its place against a near tie, not against a clear difference, not when it failed.
        ("nearest", {"b": (10.4, 11.0)}, (), "b", ["b", "a", "c"]),
        ("nearest", {}, (), "b", ["a", "b", "c"]),
        ("nearest", {"b": (10.4, 11.0)}, ("b",), "b", ["a", "c", "b"]),
        ("cheapest", {}, (), None, ["c", "b", "a"]),
        # c is cheapest and in time; measured from here it is too late.
        ("cheapest-in-time", {}, (), None, ["c", "b", "a"]),
        ("cheapest-in-time", {"c": (290.0, 290.0)}, (), None, ["b", "a", "c"]),
    ],
)
def test_order(
    objective: routing.Objective,
    measured: dict[str, tuple[float, float]],
    out: tuple[str, ...],
    current: str | None,
    expected: list[str],
) -> None:
    found = route(endpoint("a", 10, 3.0), endpoint("b", 100, 2.0), endpoint("c", 200, 1.0), objective=objective)
    times = {node: Times.spread(*two) for node, two in measured.items()}
    assert nodes(picker.order(found, measured=times, out=out, current=current)) == expected


def test_nodes_that_are_not_ready_come_last_whatever_their_merit() -> None:
    found = route(endpoint("near", 1, ready=False), endpoint("far", 200), endpoint("failed", 100))
    assert nodes(picker.order(found, measured={}, out=("failed",))) == ["far", "failed", "near"]


def test_the_choice_carries_the_measured_time_and_a_reason() -> None:
    choice = picker.order(route(endpoint("a"), endpoint("b", 50)), measured={"a": Times.spread(4.0, 6.0)})[0]
    # Less than the sum of the two 95th percentiles: both are seldom long at once.
    assert 4 + 20 * 0.5 < choice.endpoint.candidate.total_ms_p95 < 6.0 + 20.0
    assert choice.endpoint.server_name == "a.mesh" and choice.in_time
    assert choice.why == "nearest: 4.0 ms round trip"


@pytest.mark.parametrize(
    ("network_ms", "request_bytes", "expected_s"),
    [
        (0.0, 100, 0.27),  # 250 ms beyond 20 ms
        (230.0, 100, 1.0),  # 4 x (230 + 20) ms
        (230.0, 64 * 1024 * 4, 1.46),  # two more round trips of 230 ms
    ],
)
def test_patience_grows_with_distance_and_size(network_ms: float, request_bytes: int, expected_s: float) -> None:
    assert picker.patience_s(endpoint("a", network_ms).candidate, request_bytes) == pytest.approx(expected_s)


def test_a_node_that_left_the_route_stays_as_a_last_resort() -> None:
    here, gone = endpoint("here", 200), endpoint("gone", 1)
    kept = route(here).keeping([here, gone])
    assert nodes(picker.order(kept, measured={})) == ["here", "gone"]
    assert [e.candidate.ready for e in kept.endpoints] == [True, False]


@pytest.mark.parametrize(
    ("regions", "kept"), [([], ["here"]), (["elsewhere"], ["here"]), (["gone's"], ["here", "gone"])]
)
def test_a_node_that_a_rule_of_residency_took_out_is_no_last_resort(regions: list[str], kept: list[str]) -> None:
    here, gone = endpoint("here", 200), endpoint("gone", 1)
    gone = dataclasses.replace(gone, candidate=dataclasses.replace(gone.candidate, region="gone's"))
    bound = dataclasses.replace(route(here), message=route_pb2.Route(bound=True, allowed_regions=regions))
    assert [found.node for found in bound.keeping([here, gone]).endpoints] == kept


def test_a_route_is_read_from_its_message() -> None:
    candidate = route_pb2.Candidate(
        node="a", site="s", region="r", address="h:1", server_name="a.mesh", ready=False, why="it drains"
    )
    message = route_pb2.Route(model="m", objective="cheapest", deadline_ms=50, candidates=[candidate])
    found = Route.from_message(message)
    assert (found.objective, found.deadline_ms) == ("cheapest", 50)
    assert found.endpoints[0].candidate.unready_why == "it drains"
    assert Route.from_message(route_pb2.Route(model="m")).deadline_ms == routing.DEFAULT_DEADLINE_MS


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'fastest' is not one of"):
        Route.from_message(route_pb2.Route(model="m", objective="fastest"))


def test_a_route_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        route().model = "other"  # type: ignore[misc]


# ---- placed by the control plane


def picks(choices: list[picker.Choice], count: int = 4000, **cost: float) -> dict[str, float]:
    """The share of first requests by node; a node costs 1 unless `cost` says otherwise."""
    chance = random.Random(7)
    found = Counter(picker.pick(choices, lambda c: cost.get(c.node, 1.0), chance).node for _ in range(count))
    return {node: number / count for node, number in found.items()}


def test_calls_are_shared_out_as_placed_and_the_others_stand_by() -> None:
    found = picker.order(
        route(
            endpoint("a", 10, 3.0),
            endpoint("b", 100, 2.0, share=0.7, told="cheapest in time"),
            endpoint("c", 200, 1.0, share=0.3),
            objective="cheapest-in-time",
        ),
        measured={},
    )
    assert nodes(found) == ["c", "b", "a"] and [choice.weight for choice in found] == [0.3, 0.7, 0.0]
    assert found[1].why == "placed here: share 0.7 of this region; cheapest in time"
    assert found[2].why.startswith("dearer")
    assert picks(found) == pytest.approx({"b": 0.7, "c": 0.3}, abs=0.03)


def test_without_shares_the_ranking_decides() -> None:
    assert picks(picker.order(route(endpoint("a"), endpoint("b", 20)), measured={})) == {"a": 1.0}


def test_what_is_out_or_not_ready_gets_none_of_what_was_placed_there() -> None:
    found = route(endpoint("a", share=0.5), endpoint("b", share=0.3), endpoint("c", share=0.2, ready=False))
    assert picks(picker.order(found, measured={}, out=("a",))) == {"b": 1.0}
    left = picker.order(found, measured={}, out=("a", "b"))
    assert picks(left) == {"a": 1.0} and not any(choice.weight or choice.in_service for choice in left)


def test_a_site_gets_its_share_and_in_it_the_less_busy_of_two() -> None:
    found = picker.order(
        route(
            endpoint("a1", site="a", share=0.25),
            endpoint("a2", site="a", share=0.25),
            endpoint("b", site="b", share=0.5),
        ),
        measured={},
    )
    assert picks(found) == pytest.approx({"a1": 0.25, "a2": 0.25, "b": 0.5}, abs=0.03)
    # Nearly as busy is no reason to leave the shares.
    assert picks(found, a1=1.1, b=9.0) == pytest.approx({"a1": 0.25, "a2": 0.25, "b": 0.5}, abs=0.03)
    # The busier one is only asked when it is drawn twice.
    assert picks(found, a1=2.0, b=9.0) == pytest.approx({"a1": 0.125, "a2": 0.375, "b": 0.5}, abs=0.03)


CLOSE, FAR = Times.certain(10.0), Times.certain(290.0)


@pytest.mark.parametrize(
    ("objective", "measured", "expected"),
    [
        ("cheapest-in-time", {"b": CLOSE}, {"b": 1.0}),
        # Measured from here, b is late, and a is not.
        ("cheapest-in-time", {"b": FAR}, {"a": 1.0}),
        # Late is everything: a placement then goes by what only the control plane knows.
        ("cheapest-in-time", {"a": FAR, "b": FAR}, {"b": 1.0}),
        ("nearest", {"b": FAR}, {"a": 1.0}),
        ("cheapest", {"b": FAR}, {"b": 1.0}),
    ],
)
def test_own_round_trips_overrule_a_placement_that_they_refute(
    objective: routing.Objective, measured: dict[str, Times], expected: dict[str, float]
) -> None:
    found = route(endpoint("a", 50, 2.0), endpoint("b", 50, 1.0, share=1.0), objective=objective)
    choices = picker.order(found, measured=measured)
    assert picks(choices) == expected
    assert ("not by the round trips from here" in next(c.why for c in choices if c.node == "b")) == ("a" in expected)


def test_a_placement_by_capacity_is_not_refuted_by_what_the_control_plane_knew() -> None:
    near, far = endpoint("near", 10), endpoint("far", 290, share=1.0)
    measured = {"near": CLOSE, "far": FAR}
    assert picks(picker.order(route(near, far, objective="nearest"), measured=measured)) == {"far": 1.0}
    late = route(near, far, objective="cheapest-in-time")
    assert picks(picker.order(late, measured=measured)) == {"far": 1.0}


@pytest.mark.parametrize(
    ("busy", "sites", "expected"),
    [
        ({"a1"}, {"a"}, "b"),  # the soonest of another site, not the nearest
        ({"a1", "b"}, {"a", "b"}, "c"),
        ({"a1", "b", "c"}, {"a", "b", "c"}, "a2"),
        ({"a1", "a2", "b", "c"}, {"a", "b", "c"}, None),
    ],
)
def test_whom_to_ask_beside(busy: set[str], sites: set[str], expected: str | None) -> None:
    found = route(
        endpoint("a1", 1, site="a"),
        endpoint("a2", 2, site="a"),
        endpoint("b", 30, 9.0, site="b"),
        endpoint("c", 40, 1.0, site="c"),
        endpoint("d", 3, site="d", ready=False),
        endpoint("e", 3, site="e"),
        objective="cheapest",
    )
    choice = picker.beside(picker.order(found, measured={}, out=("e",)), busy, sites)
    assert (choice.node if choice else None) == expected


@pytest.mark.parametrize(
    ("network_ms", "request_bytes", "correction", "expected_s"),
    [
        (10.0, 100, 1.0, 0.03),
        (10.0, 100, 0.5, 0.015),
        (100.0, 4 * 64 * 1024, 1.0, 0.32),  # two more round trips
        (0.0, 100, 0.1, picker.HEDGE_FLOOR_S),
    ],
)
def test_a_hedge_waits_for_the_forecast_95th_percentile(
    network_ms: float, request_bytes: int, correction: float, expected_s: float
) -> None:
    candidate = endpoint("a", network_ms).candidate
    assert picker.hedge_s(candidate, request_bytes, correction) == pytest.approx(expected_s)


def spread(p50_ms: float, p95_ms: float) -> Times:
    return Times.spread(p50_ms, p95_ms)


@pytest.mark.parametrize(
    ("late", "other", "aim_ms", "expected_ms"),
    [
        # Nothing is aimed at: as long as the other one would take.
        (spread(10, 20), spread(15, 30), math.inf, 15.0),
        # As late as it may be for the other to be in time.
        (spread(80, 100), spread(50, 70), 200.0, 130.0),
        # But twice the forecast is enough.
        (spread(10, 20), spread(15, 30), 300.0, 40.0),
        # The other would not be in time: not before this one is all but lost.
        (Times((140.0, 150.0, 155.0, 158.0, 160.0, 165.0, 180.0)), spread(50, 70), 200.0, 198.0),
        # Far help for a near node.
        (spread(10, 20), spread(100, 120), 300.0, 100.0),
    ],
)
def test_when_help_is_due(late: Times, other: Times, aim_ms: float, expected_ms: float) -> None:
    assert picker.due_ms(late, other, aim_ms) == pytest.approx(expected_ms)


def test_of_nodes_as_soon_the_cheapest_gets_the_copy() -> None:
    found = route(
        endpoint("first", 1, site="a"),
        endpoint("soonest", 30.0, 9.0, site="b"),
        endpoint("as soon", 34.0, 1.0, site="c"),
        endpoint("later", 36.0, 0.1, site="d"),
    )
    choice = picker.beside(picker.order(found, measured={}), {"first"}, {"a"})
    assert choice and choice.node == "as soon"


def test_quantiles_and_shares_are_read_from_a_message_and_nonsense_is_not() -> None:
    good = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    plain = route_pb2.Candidate(
        node="a", ready=True, network_ms_p50=10, network_ms_p95=10, service_ms_p50=5, service_ms_p95=5
    )
    whole = route_pb2.Candidate()
    whole.CopyFrom(plain)
    whole.share = 0.5
    whole.service_ms_quantiles.extend(good)
    found = Route.from_message(route_pb2.Route(model="m", candidates=[whole])).endpoints[0].candidate
    assert found.share == 0.5 and found.service.ms == tuple(good) and found.network == Times.certain(10.0)
    for share, quantiles in ((1.5, good[:3]), (-1.0, good[::-1]), (math.nan, [math.nan] * 7)):
        del whole.service_ms_quantiles[:]
        whole.service_ms_quantiles.extend(quantiles)
        whole.share = share
        found = Route.from_message(route_pb2.Route(model="m", candidates=[whole])).endpoints[0].candidate
        assert found.share == 0 and found.service == Times.certain(5.0)


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"a": 90.0}, ["b", "c", "d", "a"]),
        # Slower than forecast, and still sooner than all others: it stays.
        ({"a": 30.0}, ["a", "b", "c", "d"]),
        ({"d": 30.0, "b": 70.0}, ["a", "c", "b", "d"]),
        # At most half, the slowest.
        ({"a": 80.0, "b": 90.0, "c": 95.0}, ["a", "d", "b", "c"]),
        ({"a": 80.0, "b": 90.0, "c": 95.0, "d": 99.0}, ["a", "b", "c", "d"]),
    ],
)
def test_who_is_slow_comes_last_where_others_serve_better(slow: dict[str, float], expected: list[str]) -> None:
    # Forecast medians of 20, 45, 50 and 55 ms.
    found = route(endpoint("a", 10), endpoint("b", 35), endpoint("c", 40), endpoint("d", 45))
    assert nodes(picker.order(found, measured={}, slow=slow)) == expected


def test_the_only_node_is_never_too_slow() -> None:
    assert picker.order(route(endpoint("a")), measured={}, slow={"a": math.inf})[0].in_service


def test_at_most_five_nodes_are_probed_those_that_calls_go_to_first() -> None:
    others = [endpoint(f"n{number}", 10 * number, 1.0 + number) for number in range(1, 9)]
    found = route(
        endpoint("x", 100, 20.0, share=0.3), *others, endpoint("y", 120, 30.0, share=0.7), objective="cheapest"
    )
    assert picker.probed(found, {}) == ["y", "x", "n1", "n2", "n3"]
    assert picker.probed(route(endpoint("a"), endpoint("b", ready=False)), {}) == ["a"]
    assert picker.probed(route(), {}) == []


def test_for_the_nearest_those_are_probed_that_may_be_nearer_than_is_known() -> None:
    known = [endpoint(name, 20 + at) for at, name in enumerate("abcdef")]
    doubtful = endpoint("doubtful", 40)
    spread = dataclasses.replace(doubtful.candidate, network_times=Times.spread(40, 120))
    found = route(*known, dataclasses.replace(doubtful, candidate=spread))
    assert picker.probed(found, {}) == ["doubtful", "a", "b", "c", "d"]
    measured = {"doubtful": Times.spread(40, 41), "a": Times.spread(20, 21)}
    assert "doubtful" not in picker.probed(found, measured)
