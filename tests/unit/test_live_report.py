"""How the live fault run is judged: errors, times to leave, and the reason of each move."""

from __future__ import annotations

import pytest

from nearmesh.devmesh.load import Call
from tests.faults.live_report import (
    LAG_S,
    Decision,
    Fault,
    apart,
    broken,
    calm_p95_ms,
    in_force,
    late_answers,
    left_after_s,
    moves,
    report,
    why_moved,
)


def call(at_s: float, node: str = "a", *, ms: float = 10.0, error: str = "", why: str = "", attempt: int = 1) -> Call:
    return Call(started_s=at_s, ms=ms, node="" if error else node, error=error, why=why, attempt=attempt)


def fault(kind: str, began_s: float, target: str = "a") -> Fault:
    return Fault(kind=kind, target=target, began_s=began_s, healed_s=began_s + 5, recovered_s=began_s + 8)


def decision(at_s: float, *placed: str, others: tuple[str, ...] = ()) -> Decision:
    shares = {**{node: 1 / len(placed) for node in placed}, **dict.fromkeys(others, 0.0)}
    return Decision(at_s=at_s, generation=round(at_s), shares=shares, why=dict.fromkeys(shares, "because"))


FIRST_A = decision(0, "a", others=("b",))
FIRST_B = decision(50, "b", others=("a",))


def test_who_is_placed() -> None:
    assert decision(0, "a", "b", others=("c",)).placed == {"a", "b"}
    # Of a control plane without shares the first is meant.
    assert Decision(at_s=0, generation=1, shares={"b": 0, "a": 0}, why={}).placed == {"b"}


def test_which_decisions_a_client_may_have_acted_on() -> None:
    found = [decision(at_s, "a") for at_s in (0, 10, 20, 30)]
    assert in_force(found, 15, 25) == found[1:3]
    assert in_force(found, 31, 32) == found[3:]
    assert in_force(found, -5, -1) == []


@pytest.mark.parametrize(
    ("moved", "faults", "decisions", "reason"),
    [
        (call(51, "b"), [], [FIRST_A, FIRST_B], "decision"),
        (call(50 + LAG_S, "b"), [], [decision(0, "a", "b")], "shares"),
        (call(49.9, "b", ms=200), [], [FIRST_A, FIRST_B], "decision"),
        (call(49, "b"), [], [FIRST_A, FIRST_B], ""),
        (call(10, "b"), [fault("kill", 9)], [FIRST_A], "fault"),
        # What was learnt is acted on for a while, and no longer.
        (call(20, "b"), [fault("kill", 9)], [FIRST_A], "fault"),
        (call(60, "b"), [fault("kill", 9)], [FIRST_A], ""),
        # A fault of somebody else explains nothing, one of the control plane does.
        (call(10, "b"), [fault("kill", 9, "c")], [FIRST_A], ""),
        (call(40, "b"), [fault("kill", 9, "control-plane")], [FIRST_A], "fault"),
        (call(50, "b"), [fault("kill", 9, "control-plane")], [FIRST_A], ""),
        (call(10, "b", why="nearest; after a: UNREACHABLE"), [], [FIRST_A], "receipt"),
        (call(10, "b", why="nearer from here"), [], [FIRST_A], "receipt"),
        # It refused others, or had them wait.
        (call(25, "b"), [], [FIRST_A], "overload"),
        (call(10, "b"), [], [], ""),
    ],
)
def test_why_a_call_went_elsewhere(moved: Call, faults: list[Fault], decisions: list[Decision], reason: str) -> None:
    late = late_answers({"xds": [call(24, "a", ms=900), call(10, "a", ms=299), call(10, "b", ms=900)]}, 300)
    assert late == {"a": [24.9], "b": [10.9]}
    assert why_moved("a", moved, faults, decisions, late)[0] == reason


def test_a_move_is_a_change_of_the_node_that_answers() -> None:
    calls = [call(3, "b"), call(1, "a"), call(2, error="x"), call(4, "b"), call(52, "a")]
    found = moves("sdk", calls, [], [FIRST_A, decision(2, "b")], {})
    assert [(move.before, move.after, move.at_s, move.reason) for move in found] == [
        ("a", "b", 3, "decision"),
        ("b", "a", 52, ""),
    ]


def test_only_a_frozen_node_excuses_and_only_a_plain_xds_client() -> None:
    frozen = [fault("freeze", 10)]
    assert apart("xds", call(9, error="x", ms=1500), frozen)
    assert apart("xds", call(12, error="x"), frozen)
    assert not apart("xds", call(5, error="x"), frozen)
    assert not apart("xds", call(12, error="x"), [fault("kill", 10)])
    assert not apart("gateway", call(12, error="x"), frozen)


def test_when_a_site_was_left() -> None:
    dead = fault("kill", 10)
    calm = [call(at_s, "b") for at_s in (11.0, 12.0, 14.0)]
    assert left_after_s([call(9, "a"), *calm], dead, 300) == 0
    assert left_after_s([call(10.5, "a"), *calm], dead, 300) == 0.5
    assert left_after_s([call(10.5, "a"), call(12.5, error="x"), *calm], dead, 300) == 2.5
    # It was sent there first, whoever answered in the end.
    assert left_after_s([call(13, "b", attempt=2, ms=301), *calm], dead, 300) == 3
    assert left_after_s([call(13, "b", why="cheapest in time; after a: silent", ms=301), *calm], dead, 300) == 3
    # A trial that was refused at once.
    assert left_after_s([call(13, "b", attempt=2, ms=299), *calm], dead, 300) == 0
    # Who waits for a first connection elsewhere has left it.
    assert left_after_s([call(13, "b", ms=1200), *calm], dead, 300) == 0
    # After the healing it may go there.
    assert left_after_s([call(15.1, "a"), *calm], dead, 300) == 0


def test_what_calls_took_before_anything_was_done() -> None:
    calls = {"sdk": [call(1, ms=20), call(9.99, ms=500), call(11, ms=900)], "xds": [call(2, ms=30)]}
    assert calm_p95_ms(calls, [fault("kill", 10), fault("kill", 20)]) == 30
    assert calm_p95_ms({}, []) == 0


def test_a_report_and_what_it_finds_broken() -> None:
    faults = [fault("kill", 10), fault("freeze", 30, "b")]
    well = {
        "sdk": [call(1, "a"), call(11, "b"), call(31, "a"), call(45, "a")],
        "xds": [call(1, "a"), call(11, "b"), call(31, error="late", ms=1500), call(45, "a")],
    }
    decisions = [FIRST_A, decision(10.5, "b"), decision(31, "a")]
    found = report(well, faults, decisions, 300)
    assert broken(found) == []
    assert found["kinds"]["kill"]["calls"] == {"sdk": 1, "xds": 1}
    assert (found["ways"]["xds"]["errors"], found["ways"]["xds"]["errors_frozen_xds"]) == (0, 1)
    assert found["kinds"]["freeze"]["left_within_s"] == {"sdk": 0.0, "xds": 1.0}
    assert sum(found["moves"]["by_reason"].values()) == found["moves"]["all"] == 4
    ill = {"sdk": [*well["sdk"], call(13, error="broken"), call(100, "b")], "xds": well["xds"]}
    wrong = broken(report(ill, faults, decisions, 300))
    assert [line.split(",")[0] for line in wrong] == [
        "sdk: 1 errors",
        "sdk: 3 s to leave after kill",
        next(line for line in wrong if line.startswith("1 moves that nothing explains")).split(",")[0],
    ]
