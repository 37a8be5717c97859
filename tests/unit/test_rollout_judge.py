"""When a version is taken back: tables of counts, times and answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from nearmesh_controlplane.rollouts import judge
from nearmesh_controlplane.rollouts.evidence import Counts, Evidence, NodeEvidence
from nearmesh_controlplane.rollouts.rollout import Limits, Plan, Rollout
from nearmesh_controlplane.rollouts.scope import Scope
from nearmesh_controlplane.rollouts.statistics import surely_larger_by, wilson
from nearmesh_controlplane.rollouts.views import View

from nearmesh.v1 import node_pb2 as pb

READY, FAILED = pb.REPLICA_STATE_READY, pb.REPLICA_STATE_FAILED


def rollout(**more: object) -> Rollout:
    plan = Plan(strategy="canary", steps=(0.05,), limits=Limits(agreement=0.9))
    values = {"phase": "steps", "id": 1, "model": "m", "version": "2", "digest": "new", "actor": "me", **more}
    return Rollout(scope=Scope(), plan=plan, created_at_s=0.0, **values)  # type: ignore[arg-type]


def view(node: str = "a", *, p95: float = 5.0, standing_ms: float = 5.0, **more: object) -> View:
    new = pb.ReplicaStatus(digest="new", state=READY, on_trial=True, service_ms_p95=p95)
    return View(node=node, standing="old", standing_ms=standing_ms, **{"new": new, **more})  # type: ignore[arg-type]


NONE = Counts()


def counted(new: Counts, old: Counts = NONE, **more: object) -> NodeEvidence:
    return NodeEvidence(view=view(), new=new, old=old, **more)  # type: ignore[arg-type]


# Figures of the intervals, by their formulas.


@pytest.mark.parametrize(
    ("hits", "trials", "least", "most"),
    [
        (0, 0, 0.0, 1.0),
        (0, 10, 0.0, 0.4885),
        (10, 10, 0.5115, 1.0),
        (1, 1, 0.0948, 1.0),
        (5, 100, 0.0139, 0.1646),
        (1, 10_000, 0.00001, 0.0015),
    ],
)
def test_wilson(hits: int, trials: int, least: float, most: float) -> None:
    assert wilson(hits, trials) == pytest.approx((least, most), abs=5e-4)


def test_newcombes_own_example() -> None:
    """Statistics in Medicine 17 (1998), table II, case a, method 10: 56/70 and 48/80 differ by 0.0524 at least."""
    assert surely_larger_by(56, 70, 48, 80, z=1.959964) == pytest.approx(0.0524, abs=1e-4)


@pytest.mark.parametrize(
    ("new", "old", "taken"),
    [
        # One of ten thousand, and the very first request: no verdict.
        ((1, 10_000), (0, 100_000), False),
        ((1, 1), (0, 100_000), False),
        ((2, 2), (0, 100_000), False),
        ((10, 10_000), (0, 100_000), False),
        # Everything fails, at once.
        ((3, 3), (0, 100_000), True),
        ((3, 3), (0, 0), True),
        # Five of a hundred.
        ((5, 100), (0, 2_000), True),
        ((3, 60), (0, 1_200), True),
        ((50, 1_000), (0, 20_000), True),
        # As bad as the standing one, or better.
        ((5, 100), (100, 2_000), False),
        ((50, 1_000), (1_000, 20_000), False),
        ((20, 100), (10, 100), False),
        ((40, 100), (5, 100), True),
    ],
)
def test_failures(new: tuple[int, int], old: tuple[int, int], taken: bool) -> None:
    found = counted(Counts(answered=new[1] - new[0], failed=new[0]), Counts(answered=old[1] - old[0], failed=old[0]))
    assert bool(judge.breach(rollout(), [found])) is taken


def test_a_standing_version_that_is_not_asked_any_more_is_known_by_what_it_did_before() -> None:
    new, ever = Counts(answered=980, failed=20), Counts(answered=98_000, failed=2_000)
    assert judge.breach(rollout(), [counted(new)])
    assert judge.breach(rollout(), [counted(new, old_ever=ever)]) == ""
    assert judge.breach(rollout(), [counted(new, Counts(answered=10_000), old_ever=ever)]), "of late it did better"


def test_mirrored_requests_count_too() -> None:
    """Of 1,000 copies 10 failed, as of the requests of the standing version: nothing to see in those 10."""
    new = Counts(answered=20, failed=10, compared=1_000, agreed=990)
    assert judge.breach(rollout(), [counted(new, Counts(answered=9_900, failed=100))]) == ""
    assert judge.requests([counted(new)]) == 1_020
    everything = Counts(failed=8, compared=8)
    assert "8 of its 8 requests failed" in judge.breach(rollout(), [counted(everything, Counts(answered=100))])


def test_failures_of_all_nodes_count_together() -> None:
    each = counted(Counts(answered=19, failed=1), Counts(answered=400))
    assert judge.breach(rollout(), [each]) == ""
    assert "3 of its 60 requests failed, and 0 of 1200" in judge.breach(rollout(), [each] * 3)


@pytest.mark.parametrize(
    ("agreed", "compared", "taken"),
    [(0, 4, False), (0, 5, True), (4, 5, False), (0, 20, True), (9, 20, True), (85, 100, False), (850, 1000, True)],
)
def test_agreement(agreed: int, compared: int, taken: bool) -> None:
    found = counted(Counts(answered=100, compared=compared, agreed=agreed))
    assert bool(judge.breach(rollout(), [found])) is taken


def test_answers_that_nobody_compares_are_not_judged() -> None:
    plan = Plan(strategy="canary", steps=(0.5,))
    found = counted(Counts(answered=100, compared=100, agreed=0))
    assert judge.breach(rollout(), [found])
    assert judge.breach(Rollout(**{**_fields(rollout()), "plan": plan}), [found]) == ""


def _fields(found: Rollout) -> dict[str, object]:
    return {name: getattr(found, name) for name in found.__slots__}


@pytest.mark.parametrize(
    ("p95", "standing_ms", "slow"),
    [
        (5.0, 5.0, False),
        # Twice a few milliseconds is nothing.
        (10.0, 5.0, False),
        (15.0, 5.0, False),
        (15.1, 5.0, True),
        (50.0, 5.0, True),
        (190.0, 100.0, False),
        (201.0, 100.0, True),
        # Nobody knows.
        (500.0, 0.0, False),
        (0.0, 5.0, False),
    ],
)
def test_what_is_too_slow(p95: float, standing_ms: float, slow: bool) -> None:
    found = view(p95=p95, standing_ms=standing_ms)
    assert judge.slow_nodes(rollout(), [found]) == (["a"] if slow else [])
    assert judge.slow_nodes(rollout(), [view(p95=p95, standing_ms=standing_ms, live=False)]) == []


def test_a_node_that_changed_over_is_held_against_what_it_was_before() -> None:
    after = rollout(changed={"a": 5.0}, phase="rolling")
    assert judge.slow_nodes(after, [view(p95=50.0, standing_ms=0.0)]) == ["a"]


def _report(answered: int, p95: float = 50.0) -> View:
    new = pb.ReplicaStatus(digest="new", state=READY, on_trial=True, service_ms_p95=p95, answered=answered)
    return View(node="a", standing="old", standing_ms=5.0, new=new)


def _looks(*views: View) -> list[bool]:
    """After each of them, whether it is taken back."""
    evidence, found = Evidence(), []
    for seen in views:
        evidence.observe("step", [seen], judge.slow_nodes(rollout(), [seen]))
        found.append(bool(judge.breach(rollout(), evidence.nodes([seen]))))
    return found


def test_slow_for_some_reports_in_a_row() -> None:
    reports = [_report(10 * number) for number in range(5)]
    assert _looks(*reports) == [False, False, True, True, True]
    # The same report seen again is no further finding.
    assert _looks(reports[0], reports[2], reports[2], reports[2]) == [False] * 4
    # A hiccup passes.
    assert _looks(reports[0], reports[1], _report(20, p95=5.0), reports[3], reports[4]) == [False] * 5
    # Few requests are no 95th percentile.
    assert _looks(*(_report(number) for number in range(8))) == [False] * 8


def test_a_refusal_is_a_breach_and_a_lack_is_none() -> None:
    for detail, words in (("WARMUP_FAILED: 3", "a refuses it: WARMUP_FAILED: 3"), ("", "the node gave no reason")):
        failed = view(new=pb.ReplicaStatus(digest="new", state=FAILED, detail=detail))
        assert words in judge.breach(rollout(), [NodeEvidence(view=failed)])
    for detail in ("UNREACHABLE: x", "STORAGE: disk full", "NOT_READY: no memory", "NOT_FOUND: not yet"):
        failed = view(new=pb.ReplicaStatus(digest="new", state=FAILED, detail=detail))
        assert judge.breach(rollout(), [NodeEvidence(view=failed)]) == ""


@pytest.mark.parametrize(
    ("lost_s", "taken"),
    [
        # One of three may have gone for any reason.
        ((30.0, 0.0, 0.0), False),
        ((5.0, 5.0, 5.0), False),
        ((7.0, 7.0, 0.0), True),
        ((7.0, 7.0, 7.0), True),
        # An hour apart they have nothing in common.
        ((3600.0, 7.0, 0.0), False),
        ((7.0,), True),
    ],
)
def test_nodes_that_go_away(lost_s: tuple[float, ...], taken: bool) -> None:
    views = [view(f"n{i}", live=lost == 0, lost_s=lost) for i, lost in enumerate(lost_s)]
    assert bool(judge.breach(rollout(), [NodeEvidence(view=v) for v in views])) is taken


# What nodes counted


def _counts(**values: int) -> View:
    return View(node="a", standing="old", new=pb.ReplicaStatus(digest="new", state=READY, **values))


def _since(*reports: View, steps: str = "") -> Counts:
    evidence = Evidence()
    for number, seen in enumerate(reports):
        evidence.observe(steps[number] if steps else "", [seen])
    return evidence.nodes([reports[-1]])[0].new


def test_counts_begin_with_the_step_and_outlive_restarts_of_the_node() -> None:
    reports = [_counts(answered=100, failed=7), _counts(answered=130, failed=8), _counts(answered=150, failed=8)]
    assert _since(*reports) == Counts(answered=50, failed=1)
    # It counts from nothing again.
    assert _since(*reports, _counts(answered=5, failed=2)) == Counts(answered=55, failed=3)
    assert _since(*reports, _counts(answered=170, failed=9), steps="1112") == Counts(answered=20, failed=1)
    assert _since(_counts(compared=10, agreed=9), _counts(compared=20, agreed=18)) == Counts(compared=10, agreed=9)


def test_a_report_of_nonsense_is_within_bounds() -> None:
    found = _since(_counts(compared=0), _counts(compared=10, agreed=1000))
    assert found == Counts(compared=10, agreed=10)


def test_who_is_away_says_nothing_new() -> None:
    evidence = Evidence()
    first, later = _counts(answered=1), View(node="a", live=False, new=pb.ReplicaStatus(digest="new", answered=99))
    evidence.observe("", [first])
    evidence.observe("", [later])
    assert evidence.nodes([later])[0].new == Counts()


# How the rule does over whole rollouts


def _taken_back_after_s(chance: np.random.Generator, new: float, old: float) -> int:
    """Seconds; 0: never. 50 requests a second, three steps of 30 s, looked at each second, a quarter mirrored."""
    ever = Counts(answered=round(50_000 * (1 - old)), failed=round(50_000 * old))
    for number, share in enumerate((0.05, 0.25, 0.5)):
        counts, standing = Counts(), Counts()
        for second in range(30):
            asked, others = chance.poisson(50 * share), chance.poisson(50 * (1 - share))
            mirrored = chance.binomial(others, 0.25)
            failed, also = chance.binomial(asked, new), chance.binomial(mirrored, new)
            counts += Counts(asked - failed, failed + also, mirrored, mirrored - also)
            failed = chance.binomial(others, old)
            standing += Counts(others - failed, failed)
            if judge.breach(CALM, [counted(counts, standing, old_ever=ever)]):
                return 30 * number + second + 1
    return 0


CALM = dataclasses.replace(rollout(), plan=Plan(strategy="canary", steps=(0.05,)))


@pytest.mark.parametrize(("rate", "most"), [(0.001, 0), (0.01, 1), (0.05, 6)])
def test_a_version_that_fails_as_often_is_hardly_ever_taken_back(rate: float, most: int) -> None:
    """Of 200 rollouts."""
    chance = np.random.default_rng(5)
    assert sum(_taken_back_after_s(chance, rate, rate) > 0 for _ in range(200)) <= most


@pytest.mark.parametrize(("rate", "median_s", "most_s"), [(0.05, 12, 30), (0.1, 6, 15), (0.3, 2, 5), (1.0, 1, 2)])
def test_how_soon_one_that_fails_more_is_found(rate: float, median_s: float, most_s: float) -> None:
    chance = np.random.default_rng(5)
    found = sorted(_taken_back_after_s(chance, rate, 0.0) for _ in range(100))
    assert 0 < found[50] <= median_s and found[0] > 0 and found[95] <= most_s, found
