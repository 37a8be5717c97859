"""What a replica tells the router of itself: distributions that age back to what the warm-up proved."""

from __future__ import annotations

import pytest
from nearmesh_agent.serving.measured import HALF_LIFE_S, Measured
from nearmesh_agent.serving.queue import Answer

from nearmesh.package import Batching
from nearmesh.routing.times import Times
from nearmesh.sketch import ACCURACY


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def measured(clock: Clock) -> Measured:
    made = Measured(Batching(max_batch=4), clock)
    made._proven_s, made._proven_row_s = 0.010, 0.004
    return made


def answer(queue_ms: float, compute_ms: float, *, rows: int = 4, first: bool = True, alone: bool = False) -> Answer:
    return Answer({}, queue_ms, compute_ms, batch_rows=rows, first=first, alone=alone)


def close(ms: float) -> object:
    return pytest.approx(ms, rel=2 * ACCURACY)


def test_before_any_request_the_warm_up_speaks(measured: Measured) -> None:
    stats = measured.stats(instances=2, in_flight=0)
    assert stats.service == Times.certain(10.0) and stats.queue == Times.certain(0.0)
    assert stats.inferences_per_second == 500


def test_requests_show_their_whole_time_and_what_of_it_they_waited(measured: Measured) -> None:
    for number in range(400):
        slow = number % 4 == 0
        measured.answered(answer(80.0 if slow else 1.0, 8.0))
        measured.served(90.0 if slow else 12.0)
    stats = measured.stats(instances=1, in_flight=3)
    assert (stats.service.p50_ms, stats.service.p95_ms) == (close(12.0), close(90.0))
    assert (stats.queue.p50_ms, stats.queue.p95_ms) == (close(1.0), close(80.0))
    assert stats.inferences_per_second == close(500) and stats.in_flight == 3


def test_a_row_is_counted_once_for_each_engine_call_and_not_of_a_call_that_had_the_machine(measured: Measured) -> None:
    for _ in range(20):
        measured.answered(answer(0.0, 40.0))
        measured.answered(answer(0.0, 4000.0, first=False))
        measured.answered(answer(0.0, 1.0, alone=True))
    assert measured.stats(instances=1, in_flight=0).inferences_per_second == close(100)


def test_what_a_busy_minute_left_fades_to_what_the_warm_up_proved(measured: Measured, clock: Clock) -> None:
    for second in range(60):
        clock.now_s = float(second)
        for _ in range(50):
            measured.served(1000.0)
    busy_until_s, seen = clock.now_s, []
    for half_lives in range(12):
        clock.now_s = busy_until_s + half_lives * HALF_LIFE_S
        seen.append(measured.service().p95_ms)
    assert seen[0] == seen[1] == close(1000.0)
    assert seen[2] == close(100.0), "half of it, on a logarithmic scale"
    assert seen == sorted(seen, reverse=True) and seen[-1] == close(10.0)


# What a node gets that everybody has left: ten requests a second for a minute, and then one now and then.


@pytest.mark.parametrize(("every_s", "by_s"), [(1.0, 5.0), (2.0, 8.0), (5.0, 15.0)])
def test_a_few_new_requests_outvote_a_bad_minute(measured: Measured, clock: Clock, every_s: float, by_s: float) -> None:
    for tenth in range(600):
        clock.now_s = tenth / 10
        measured.served(1000.0)
        measured.answered(answer(900.0, 8.0))
    for _ in range(round(by_s / every_s)):
        clock.now_s += every_s
        measured.served(20.0)
        measured.answered(answer(1.0, 8.0))
    stats = measured.stats(instances=1, in_flight=0)
    assert (stats.service.p50_ms, stats.queue.p50_ms) == (close(20.0), close(1.0))


def test_a_few_new_requests_that_are_as_bad_confirm_it(measured: Measured, clock: Clock) -> None:
    for tenth in range(600):
        clock.now_s = tenth / 10
        measured.served(1000.0)
    for _ in range(20):
        clock.now_s += 5.0
        measured.served(990.0)
        assert measured.service().p50_ms == pytest.approx(1000.0, rel=0.03)


def test_a_steady_stream_keeps_its_tail_however_thin_it_is(measured: Measured, clock: Clock) -> None:
    """One in ten takes ten times as long: of the last five alone that would not be known."""
    for second in range(200):
        clock.now_s = float(second)
        measured.served(100.0 if second % 10 == 0 else 10.0)
    assert measured.service().ms[-1] == close(100.0)
    assert measured._service_ms._sketch.weight(clock.now_s) > 14


def test_a_pause_makes_a_busy_node_forget_nothing(measured: Measured, clock: Clock) -> None:
    for _ in range(5):
        for tenth in range(50):
            clock.now_s += 0.1
            measured.served(100.0 if tenth % 5 == 0 else 10.0)
        clock.now_s += 5.0
        measured.served(10.0)
        assert measured.service().p95_ms == close(100.0)
