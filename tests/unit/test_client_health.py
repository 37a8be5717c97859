"""When a node is taken out of first choice for its work, and how it comes back, on a clock that the test moves."""

from __future__ import annotations

import math

import pytest

from nearmesh.client.budget import Budget
from nearmesh.client.experience import Experience
from nearmesh.client.health import (
    FIRST_OUT_S,
    FORGET_S,
    GOOD_TRIALS,
    LEAST_TIMES,
    MAX_OUT_S,
    TRIAL_EVERY_S,
    Health,
    State,
    Why,
)
from nearmesh.client.load import DECAY_S, PeakTime
from nearmesh.routing import Times

P50, P95 = 20.0, 30.0
LATE_MS = 3 * P95 + 10


def ordinary() -> float:
    """Peers that are as far from their forecasts as forecast."""
    return 1.0


class Played:
    """A node that plays a script, one letter each 0.1 s: o answers in time, s late, e errs, l loses a race, . waits."""

    def __init__(self, peers: float = 1.0) -> None:
        self.health = Health()
        self.now_s = 100.0
        self.ejections = 0
        self._peers = peers

    def play(self, script: str) -> State:
        for act in script:
            self.now_s += 0.1
            self.ejections += self._one(act)
        return self.health.state(self.now_s)

    def _one(self, act: str) -> bool:
        now_s = self.now_s
        if act == "e":
            return self.health.erred(now_s=now_s)
        if act == "l":
            return self.health.lost_race(now_s=now_s, peers=lambda: self._peers)
        if act in "os":
            ms = P50 if act == "o" else LATE_MS
            return self.health.answered(ms, P50, P95, now_s=now_s, peers=lambda: self._peers)
        return False

    def until_probation(self) -> None:
        while self.health.state(self.now_s) is not State.PROBATION:
            self.now_s += 0.1


@pytest.mark.parametrize(
    ("script", "state", "why"),
    [
        ("", State.HEALTHY, None),
        ("oooooo", State.HEALTHY, None),
        # One error or lost race makes a suspect, for a while.
        ("oooooe", State.SUSPECT, None),
        ("oooool", State.SUSPECT, None),
        ("e" + 100 * ".", State.HEALTHY, None),
        ("l" + 110 * ".", State.HEALTHY, None),
        # Three within a moment eject, if they are more than a fifth of the calls.
        ("eee", State.EJECTED, Why.ERRORS),
        ("oooeoooeoooeoooe", State.EJECTED, Why.ERRORS),
        (40 * "o" + "eeee", State.SUSPECT, None),
        # The same number over a long time does not.
        ("e" + 80 * "." + "e" + 80 * "." + "e", State.SUSPECT, None),
        # Late in the middle of the latest times; races lost count as late.
        ("ssss", State.HEALTHY, None),
        ("sssss", State.EJECTED, Why.SLOW),
        ("lllll", State.EJECTED, Why.SLOW),
        ("osososo", State.HEALTHY, None),
        ("ooossssss", State.EJECTED, Why.SLOW),
    ],
)
def test_what_ejects(script: str, state: State, why: Why | None) -> None:
    found = Played()
    assert found.play(script) is state
    assert found.health.ejected_for(found.now_s) is why
    assert found.ejections == (why is not None)


def test_who_is_as_late_as_its_peers_is_not_ejected() -> None:
    # More than three times its forecast, but the others are at twice theirs.
    assert Played(peers=2.0).play("sssssssss") is State.HEALTHY


def test_a_few_milliseconds_are_no_slowness() -> None:
    health = Health()
    for index in range(20):
        assert not health.answered(20.0, 1.0, 2.0, now_s=index / 10, peers=ordinary)
    assert health.state(2.0) is State.HEALTHY


@pytest.mark.parametrize("cause", ["eee", "sssss"])
def test_good_trials_bring_a_node_back(cause: str) -> None:
    found = Played()
    found.play(cause)
    found.until_probation()
    for _ in range(GOOD_TRIALS - 1):
        assert found.health.take_trial(found.now_s)
        assert not found.health.take_trial(found.now_s + TRIAL_EVERY_S / 2)
        assert found.play("o..") is State.PROBATION
    assert found.play("o") is State.HEALTHY
    assert not found.health.take_trial(found.now_s)
    assert found.health.off_forecast(found.now_s) is None, "what it did before would be held against it"


@pytest.mark.parametrize("bad", ["e", "s", "l"])
def test_a_bad_trial_ejects_again_for_twice_as_long(bad: str) -> None:
    found, outs = Played(), list[float]()
    found.play("eee")
    for _ in range(7):
        ejected_s = found.now_s
        found.until_probation()
        outs.append(found.now_s - ejected_s)
        assert found.play(bad) is State.EJECTED
    assert outs == pytest.approx([FIRST_OUT_S, 2.0, 4.0, 8.0, 16.0, MAX_OUT_S, MAX_OUT_S], abs=0.11)


