"""What a replay is held against, and what comes out of it: the optimum in hindsight, the bars, the page."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from benchmarks.replay import page
from benchmarks.replay.figures import Outcome, fault_verdicts, outcome, verdicts
from benchmarks.replay.optimum import Optimum, Transport, chances, optimum, truly_allowed
from benchmarks.replay.ours import Nearmesh
from benchmarks.replay.simulation import GIVE_UP_S, Played, play
from benchmarks.replay.world import Absence, absences, arrivals
from tests.replay_worlds import PRICES, steady, world

# Hindsight.


def test_the_transport_problem() -> None:
    allowed = np.array([[True, True], [True, False]])
    program = Transport(allowed)
    flow, left = program.solve(np.array([1.0, 3.0]), np.array([2.0, 1.0]), np.array([2.0, 5.0]))
    # The second region has no other place, so the first one makes room.
    assert flow.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    assert left.tolist() == [0.0, 0.0]
    _, left = program.solve(np.array([1.0, 3.0]), np.array([2.0, 4.0]), np.array([2.0, 5.0]))
    assert left.tolist() == [0.0, 2.0]


def test_the_optimum_is_no_dearer_than_what_we_do() -> None:
    there = world(steady(20))
    best = optimum(there)
    each = there.usd_per_request[0]
    assert best.usd == pytest.approx(float(each[1]) * len(there.arrival_s))
    assert best.unplaced == 0
    assert best.in_time == 1.0
    assert best.usd <= play(there, Nearmesh).usd + 1e-12


def test_the_optimum_knows_when_a_machine_is_away_and_what_prices_do() -> None:
    half = world(
        steady(20),
        absences=(Absence(1, 30.0, 35.0, 90.0),),
        price_since_s=np.array([0.0, 15.0]),
        usd_per_hour=np.array([PRICES, [1.0, 0.8, 0.1]]),
    )
    each = half.usd_per_request
    assert optimum(half).usd == pytest.approx(300 * each[0, 1] + 300 * each[1, 1] + 600 * each[0, 0], rel=0.01)


def test_who_is_in_time_by_the_true_times() -> None:
    there = world()
    allowed, utilization = truly_allowed(there)
    assert allowed[0].tolist() == [True, True, False]
    assert ((utilization > 0) & (utilization < 1)).all()
    assert chances(there)[0] == pytest.approx([1.0, 1.0, 0.0], abs=0.001)


# The world.


def test_spot_machines_come_and_go_and_never_overlap() -> None:
    rng = np.random.default_rng(1)
    found = [absences(rng, 0, up_s=300.0, down_s=100.0, duration_s=3600.0, notice_s=30.0) for _ in range(200)]
    for day in found:
        for before, after in itertools.pairwise(day):
            assert before.on_s < after.notice_s < after.off_s
    away_s = sum(min(gone.on_s, 3600.0) - gone.off_s for day in found for gone in day)
    assert away_s / (200 * 3600) == pytest.approx(0.25, abs=0.06)


def test_arrivals_come_in_order_at_the_given_rates() -> None:
    rates = np.array([[10.0] * 500, [0.0] * 250 + [40.0] * 250])
    at_s, region = arrivals(np.random.default_rng(1), rates, 1.0)
    assert (np.diff(at_s) >= 0).all()
    assert (region == 0).sum() == pytest.approx(5000, rel=0.05)
    assert at_s[region == 1].min() >= 250
    assert (region == 1).sum() == pytest.approx(10000, rel=0.05)


# What comes out.


def made(policy: str, **changes: Any) -> Outcome:
    plain = Outcome(
        policy=policy,
        requests=1000,
        usd_per_million=1.0,
        of_optimum=1.02,
        in_time=0.995,
        of_feasible=0.996,
        p50_ms=80.0,
        p99_ms=150.0,
        failed=0.0,
        extra=0.01,
        utilization=0.2,
    )
    return replace(plain, **changes)


def test_outcome_counts_what_failed_as_late() -> None:
    played = Played(
        policy="p",
        took_s=np.array([0.1, 0.2, 0.3, GIVE_UP_S]),
        failed=np.array([False, False, False, True]),
        usd=2.0,
        served=np.array([3, 0, 0]),
        extra=1,
    )
    found = outcome(world([1.0] * 4), played, Optimum(usd=1.0, unplaced=0.0, in_time=0.8))
    assert (found.in_time, found.of_feasible, found.of_optimum) == (0.5, 0.625, 2.0)
    assert (found.failed, found.extra, found.usd_per_million) == (0.25, 0.25, 500_000.0)


@pytest.mark.parametrize(
    ("ours", "rival", "held"),
    [
        ({}, {"usd_per_million": 1.3}, [True, True, True, True]),
        ({"of_optimum": 1.06}, {"usd_per_million": 1.3}, [False, True, True, True]),
        ({"of_feasible": 0.98}, {"usd_per_million": 1.3}, [True, False, True, True]),
        ({}, {"usd_per_million": 1.1}, [True, True, False, True]),
        ({}, {"usd_per_million": 1.1, "of_feasible": 0.9}, [True, True, True, True]),
        ({}, {"usd_per_million": 0.9}, [True, True, False, False]),
    ],
)
def test_the_bars_of_a_healthy_day(ours: Any, rival: Any, held: list[bool]) -> None:
    assert [verdict.held for verdict in verdicts(made("ours", **ours), [made("rival", **rival)])] == held


def test_the_bars_of_an_ill_day() -> None:
    rivals = [made("one", p99_ms=140.0), made("other", p99_ms=130.0)]
    near, cheap = made("near", p99_ms=135.0), made("cheap", of_feasible=0.995)
    assert [verdict.held for verdict in fault_verdicts(cheap, near, rivals)] == [False, True]
    assert "135.0 ms against 130.0 ms (other)" in fault_verdicts(cheap, near, rivals)[0].found


def test_the_page_shows_every_day_bar_and_assumption() -> None:
    day = {
        "name": "calm",
        "what": "A calm day.",
        "ill": False,
        "ours": [asdict(made("Nearmesh"))],
        "rivals": [asdict(made("nearest", usd_per_million=1.5, of_optimum=1.53, failed=0.001))],
        "unplanned": asdict(made("cheapest, within reach", of_feasible=0.97)),
        "verdicts": [asdict(verdict) for verdict in verdicts(made("Nearmesh"), [made("nearest", usd_per_million=1.5)])],
        "played_s": 12.3,
    }
    results = {
        "taken": {
            "at": "2030-01-02T03:04:05+00:00",
            "command": "python -m benchmarks.replay",
            "commit": "0123456789abcdef",
            "uncommitted_changes": False,
            "duration_s": 200.0,
        },
        "machine": {
            "cpu": "a cpu",
            "cores": 2,
            "memory_gb": 8.0,
            "kernel": "Linux",
            "load_before": 0.1,
            "python": "3.11",
        },
        "days": [day, {**day, "name": "ill", "ill": True}],
    }
    found = page.page(results)
    for part in (
        "### calm",
        "### ill",
        "| nearest | 1.530 | 1.50 |",
        "0.10%",
        page.UNPLANNED,
        "0.9700",
        "NEARMESH_TEST_DATA",
        "commit `0123",
    ):
        assert part in found
    assert page.held(results)
    assert len(page.tables(results)) == 3
