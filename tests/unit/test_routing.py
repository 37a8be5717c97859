"""The rule that ranks nodes, case by case."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nearmesh.errors import InvalidInput
from nearmesh.routing import (
    HYSTERESIS,
    OBJECTIVES,
    Candidate,
    Objective,
    Ranked,
    format_usd,
    parse_objective,
    rank,
    usd_per_1000,
    with_network,
)
from nearmesh.routing.objectives import GRACE, NEAR_MS

DEADLINE_MS = 300.0


def node(name: str, ms: float = 10.0, usd: float = 1.0, **more: Any) -> Candidate:
    """A candidate with that round trip and price; its service takes no time."""
    return Candidate(
        **{
            "node": name,
            "site": f"site-{name}",
            "region": f"region-{name}",
            "ready": True,
            "network_ms_p50": ms,
            "network_ms_p95": ms,
            "network_measured": True,
            "service_ms_p50": 0.0,
            "service_ms_p95": 0.0,
            "usd_per_hour": usd,
            "usd_per_1000": usd,
            **more,
        }
    )


def order(ranking: list[Ranked]) -> str:
    return " ".join(r.candidate.node for r in ranking)


CASES: list[tuple[str, list[Candidate], Objective, str]] = [
    ("the cheapest in time", [node("a", 10, 3), node("b", 200, 1), node("c", 100, 2)], "cheapest-in-time", "b c a"),
    ("a late one comes last though cheap", [node("a", 400, 1), node("b", 10, 9)], "cheapest-in-time", "b a"),
    ("exactly at the deadline is in time", [node("a", 300, 1), node("b", 10, 9)], "cheapest-in-time", "a b"),
    ("all late: the soonest", [node("a", 900, 1), node("b", 400, 9), node("c", 500, 1)], "cheapest-in-time", "b c a"),
    ("equal price: the sooner", [node("a", 200), node("b", 10)], "cheapest-in-time", "b a"),
    ("free is cheapest", [node("a", 10, 1), node("b", 200, 0)], "cheapest-in-time", "b a"),
    ("an unknown speed is dear", [node("a", 10, math.inf), node("b", 200, 5)], "cheapest-in-time", "b a"),
    ("the nearest", [node("a", 30, 1), node("b", 10, 9), node("c", 20, 1)], "nearest", "b c a"),
    ("equally near: the cheaper", [node("a", 10, 2), node("b", 10.4, 1)], "nearest", "b a"),
    (
        "near and late comes after those that work",
        [node("a", 10, 1, service_ms_p95=900.0), node("b", 90)],
        "nearest",
        "b a",
    ),
    ("all late: the nearest all the same", [node("a", 500, 1), node("b", 400, 9)], "nearest", "b a"),
    ("the cheapest, late or not", [node("a", 10, 2), node("b", 900, 1)], "cheapest", "b a"),
    ("equally cheap: the sooner", [node("a", 20), node("b", 10)], "cheapest", "b a"),
    ("a tie in all is broken by name", [node("b"), node("a")], "cheapest-in-time", "a b"),
    ("not ready comes last", [node("a", 1, 0, ready=False), node("b", 900, 9)], "nearest", "b a"),
    ("none", [], "nearest", ""),
]


@pytest.mark.parametrize(("what", "candidates", "objective", "expected"), CASES, ids=[case[0] for case in CASES])
def test_order(what: str, candidates: list[Candidate], objective: Objective, expected: str) -> None:
    assert order(rank(candidates, objective, DEADLINE_MS)) == expected
    assert order(rank(reversed(candidates), objective, DEADLINE_MS)) == expected


def test_service_counts_towards_the_deadline() -> None:
    slow = node("slow", 10, 1, service_ms_p95=295.0)
    assert order(rank([slow, node("b", 100, 9)], "cheapest-in-time", DEADLINE_MS)) == "b slow"
    assert slow.total_ms_p95 == 305.0


def test_the_tail_decides_not_the_median() -> None:
    shaky = node("shaky", 10, 1, network_ms_p95=250.0)
    assert shaky.total_ms_p95 < DEADLINE_MS and 0.95 < shaky.p_in_time(DEADLINE_MS) < 0.99
    (first, second) = rank([shaky, node("b", 100, 9)], "cheapest-in-time", DEADLINE_MS)
    assert (first.candidate.node, first.in_time) == ("b", True)
    assert (second.candidate.node, second.in_time) == ("shaky", False)


# The best and the present choice: who is kept.
EDGES: list[tuple[str, Candidate, Candidate, Objective, bool]] = [
    (
        "dearer by less than the share",
        node("best", 10, 1.001 - HYSTERESIS),
        node("now", 10, 1.0),
        "cheapest-in-time",
        True,
    ),
    ("dearer by just the share", node("best", 10, 1 - HYSTERESIS), node("now", 10, 1.0), "cheapest-in-time", True),
    ("dearer by more", node("best", 10, 0.999 - HYSTERESIS), node("now", 10, 1.0), "cheapest-in-time", False),
    (
        "late while another is in time",
        node("best", 10, 9),
        node("now", 301 * (1 + GRACE), 1),
        "cheapest-in-time",
        False,
    ),
    ("late by a hair", node("best", 10, 9), node("now", 299 * (1 + GRACE), 1), "cheapest-in-time", True),
    ("cheaper, and just in time", node("best", 300), node("now", 10, 9), "cheapest-in-time", False),
    ("late, another on the edge", node("best", 299, 1), node("now", 301, 9), "cheapest-in-time", False),
    ("both late, nearly as soon", node("best", 1001 - 1000 * HYSTERESIS), node("now", 1000), "cheapest-in-time", True),
    ("both late, clearly later", node("best", 999 - 1000 * HYSTERESIS), node("now", 1000), "cheapest-in-time", False),
    ("both free", node("best", 10, 0), node("now", 200, 0), "cheapest-in-time", True),
    ("another became free", node("best", 10, 0), node("now", 10, 1), "cheapest-in-time", False),
    ("both speeds unknown", node("best", 10, math.inf), node("now", 20, math.inf), "cheapest-in-time", True),
    (
        "farther by less than the share",
        node("best", 100),
        node("now", 100 / (1 - HYSTERESIS) - NEAR_MS),
        "nearest",
        True,
    ),
    ("farther by more", node("best", 100), node("now", 100 / (1 - HYSTERESIS) + NEAR_MS), "nearest", False),
    ("a hair farther", node("best", 1.0), node("now", 0.99 + 2 * NEAR_MS), "nearest", True),
    ("more than a hair", node("best", 1.0), node("now", 1.0 + 2 * NEAR_MS), "nearest", False),
    ("near, but late for all", node("best", 100), node("now", 10, service_ms_p95=900.0), "nearest", False),
    ("cheapest, nearly", node("best", 10, 1.001 - HYSTERESIS), node("now", 900, 1.0), "cheapest", True),
    ("cheapest, clearly not", node("best", 10, 0.5), node("now", 10, 1.0), "cheapest", False),
]


@pytest.mark.parametrize(("what", "best", "now", "objective", "kept"), EDGES, ids=[edge[0] for edge in EDGES])
def test_the_present_choice_stays_against_a_near_tie(
    what: str, best: Candidate, now: Candidate, objective: Objective, kept: bool
) -> None:
    others = [best, now, node("other", 2000, 50)]
    assert order(rank(others, objective, DEADLINE_MS)).startswith("best now")
    found = rank(others, objective, DEADLINE_MS, current="now")
    assert order(found) == ("now best other" if kept else "best now other")


def test_who_stays_though_a_hair_late_says_so() -> None:
    found = rank([node("now", 302, 1), node("sure", 10, 9)], "cheapest-in-time", DEADLINE_MS, current="now")
    assert order(found) == "now sure" and not found[0].in_time
    assert found[0].why == "late by under 1% of 300 ms, which does not move traffic"


def test_a_node_on_the_edge_of_the_deadline_does_not_come_and_go() -> None:
    current, chosen = "edge", []
    for ms in (299, 301, 299, 301, 290, 310, 283, 281):
        pool = [node("edge", ms, 1), node("sure", 100, 9)]
        current = rank(pool, "cheapest-in-time", DEADLINE_MS, current=current)[0].candidate.node
        chosen.append(current)
    assert chosen == [*["edge"] * 5, "sure", *["edge"] * 2]


def test_a_present_choice_that_cannot_serve_is_not_kept() -> None:
    twins = [node("a"), node("b", ready=False)]
    for current in ("b", "gone", None):
        assert order(rank(twins, "nearest", DEADLINE_MS, current=current)) == "a b"
    assert order(rank([node("a", ready=False), node("b", ready=False)], "nearest", DEADLINE_MS, current="b")) == "a b"


ONE, TWO = format_usd(1.0), format_usd(2.0)
WORDS: list[tuple[list[Candidate], Objective, list[str]]] = [
    ([node("a")], "nearest", ["the only node that serves this model now"]),
    (
        [node("a", 10, 1), node("b", 20, 2)],
        "nearest",
        ["nearest: 10.0 ms round trip", "farther: 20.0 ms against 10.0 ms round trip"],
    ),
    (
        [node("a", 10, 1), node("b", 20, 2), node("c", 400, 0.5)],
        "cheapest-in-time",
        [
            "cheapest in time: 10 of 300 ms at p95",
            f"dearer: ${TWO} against ${ONE} per 1,000",
            "too late: 0.0% within 300 ms, 99% are wanted; 400 ms at p99",
        ],
    ),
    (
        [node("a", 400, 1), node("b", 500, 1)],
        "cheapest-in-time",
        [
            "soonest: no node is within 300 ms, this one takes 400 ms at p95",
            "too late: 0.0% within 300 ms, 99% are wanted; 500 ms at p99",
        ],
    ),
    (
        [node("a", 10, 1), node("b", 10, 2)],
        "cheapest",
        [f"cheapest: ${ONE} per 1,000", f"dearer: ${TWO} against ${ONE} per 1,000"],
    ),
    (
        [node("a"), node("b", ready=False, unready_why="it is being drained"), node("c", ready=False)],
        "nearest",
        [
            "the only node that serves this model now",
            "not ready: it is being drained",
            "not ready: does not serve this model",
        ],
    ),
]


@pytest.mark.parametrize(("candidates", "objective", "words"), WORDS)
def test_everyone_hears_why(candidates: list[Candidate], objective: Objective, words: list[str]) -> None:
    assert [ranked.why for ranked in rank(candidates, objective, DEADLINE_MS)] == words


def test_the_reason_for_keeping_the_present_choice() -> None:
    found = rank([node("best", 10, 0.99), node("now", 10, 1)], "cheapest-in-time", DEADLINE_MS, current="now")
    assert found[1].why == f"cheaper by under {HYSTERESIS:.0%}, which does not move traffic"


def test_equal_prices_have_a_reason_that_is_true() -> None:
    """Who costs as much and takes longer lost by time."""
    found = rank([node("a", 10, 1), node("b", 20, 1)], "cheapest-in-time", DEADLINE_MS)
    assert found[1].why == "as cheap: 20 ms against 10 ms at p95"
    found = rank([node("a", 10, 0), node("b", 20, 0)], "cheapest", DEADLINE_MS)
    assert found[1].why == "as cheap: 20 ms against 10 ms at p95"


def test_prices() -> None:
    assert usd_per_1000(3.6, 1.0) == pytest.approx(1.0)
    assert usd_per_1000(1.0, 1000.0) == pytest.approx(1 / 3600)
    assert usd_per_1000(0.0, 10.0) == 0.0


def test_objectives_are_read_by_name() -> None:
    for name in OBJECTIVES:
        assert parse_objective(name) == name
    for wrong in ("", "Nearest", "fastest"):
        with pytest.raises(InvalidInput, match="is not one of cheapest-in-time, nearest, cheapest"):
            parse_objective(wrong)


def test_a_callers_own_measurement_replaces_the_estimate() -> None:
    found = with_network(node("a", 10, network_measured=False), 5.0, 8.0)
    assert (found.network_ms_p50, found.network_ms_p95, found.network_measured) == (5.0, 8.0, True)
