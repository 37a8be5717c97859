"""Requests meet the engine: who shares a call, who comes first, who is refused, and how it ends."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from nearmesh_agent.serving.occupancy import Occupancy, runnable_threads
from nearmesh_agent.serving.times import ServiceTimes

from nearmesh.errors import DeadlineExceeded, EngineFailure, NotReady, Overloaded
from tests.gated_engine import Gate
from tests.scheduling import all_started, answers_of, ask, scheduler_of, started, times_of

NAN = float("nan")


async def test_requests_that_wait_share_a_call():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine)
    first = await started(scheduler, ask(1))
    await engine.entered()
    tasks = await all_started(scheduler, ask(2), ask(3, 4), ask(5))
    engine.open.set()
    assert await answers_of([first, *tasks]) == [[2], [4], [6, 8], [10]]
    assert engine.rows == [1, 4]
    answers = [await task for task in tasks]
    assert [answer.batch_rows for answer in answers] == [4, 4, 4]
    assert [answer.first for answer in answers] == [True, False, False]
    assert np.shares_memory(*(answer.outputs["y"].base for answer in answers[:2]))
    assert await scheduler.close(5)


async def test_nobody_waits_for_company_when_the_engine_is_free():
    engine = Gate()
    scheduler = scheduler_of(engine)
    for value in (1, 2):
        assert await answers_of([await started(scheduler, ask(value))]) == [[2 * value]]
    assert engine.rows == [1, 1]
    assert await scheduler.close(5)


async def waiting_rows(times, max_batch, rows):
    """The calls that serve so many lone rows which wait behind one call."""
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine, times, max_batch=max_batch)
    first = await started(scheduler, ask())
    await engine.entered()
    tasks = await all_started(scheduler, *[ask()] * rows)
    engine.open.set()
    await answers_of([first, *tasks])
    assert await scheduler.close(5)
    return engine.rows[1:]


async def test_max_batch():
    assert (await waiting_rows(times_of(4), 4, 7))[0] == 4


async def test_without_a_batch_axis_requests_are_served_one_by_one():
    assert await waiting_rows(times_of(0), 0, 3) == [1, 1, 1]


async def test_preferred_sizes():
    assert (await waiting_rows(times_of(8, (3, 8)), 8, 5))[0] == 3


async def test_a_size_that_does_not_pay_is_not_taken():
    assert (await waiting_rows(times_of(8, call_s=0.0, row_s=0.01), 8, 4))[0] == 1


async def test_max_delay_gathers_a_batch():
    engine = Gate()
    scheduler = scheduler_of(engine, times_of(4), max_batch=4, max_delay_s=600.0)
    tasks = await all_started(scheduler, *[ask()] * 3)
    assert engine.calls == 0
    tasks.append(await started(scheduler, ask()))
    await answers_of(tasks)
    assert engine.rows == [4]
    assert await scheduler.close(5)


async def test_two_instances_do_not_tear_apart_what_max_delay_gathered():
    engine = Gate(instances=2)
    scheduler = scheduler_of(engine, times_of(4), max_batch=4, max_delay_s=600.0)
    await answers_of(await all_started(scheduler, *[ask()] * 4))
    assert engine.rows == [4]
    assert await scheduler.close(5)


async def test_max_delay_ends():
    engine = Gate()
    scheduler = scheduler_of(engine, max_delay_s=0.02)
    await answers_of([await started(scheduler, ask())])
    assert engine.rows == [1]
    assert await scheduler.close(5)


async def test_company_is_not_awaited_beyond_the_deadline():
    scheduler = scheduler_of(Gate(), times_of(call_s=0.1), max_delay_s=600.0, clock=lambda: 0.0)
    patient, urgent = [await started(scheduler, ask(), timeout_s=timeout_s) for timeout_s in (None, 10.0)]
    with scheduler._wake:
        # 5 % of its time and a call's are kept back.
        assert scheduler._wait_s() == pytest.approx(9.4)
    urgent.cancel()
    await asyncio.wait([urgent])
    with scheduler._wake:
        assert scheduler._wait_s() == pytest.approx(600.0)
    assert await scheduler.close(5)
    assert await answers_of([patient]) == [[2]]


async def test_close_ends_the_wait_for_company():
    engine = Gate()
    scheduler = scheduler_of(engine, max_delay_s=600.0)
    task = await started(scheduler, ask())
    assert await scheduler.close(5)
    assert await answers_of([task]) == [[2]]


async def order_of(requests, **options):
    """In which order requests (value, options) are served that wait one behind the other."""
    served = []

    class Noting(Gate):
        def compute(self, inputs):
            served.extend(inputs["x"].tolist())
            return super().compute(inputs)

    engine = Noting(is_open=False)
    scheduler = scheduler_of(engine, times_of(0), max_batch=0, **options)
    tasks = [await started(scheduler, ask(0))]
    await engine.entered()
    tasks += [await started(scheduler, ask(value), **more) for value, more in requests]
    engine.open.set()
    await answers_of(tasks)
    assert await scheduler.close(5)
    return served[1:]


async def test_the_earliest_deadline_first_within_a_priority():
    asked = [
        (1, {}),
        (2, {"timeout_s": 500.0}),
        (3, {"timeout_s": 100.0}),
        (4, {"priority": 1}),
        (5, {"priority": 3, "timeout_s": 50.0}),
    ]
    assert await order_of(asked) == [4, 3, 2, 1, 5]


async def test_p6_a_flood_of_low_priority_does_not_harm_a_high_one():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine, waiting=4, max_batch=0, times=times_of(0))
    first = await started(scheduler, ask())
    await engine.entered()
    flood = [await started(scheduler, ask(n), priority=9, timeout_s=100.0 + n) for n in range(8)]
    refused = await asyncio.gather(*flood[4:], return_exceptions=True)
    assert [type(error) for error in refused] == [Overloaded] * 4
    high = [await started(scheduler, ask(10 + n), priority=1) for n in range(2)]
    # The last of the flood have made room.
    for task in flood[2:4]:
        with pytest.raises(Overloaded, match="a request of priority 1 took its place") as caught:
            await task
        assert caught.value.retry_after_ms >= 1
    assert scheduler.waiting == 4
    engine.open.set()
    assert await answers_of([first, *high, *flood[:2]]) == [[2], [20], [22], [0], [2]]
    assert scheduler.in_flight == 0
    assert await scheduler.close(5)


async def test_p6_one_slow_call_refuses_nobody_for_ever():
    """A lone call proves that the engine is fast again: before, all but lone ones were refused without end."""
    times = ServiceTimes(0)
    times.add(1, 30.0)
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine, times, max_batch=0)
    lone = await started(scheduler, ask(), timeout_s=10.0)
    await engine.entered()
    with pytest.raises(Overloaded, match="it would take about"):
        await scheduler.run(ask(), timeout_s=10.0)
    engine.open.set()
    await lone
    assert engine.alone == [True]
    engine.open.clear()
    tasks = await all_started(scheduler, ask(), ask(), timeout_s=10.0)
    engine.open.set()
    assert await answers_of(tasks) == [[2], [2]]
    assert await scheduler.close(5)


async def test_p6_an_idle_replica_takes_what_it_expects_to_be_late():
    times = ServiceTimes(0)
    times.add(1, 30.0)
    scheduler = scheduler_of(Gate(), times, max_batch=0)
    assert await answers_of([await started(scheduler, ask(), timeout_s=5.0)]) == [[2]]
    assert await scheduler.close(5)


async def test_p7_expired_requests_never_reach_the_engine():
    now = 0.0
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine, clock=lambda: now)
    first = await started(scheduler, ask())
    await engine.entered()
    late, kept = await all_started(scheduler, ask(2), timeout_s=50.0), await started(scheduler, ask(3))
    now = 60.0
    engine.open.set()
    with pytest.raises(DeadlineExceeded, match="the deadline passed in the queue"):
        await late[0]
    await answers_of([first, kept])
    assert engine.rows == [1, 1]
    assert scheduler.in_flight == 0
    assert await scheduler.close(5)


async def test_p7_a_deadline_ends_the_wait_for_a_call_that_hangs():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine)
    first = await started(scheduler, ask())
    await engine.entered()
    with pytest.raises(DeadlineExceeded, match="the deadline passed in the queue"):
        await asyncio.wait_for(scheduler.run(ask(), timeout_s=0.05), 20)
    assert (scheduler.waiting, scheduler.in_flight) == (0, 1)
    engine.open.set()
    await first
    assert engine.calls == 1
    assert await scheduler.close(5)


async def test_p7_cancelled_requests_never_reach_the_engine():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine)
    first = await started(scheduler, ask(1))
    await engine.entered()
    cancelled, kept = await all_started(scheduler, ask(2), ask(3))
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled() and scheduler.in_flight == 2
    engine.open.set()
    assert await answers_of([first, kept]) == [[2], [6]]
    assert engine.rows == [1, 1]
    assert await scheduler.close(5)


async def test_cancelled_during_the_call_others_get_their_answers():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine, times_of(2), max_batch=2, max_delay_s=600.0)
    cancelled, kept = await all_started(scheduler, ask(1), ask(2))
    await engine.entered()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert scheduler.in_flight == 2
    engine.open.set()
    assert await answers_of([kept]) == [[4]]
    assert scheduler.in_flight == 0
    assert await scheduler.close(5)


async def test_one_bad_request_in_a_batch_fails_alone():
    engine = Gate()
    scheduler = scheduler_of(engine, times_of(4), max_batch=4, max_delay_s=600.0)
    good, bad, other = await all_started(scheduler, ask(1), ask(NAN), ask(3, 4))
    with pytest.raises(EngineFailure, match="not a number"):
        await bad
    assert await answers_of([good, other]) == [[2], [6, 8]]
    assert engine.rows == [4, 1, 1, 2]
    assert await scheduler.close(5)


class Broken(Gate):
    """Raises what it is given for one of the values."""

    def __init__(self, error, **options):
        super().__init__(**options)
        self.error = error

    def compute(self, inputs):
        if 13 in inputs["x"]:
            raise self.error
        return super().compute(inputs)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a bug"), ValueError),
        (MemoryError(), MemoryError),
        (StopIteration(), EngineFailure),
        (SystemExit(1), EngineFailure),
        (asyncio.CancelledError(), EngineFailure),
    ],
)
async def test_whatever_an_engine_raises_its_thread_goes_on(error, told):
    engine = Broken(error)
    scheduler = scheduler_of(engine, times_of(4), max_batch=4, max_delay_s=600.0)
    bad, good, other = await all_started(scheduler, ask(13), ask(1), ask(2, 3))
    with pytest.raises(told):
        await asyncio.wait_for(bad, 20)
    assert await answers_of([good, other]) == [[2], [4, 6]]
    assert await answers_of(await all_started(scheduler, ask(1, 2, 3, 4))) == [[2, 4, 6, 8]]
    assert (scheduler.in_flight, len(scheduler._threads)) == (0, 1)
    assert await scheduler.close(5)


async def test_who_left_a_failed_batch_is_not_computed_again():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine, times_of(2), max_batch=2, max_delay_s=600.0)
    bad, left = await all_started(scheduler, ask(NAN), ask(2))
    await engine.entered()
    left.cancel()
    await asyncio.wait([left])
    engine.open.set()
    with pytest.raises(EngineFailure):
        await bad
    assert engine.rows == [2, 1]
    assert await scheduler.close(5)


def test_a_call_is_not_alone_while_other_processes_want_to_run():
    runnable = 1
    occupancy = Occupancy(runnable=lambda: runnable)
    assert occupancy.enter()
    occupancy.leave()
    runnable = 2
    assert not occupancy.enter()


def test_the_system_tells_how_many_threads_want_to_run():
    assert runnable_threads() >= 1


async def test_a_lone_request_may_take_the_whole_machine():
    occupancy = Occupancy(runnable=lambda: 1)
    engines = [Gate(is_open=False), Gate(is_open=False)]
    lone, other = (scheduler_of(engine) for engine in engines)
    lone._occupancy = other._occupancy = occupancy
    tasks = [await started(lone, ask())]
    await engines[0].entered()
    tasks.append(await started(other, ask()))
    await engines[1].entered()
    tasks.append(await started(lone, ask()))
    for engine in engines:
        engine.open.set()
    await answers_of(tasks)
    assert (engines[0].alone[0], engines[1].alone) == (True, [False])
    assert await lone.close(5) and await other.close(5)


async def test_close_is_bounded_and_tells_who_waits():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine)
    first = await started(scheduler, ask())
    await engine.entered()
    waiting = await started(scheduler, ask())
    assert not await scheduler.close(0.02)
    with pytest.raises(NotReady, match="before it had answered"):
        await waiting
    with pytest.raises(NotReady, match="being unloaded"):
        await scheduler.run(ask())
    engine.open.set()
    assert await answers_of([first]) == [[2]]
    assert await scheduler.close(5)
    for thread in scheduler._threads:
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()


async def test_a_close_that_is_cancelled_leaves_nobody_waiting():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine)
    first = await started(scheduler, ask())
    await engine.entered()
    waiting = await started(scheduler, ask())
    closing = asyncio.create_task(scheduler.close(600))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(NotReady):
        await asyncio.wait_for(waiting, 20)
    engine.open.set()
    assert await answers_of([first]) == [[2]]


async def test_p10_the_caller_of_a_call_that_hangs_is_told_when_the_engine_is_given_up():
    engine = Gate(is_open=False)
    scheduler = scheduler_of(engine)
    hung = await started(scheduler, ask())
    await engine.entered()
    assert not await scheduler.close(0, give_up=True)
    with pytest.raises(NotReady):
        await hung
    assert scheduler.in_flight == 1
    engine.open.set()
    await asyncio.wait_for(scheduler._empty.wait(), 5)
    assert scheduler.in_flight == 0
