"""Whether a request can still be answered in time: the formulas, and whom they refuse."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearmesh_agent.serving.admission import Load, Outcomes, finish_s, hopeless, usable_s
from nearmesh_agent.serving.queue import RequestQueue, Waiting
from nearmesh_agent.serving.times import ServiceTimes


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


def steady(max_rows=0, **seconds_of):
    """Times without any deviation."""
    times = ServiceTimes(max_rows)
    for name, seconds in seconds_of.items():
        for _ in range(200):
            times.add(int(name[1:]), seconds)
    return times


def request(loop, deadline_s, *, priority=2, rows=1):
    return Waiting({}, rows, "", priority, deadline_s, 0.0, loop.create_future())


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load(1, 0.0), 0.1),
        (Load(1, 0.05), 0.15),
        (Load(1, 0.05, 3), 0.45),
        (Load(2, 0.05, 4), 0.35),
    ],
)
def test_the_wait_adds_up(load, expected):
    assert finish_s(load, 1, steady(r1=0.1)) == pytest.approx(expected)


def test_batches_shorten_the_wait():
    times = steady(8, r1=0.1, r8=0.2)
    assert times.best == 8
    # Sixteen rows ahead are two calls, and the request shares the third.
    assert finish_s(Load(1, 0.0, 16), 1, times) == pytest.approx(0.6)
    assert finish_s(Load(1, 0.0, 0), 1, times) == pytest.approx(0.1)


def test_uncertain_times_ask_for_more():
    times = ServiceTimes(0)
    times.add(1, 0.1)
    one, many = (finish_s(Load(1, 0.0, rows), 1, times) for rows in (0, 8))
    assert one == pytest.approx(0.1 + 2 * 0.025)
    assert many == pytest.approx(0.9 + 2 * 0.025 * 3)


def test_nothing_known_refuses_nobody(loop):
    assert finish_s(Load(1, 0.0, 100), 1, ServiceTimes(0)) == 0.0
    assert hopeless(request(loop, 0.002), RequestQueue(), ServiceTimes(0), Load(1, 0.0), Outcomes(), now_s=0.0) is None


@pytest.mark.parametrize(("timeout_s", "expected"), [(1.0, 0.95), (0.01, 0.009), (math.inf, math.inf)])
def test_some_of_the_time_is_kept_for_the_answer(timeout_s, expected):
    assert usable_s(timeout_s) == pytest.approx(expected)


def test_p6_a_request_that_cannot_make_it_is_hopeless(loop):
    times, queue = steady(r1=0.1), RequestQueue()
    for _ in range(2):
        queue.push(request(loop, 0.3))
    assert hopeless(request(loop, 0.5), queue, times, Load(1, 0.1), Outcomes(), now_s=0.0) is None
    refused = hopeless(request(loop, 0.41), queue, times, Load(1, 0.1), Outcomes(), now_s=0.0)
    assert refused.why == "it would take about 400 ms, the request has 410 ms left"
    # Among those of a lower priority it is the first.
    assert hopeless(request(loop, 0.25, priority=1), queue, times, Load(1, 0.1), Outcomes(), now_s=0.0) is None
    assert hopeless(request(loop, math.inf), queue, times, Load(1, 0.1), Outcomes(), now_s=0.0) is None


def test_p6_nobody_overtakes_those_who_would_then_be_late(loop):
    times, queue = steady(r1=0.1), RequestQueue()
    queue.push(request(loop, 0.35))
    queue.push(request(loop, 0.45))
    late = hopeless(request(loop, 0.25), queue, times, Load(1, 0.1), Outcomes(), now_s=0.0)
    assert late is None
    queue.push(request(loop, 0.44))
    assert "later deadline" in hopeless(request(loop, 0.25), queue, times, Load(1, 0.1), Outcomes(), now_s=0.0).why


def test_who_is_late_anyway_keeps_nobody_out(loop):
    """The engine has become slower: those who came before are lost with the newcomer or without."""
    times, queue = steady(8, r1=0.1, r2=0.2, r4=0.4), RequestQueue()
    queue.push(request(loop, 0.3, rows=4))
    assert hopeless(request(loop, 0.2), queue, times, Load(1, 0.0), Outcomes(), now_s=0.0) is None
    queue.push(request(loop, 0.65))
    late = hopeless(request(loop, 0.25, rows=2), queue, times, Load(1, 0.0), Outcomes(), now_s=0.0)
    assert "later deadline" in late.why


def test_what_is_set_aside_grows_with_every_late_answer_until_one_in_a_hundred_is():
    outcomes = Outcomes()
    least = outcomes.reserve
    for _ in range(100):
        outcomes.answered(0.1, 0.2)
    assert outcomes.reserve == least
    outcomes.answered(-0.01, 0.2)
    outcomes.answered(0.001, 0.2)
    assert outcomes.reserve == pytest.approx(least + 0.02)
    for _ in range(100):
        outcomes.answered(0.1, 0.2)
    assert outcomes.reserve == pytest.approx(least + 0.01)
    for _ in range(1000):
        outcomes.answered(-1.0, 0.2)
    assert usable_s(1.0, outcomes.reserve) == pytest.approx(0.7)


def test_those_who_will_leave_are_not_waited_for():
    outcomes = Outcomes()
    for _ in range(1000):
        outcomes.waited(gave_up=True)
        outcomes.waited(gave_up=False)
    assert outcomes.leaving == pytest.approx(0.5, abs=0.02)


NUMBERS = st.integers(1, 20)
RESERVED = st.floats(0.05, 2.0)


@given(
    st.lists(st.tuples(NUMBERS, RESERVED), max_size=8),
    st.tuples(NUMBERS, RESERVED),
    st.integers(1, 4),
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(0.001, 0.2), min_size=1),
)
def test_p6_the_quick_way_lets_in_nobody_whom_the_careful_way_would_refuse(loop, waiting, asking, instances, seconds):
    """A larger call takes at least as long as a smaller one, as it does unless a measurement was disturbed."""
    longest, taken = 0.0, {}
    for rows in sorted(seconds):
        longest = max(longest, seconds[rows])
        taken[f"r{rows}"] = longest
    times, queue = steady(32, **taken), RequestQueue()
    for rows, deadline_s in waiting:
        queue.push(request(loop, deadline_s, rows=rows))
    asked = request(loop, asking[1], rows=asking[0])
    load, outcomes = Load(instances, 0.01), Outcomes()
    quick = hopeless(asked, queue, times, load, outcomes, now_s=0.0)
    # So large that the quick way never applies.
    queue.most_rows = 10**9
    careful = hopeless(asked, queue, times, load, outcomes, now_s=0.0)
    assert quick == careful
