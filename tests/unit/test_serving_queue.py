"""The queue of one replica: who is served first, with whom, and who leaves."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearmesh_agent.serving.queue import RequestQueue, Waiting


@pytest.fixture(autouse=True, scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


def request(loop, *, rows=1, kind="a", priority=2, deadline_s=math.inf):
    return Waiting({"x": np.zeros(rows)}, rows, kind, priority, deadline_s, 0.0, loop.create_future())


def filled(*requests):
    queue = RequestQueue()
    for one in requests:
        queue.push(one)
    return queue


def drained(queue, most_rows=1):
    served = []
    while queue:
        batch, late = queue.pop(most_rows, 0.0)
        assert not late
        served.extend(batch)
    return served


def test_priority_then_deadline_then_arrival(loop):
    low = request(loop, priority=3, deadline_s=1)
    none = request(loop)
    late, soon = request(loop, deadline_s=9), request(loop, deadline_s=5)
    second = request(loop, deadline_s=5)
    high = request(loop, priority=1)
    assert drained(filled(low, none, late, soon, second, high)) == [high, soon, second, late, none, low]


def test_a_batch_is_of_one_kind_and_its_head_is_the_most_urgent(loop):
    a, b = request(loop, kind="a", deadline_s=5), request(loop, kind="b", deadline_s=4)
    b_later, a_soon = request(loop, kind="b", deadline_s=9), request(loop, kind="a", deadline_s=6)
    queue = filled(a, b, b_later, a_soon)
    assert queue.pop(8, 0.0) == ([b, b_later], [])
    assert queue.pop(8, 0.0) == ([a, a_soon], [])
    assert queue.pop(8, 0.0) == ([], [])


def test_rows_are_bounded_but_for_a_request_that_is_larger_alone(loop):
    large, two, three, one = (request(loop, rows=rows) for rows in (9, 2, 3, 1))
    queue = filled(large, two, three, one)
    assert queue.rows == 15
    assert queue.pop(4, 0.0)[0] == [large]
    # The next in line does not fit, and none may overtake it.
    assert queue.pop(4, 0.0)[0] == [two]
    assert queue.pop(4, 0.0)[0] == [three, one]
    assert queue.rows == len(queue) == 0


def test_p7_who_left_or_is_late_is_not_served(loop):
    left, late, served = request(loop), request(loop, deadline_s=1), request(loop, deadline_s=3)
    queue = filled(left, late, served)
    assert queue.leave(left) and not queue.leave(left)
    assert not left.inputs
    assert (len(queue), queue.rows) == (2, 2)
    assert queue.pop(8, 1.0) == ([served], [late])
    assert not queue.leave(served) and not queue.leave(late)
    assert (len(queue), queue.rows) == (0, 0)


def test_rows_ahead_and_behind(loop):
    high, soon, late = request(loop, priority=1, rows=4), request(loop, deadline_s=2), request(loop, deadline_s=8)
    low, later = request(loop, priority=3), request(loop, deadline_s=9, rows=2)
    queue = filled(later, high, soon, late, low)
    assert queue.rows_ahead(1, 0.0) == 0
    assert queue.rows_ahead(2, 1.0) == 4
    assert queue.rows_ahead(2, 2.0) == 5
    assert queue.rows_ahead(2, math.inf) == 8
    assert queue.rows_ahead(3, math.inf) == 9
    assert queue.behind(2, 2.0) == [late, later]
    assert queue.behind(2, 9.0) == queue.behind(5, 0.0) == []
    assert queue.least_urgent() is low


def test_those_who_leave_do_not_pile_up_below_the_others(loop):
    first = request(loop, deadline_s=1)
    queue = filled(first)
    for _ in range(1000):
        impatient = request(loop, deadline_s=2)
        queue.push(impatient)
        queue.leave(impatient)
    assert sum(len(heap) for heap in queue._heaps.values()) < 100
    assert queue.pop(8, 0.0) == ([first], [])


PUSH = st.tuples(
    st.just("push"), st.integers(1, 4), st.sampled_from("abc"), st.integers(1, 3), st.sampled_from([1.0, 2.0, math.inf])
)
STEPS = st.lists(
    st.one_of(PUSH, PUSH, st.tuples(st.just("leave"), st.integers(0, 30)), st.tuples(st.just("pop"), st.integers(1, 6)))
)


@given(STEPS, st.sampled_from([0.0, 1.0]))
def test_any_order_of_pushes_leaves_and_pops(loop, steps, now_s):
    """Against a plain list: counts are right, nothing is lost or served twice, and order is by urgency."""
    queue, waiting, everyone = RequestQueue(), [], []
    for step in steps:
        if step[0] == "push":
            _, rows, kind, priority, deadline_s = step
            one = request(loop, rows=rows, kind=kind, priority=priority, deadline_s=deadline_s)
            everyone.append(one)
            waiting.append(one)
            queue.push(one)
        elif step[0] == "leave" and everyone:
            one = everyone[step[1] % len(everyone)]
            assert queue.leave(one) == (one in waiting)
            waiting = [other for other in waiting if other is not one]
        elif step[0] == "pop":
            batch, late = queue.pop(step[1], now_s)
            assert all(one.deadline_s <= now_s for one in late)
            waiting = [one for one in waiting if one not in late]
            order = sorted((one for one in waiting if one.deadline_s > now_s), key=lambda one: one.urgency)
            assert bool(batch) == bool(order)
            if batch:
                assert batch[0] is order[0]
                alike = [one for one in order if one.kind == batch[0].kind]
                assert batch == alike[: len(batch)]
                assert len(batch) == 1 or sum(one.rows for one in batch) <= step[1]
            waiting = [one for one in waiting if one not in batch]
        assert len(queue) == len(waiting)
        assert queue.rows == sum(one.rows for one in waiting)
        assert set(queue) == set(waiting)
        for priority in (1, 2, 3):
            ahead = [one for one in waiting if one.urgency <= (priority, 1.0)]
            assert queue.rows_ahead(priority, 1.0) == sum(one.rows for one in ahead)
