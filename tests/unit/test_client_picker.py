"""The order in which a client tries nodes, and how long it waits for each."""

from __future__ import annotations

import dataclasses

import pytest

from nearmesh import routing
from nearmesh.client import picker
from nearmesh.client.picker import Route
from nearmesh.errors import InvalidInput
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
    assert nodes(picker.order(found, measured=measured, out=out, current=current)) == expected


def test_nodes_that_are_not_ready_come_last_whatever_their_merit() -> None:
    found = route(endpoint("near", 1, ready=False), endpoint("far", 200), endpoint("failed", 100))
    assert nodes(picker.order(found, measured={}, out=("failed",))) == ["far", "failed", "near"]


def test_the_choice_carries_the_measured_time_and_a_reason() -> None:
    choice = picker.order(route(endpoint("a"), endpoint("b", 50)), measured={"a": (4.0, 6.0)})[0]
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
