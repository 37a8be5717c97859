"""Engine calls in threads and on the event loop: how many at a time, who is woken, and a few thousand at random."""

from __future__ import annotations

import asyncio
import collections
import gc
import random
import threading
import weakref

import pytest

from nearmesh.errors import DeadlineExceeded, EngineFailure, NotReady, Overloaded
from tests.gated_engine import Gate
from tests.scheduling import all_started, answers_of, ask, scheduler_of, started, times_of

# Short enough for the event loop.
QUICK_S = 10e-6


class Noticed(threading.Condition):
    """Tells when a thread begins to wait."""

    def __init__(self):
        super().__init__(threading.Lock())
        self.waits = threading.Semaphore(0)

    def wait(self, timeout=None):
        self.waits.release()
        return super().wait(timeout)

    async def waited(self):
        assert await asyncio.to_thread(self.waits.acquire, timeout=20)


def noticed(scheduler):
    scheduler._wake = Noticed()
    return scheduler, scheduler._wake


def on_the_loop(scheduler, times, quick):
    """From now on, calls are short enough for the event loop, or they are not."""
    scheduler._short, times.fastest_s = quick, QUICK_S
    # No further turns of the loop in which others might come.
    scheduler._patience = 0


async def test_two_instances_compute_at_a_time():
    engine = Gate(is_open=False, instances=2)
    scheduler = scheduler_of(engine)
    tasks = await all_started(scheduler, ask(1), ask(2))
    await engine.entered()
    await engine.entered()
    assert scheduler.busy_share() == 1.0
    engine.open.set()
    assert await answers_of(tasks) == [[2], [4]]
    assert engine.rows == [1, 1]
    assert await scheduler.close(5)


async def test_two_instances_compute_although_one_thread_was_called():
    """Two requests come before the idle thread is awake: the second call for a thread is lost on it."""
    engine = Gate(instances=2)
    scheduler, wake = noticed(scheduler_of(engine))
    await answers_of([await started(scheduler, ask())])
    await engine.entered()
    await wake.waited()
    assert len(scheduler._threads) == 1
    engine.open.clear()
    tasks = [asyncio.create_task(scheduler.run(ask(n))) for n in (1, 2)]
    await engine.entered()
    await engine.entered()
    engine.open.set()
    assert await answers_of(tasks) == [[2], [4]]
    assert await scheduler.close(5)


async def test_answers_leave_memory_with_their_callers():
    scheduler, wake = noticed(scheduler_of(Gate()))
    answer = await scheduler.run(ask(1))
    outputs = weakref.ref(answer.outputs["y"])
    await wake.waited()
    del answer
    gc.collect()
    assert outputs() is None
    assert await scheduler.close(5)


class Where(Gate):
    """Notes which threads compute."""

    def __init__(self, **options):
        super().__init__(**options)
        self.threads = []

    def compute(self, inputs):
        self.threads.append(threading.current_thread())
        return super().compute(inputs)


async def test_quick_calls_run_on_the_event_loop_and_are_shared():
    engine = Where()
    scheduler = scheduler_of(engine, times_of(call_s=QUICK_S))
    tasks = [asyncio.create_task(scheduler.run(ask(n))) for n in range(3)]
    assert await answers_of(tasks) == [[0], [2], [4]]
    assert engine.rows == [3]
    assert engine.threads == [threading.main_thread()]
    assert scheduler.in_flight == 0
    assert await scheduler.close(5)


async def test_calls_that_become_longer_leave_the_event_loop():
    times = times_of(call_s=QUICK_S)
    engine = Where()
    scheduler = scheduler_of(engine, times)
    await scheduler.run(ask())
    while scheduler.inline:
        times.add(1, 1.0)
    await scheduler.run(ask())
    assert engine.threads[0] is threading.main_thread() is not engine.threads[1]
    assert await scheduler.close(5)


async def test_what_waits_for_the_loop_goes_to_a_thread_when_calls_become_longer():
    times = times_of(max_batch=1, call_s=QUICK_S)

    class Slower(Where):
        def compute(self, inputs):
            on_the_loop(scheduler, times, quick=False)
            return super().compute(inputs)

    engine = Slower()
    scheduler = scheduler_of(engine, times, max_batch=1)
    tasks = [asyncio.create_task(scheduler.run(ask(n))) for n in range(3)]
    assert await answers_of(tasks) == [[0], [2], [4]]
    assert engine.threads[0] is threading.main_thread()
    assert threading.main_thread() not in engine.threads[1:]
    assert await scheduler.close(5)


async def test_p7_cancelled_before_the_loop_computes():
    engine = Where()
    scheduler = scheduler_of(engine, times_of(call_s=QUICK_S))
    task = asyncio.create_task(scheduler.run(ask()))
    # In the queue, and its turn comes in the loop's next round.
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.wait([task])
    assert task.cancelled() and engine.calls == 0
    assert (scheduler.in_flight, scheduler.waiting) == (0, 0)
    assert await scheduler.close(5)


