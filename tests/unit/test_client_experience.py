"""What a client remembers of each node, on a clock that the test moves."""

from __future__ import annotations

import pytest

from nearmesh.backoff import Backoff
from nearmesh.client.experience import HALF_LIFE_S, MAX_OUT_S, MAX_REPORTED, MIN_SAMPLES, Experience


def test_a_measurement_counts_once_there_are_enough_samples_and_until_they_are_old() -> None:
    found = Experience()
    for index in range(MIN_SAMPLES):
        assert found.measured(now_s=0.0) == {}
        found.sample("a", 10.0 + index, now_s=0.0)
    # Of five samples the largest proves no tail.
    measured = found.measured(now_s=0.0)["a"]
    assert (measured.p50_ms, measured.p95_ms, measured.p99_ms) == pytest.approx((12.0, 13.0, 14.0), rel=0.01)
    assert set(found.measured(now_s=HALF_LIFE_S)) == {"a"}
    assert found.measured(now_s=2 * HALF_LIFE_S + 1) == {}


def test_samples_are_reported_once_and_in_bounded_number() -> None:
    found = Experience()
    for index in range(MAX_REPORTED + 50):
        found.sample("a", float(index), now_s=0.0)
    assert len(found.take_unreported()["a"]) == MAX_REPORTED
    assert found.take_unreported() == {}


def test_a_failed_node_is_out_until_it_answers_and_longer_each_time() -> None:
    told: list[str] = []
    found, now_s, waits = Experience(told.append), 0.0, list[float]()
    for _ in range(7):
        found.failed("a", now_s=now_s)
        due_s = found.probe_due_s("a")
        assert due_s is not None
        waits.append(due_s - now_s)
        now_s = due_s
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, MAX_OUT_S, MAX_OUT_S]
    assert found.out("m", now_s=now_s + 1000) == {"a"} and told == ["a"] * 7
    found.answered("a")
    assert found.out("m", now_s=now_s) == set() and found.probe_due_s("a") is None


def test_failures_of_calls_that_were_under_way_together_count_as_one() -> None:
    found = Experience()
    for _ in range(50):
        found.failed("a", now_s=0.1)
    assert found.probe_due_s("a") == pytest.approx(0.6)


def test_a_refusal_is_about_one_model_and_passes() -> None:
    found = Experience()
    found.refused("a", "m", now_s=0.0)
    assert found.out("m", now_s=0.4) == {"a"} and found.out("other", now_s=0.4) == set()
    assert found.out("m", now_s=0.6) == set()
    found.refused("a", "m", now_s=1.0, retry_after_ms=2000)
    assert found.out("m", now_s=2.9) == {"a"} and found.out("m", now_s=3.1) == set()


def test_a_probe_does_not_lift_a_refusal_and_an_answer_does() -> None:
    found = Experience()
    found.refused("a", "m", now_s=0.0)
    found.answered("a")
    assert found.out("m", now_s=0.1) == {"a"}
    found.answered("a", "m")
    assert found.out("m", now_s=0.1) == set()


def test_a_forgotten_node_starts_afresh() -> None:
    found = Experience()
    found.failed("a", now_s=0.0)
    found.forget("a")
    assert found.out("m", now_s=0.0) == set()


def test_backoff_doubles_to_its_most_and_starts_again_after_success() -> None:
    backoff = Backoff(1.0, 5.0)
    for ceiling_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert ceiling_s / 2 <= backoff.next_s() <= ceiling_s
    backoff.reset()
    assert backoff.next_s() <= 1.0