def test_answers_to_calls_from_before_the_ejection_say_nothing() -> None:
    found = Played()
    found.play("eee")
    assert found.play("ooooe") is State.EJECTED and found.ejections == 1


def test_ejections_soon_after_one_another_are_longer_and_are_forgotten() -> None:
    found = Played()
    for expected_s in (1.0, 2.0):
        found.play("eee")
        ejected_s = found.now_s
        found.until_probation()
        assert found.now_s - ejected_s == pytest.approx(expected_s, abs=0.11)
        found.play(GOOD_TRIALS * "o")
    found.now_s += FORGET_S
    found.play("eee")
    assert found.health.state(found.now_s + 1.05) is State.PROBATION


def test_a_node_that_nobody_could_try_is_taken_back() -> None:
    found = Played()
    found.play("eee")
    assert found.health.state(found.now_s + FIRST_OUT_S + FORGET_S - 0.1) is State.PROBATION
    assert found.health.state(found.now_s + FIRST_OUT_S + FORGET_S) is State.HEALTHY


@pytest.mark.parametrize(
    ("factor", "count", "expected"),
    [(1.0, 16, 1.0), (1.5, 2, 1.0), (1.5, 16, 1.5 ** (2 / 3)), (0.5, 8, 0.5**0.5), (9.0, 16, 2.0), (0.01, 16, 0.5)],
)
def test_the_forecast_is_corrected_as_far_as_the_answers_prove_and_within_bounds(
    factor: float, count: int, expected: float
) -> None:
    health = Health()
    for index in range(count):
        health.answered(factor * P50, P50, math.inf, now_s=index / 100, peers=ordinary)
    assert health.correction(0.2) == pytest.approx(expected)
    assert health.correction(20.0) == 1.0


def test_a_peak_counts_at_once_and_fades() -> None:
    load = PeakTime()
    assert load.expected_ms(10.0, now_s=0.0) == 10.0
    load.add(20.0, now_s=1.0)
    load.add(100.0, now_s=1.1)
    load.add(20.0, now_s=1.2)
    assert 95 < load.expected_ms(10.0, now_s=1.2) < 100
    assert load.expected_ms(10.0, now_s=1.2 + 10 * DECAY_S) == pytest.approx(10.0, abs=0.1)


def test_the_budget_pays_for_one_copy_in_ten_calls() -> None:
    budget = Budget(start=0.0)
    taken = 0
    for _ in range(1000):
        budget.called()
        taken += budget.take()
    assert taken == 100
    for _ in range(1000):
        budget.called()
    assert [budget.take() for _ in range(6)] == 5 * [True] + [False]


# ---- what the experience makes of it

FORECAST = Times.certain(P95)


def test_who_is_slow_is_told_with_what_its_calls_take() -> None:
    found = Experience()
    for index in range(LEAST_TIMES):
        found.took("a", "m", 100.0 + index, FORECAST, now_s=index / 10)
        found.took("b", "m", P50, FORECAST, now_s=index / 10)
        found.lost_race("c", "m", 50.0, now_s=index / 10)
    assert found.slow("m", now_s=0.5) == {"a": 102.0, "c": math.inf}
    assert found.slow("other", now_s=0.5) == {} and found.statistics(now_s=0.5).ejections == 2
    # Long after, when the times are old, it is still known what put them out.
    assert found.slow("m", now_s=30.0) == {"a": 102.0, "c": math.inf}
    assert found.slow("m", now_s=90.0) == {}


def test_a_busy_node_costs_more_and_an_error_counts_as_slow() -> None:
    found = Experience()
    assert found.cost("a", "m", 10.0, now_s=0.0) == 10.0
    found.began("a")
    found.began("a")
    assert found.cost("a", "m", 10.0, now_s=0.0) == 30.0
    found.ended("a")
    found.ended("a")
    found.erred("a", "m", FORECAST, now_s=0.0)
    assert found.cost("a", "m", 10.0, now_s=0.0) == 4 * P95


def test_no_copy_goes_to_a_node_that_cannot_be_reached() -> None:
    found = Experience()
    for index in range(3):
        found.erred("a", "m", FORECAST, now_s=index / 10)
    assert found.out("m", now_s=1.3) == {"a"}
    found.failed("a", now_s=1.3)
    assert not found.take_trial("a", "m", now_s=1.3) and not found.take_trial("b", "m", now_s=1.3)
    found.answered("a")
    assert found.take_trial("a", "m", now_s=1.3)