async def test_the_event_loop_leaves_to_a_thread_what_it_has_taken():
    """With one instance, a thread that came first and the loop must not compute at the same time."""
    times = times_of(max_batch=1)
    engine = Gate(is_open=True)
    scheduler, wake = noticed(scheduler_of(engine, times, max_batch=1))
    await scheduler.run(ask())
    await engine.entered()
    await wake.waited()
    on_the_loop(scheduler, times, quick=True)
    engine.open.clear()
    first = scheduler._admit(ask(1), None, 2)
    with wake:
        wake.notify()
    # Blocks the loop, whose turn it would be.
    assert engine.running.acquire(timeout=20)
    second = scheduler._admit(ask(2), None, 2)
    scheduler._flush()
    assert (engine.inside, scheduler.waiting) == (1, 1)
    engine.open.set()
    assert [(await asyncio.wait_for(one.future, 20)).outputs["y"].tolist() for one in (first, second)] == [[2], [4]]
    assert engine.most_inside == 1
    assert await scheduler.close(5)


async def test_a_thread_leaves_to_the_event_loop_what_it_has_taken():
    times = times_of(max_batch=1)
    engine = Gate()
    scheduler, wake = noticed(scheduler_of(engine, times, max_batch=1))
    await scheduler.run(ask())
    await wake.waited()
    on_the_loop(scheduler, times, quick=True)
    calls = []

    class Meanwhile(Gate):
        def compute(self, inputs):
            if not calls:
                calls.append(scheduler._admit(ask(2), None, 2))
                with wake:
                    wake.notify()
                # The thread has looked and waits again.
                assert wake.waits.acquire(timeout=20)
            return super().compute(inputs)

    engine = scheduler._calls._engine = Meanwhile()
    await scheduler.run(ask(1))
    answer = await asyncio.wait_for(calls[0].future, 20)
    assert answer.outputs["y"].tolist() == [4]
    assert engine.most_inside == 1
    assert await scheduler.close(5)


REQUESTS, AT_A_TIME = 2400, 48


async def one_at_random(scheduler, chance, outcomes, *, room):
    """With `room` for everyone, who has no deadline and does not leave is answered."""
    values = [float(chance.randrange(100)) for _ in range(chance.choice((1, 1, 2)))]
    if chance.random() < 0.02:
        values[0] = float("nan")
    timeout_s = chance.choice((None, None, 1.0, 0.002))
    task = asyncio.create_task(scheduler.run(ask(*values), timeout_s=timeout_s, priority=chance.randint(1, 3)))
    leaves = chance.random() < 0.2
    if leaves:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    outcome = asyncio.CancelledError if task.cancelled() else type(task.exception())
    outcomes[outcome] += 1
    if outcome is type(None):
        assert task.result().outputs["y"].tolist() == [2 * value for value in values]
    elif outcome is EngineFailure:
        assert values[0] != values[0]
    else:
        assert leaves or timeout_s or (outcome is Overloaded and not room)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("call_s", [0.001, QUICK_S])
@pytest.mark.parametrize("waiting", [AT_A_TIME, AT_A_TIME // 4])
async def test_thousands_at_random(seed, call_s, waiting):
    """Nobody is forgotten, nobody gets another's answer, and the bounds hold; calls move between loop and threads."""
    engine = Gate(instances=2)
    scheduler = scheduler_of(engine, times_of(4, call_s=call_s), max_batch=4, waiting=waiting)
    chance, outcomes = random.Random(seed), collections.Counter()

    async def client():
        for _ in range(REQUESTS // AT_A_TIME):
            await one_at_random(scheduler, chance, outcomes, room=waiting >= AT_A_TIME)

    async with asyncio.timeout(60), asyncio.TaskGroup() as clients:
        for _ in range(AT_A_TIME):
            clients.create_task(client())
    allowed = {type(None), asyncio.CancelledError, EngineFailure, Overloaded, DeadlineExceeded}
    assert set(outcomes) <= allowed
    assert outcomes[type(None)] > 0 and outcomes[asyncio.CancelledError] > 0
    assert outcomes.total() == REQUESTS // AT_A_TIME * AT_A_TIME
    assert (scheduler.in_flight, scheduler.waiting, engine.inside) == (0, 0, 0)
    assert engine.most_inside <= 2 and max(engine.rows) <= 4
    assert await scheduler.close(5)
    with pytest.raises(NotReady):
        await scheduler.run(ask())


async def test_one_that_is_kept_apart_never_has_the_event_loop():
    engine = Where()
    scheduler = scheduler_of(engine, times_of(call_s=QUICK_S))
    scheduler.apart = True
    await scheduler.run(ask())
    scheduler.apart = False
    await scheduler.run(ask())
    assert engine.threads[0] is not threading.main_thread() is engine.threads[1]
    assert await scheduler.close(5)
