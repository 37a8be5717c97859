"""Decoupled models: several answers to one request, in turn, in time, and an end whoever leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing

import numpy as np
import pytest
from nearmesh_agent.serving.streams import Streams

from nearmesh.errors import DeadlineExceeded, EngineFailure, NotReady, Overloaded
from tests.gated_engine import Gate


class Counting(Gate):
    """Gives 0, 1 ... up to `x` - 1; it waits for the gate before each. NaN fails in the middle."""

    def __init__(self, **more):
        super().__init__(**more)
        self.begun = self.made = self.ended = 0
        self.threads = set()

    def stream(self, inputs):
        self.begun += 1
        try:
            for number in range(int(inputs["x"][0])):
                self.threads.add(threading.get_ident())
                self.running.release()
                assert self.open.wait(20)
                self.made += 1
                if len(inputs["x"]) > 1 and number == inputs["x"][1]:
                    raise EngineFailure("in the middle")
                yield {"y": np.array([number])}
        finally:
            self.ended += 1


@pytest.fixture
def engine():
    return Counting()


def streams_of(engine, most=1):
    return Streams(engine, most=most, name="counter-1")


def x(*values):
    return {"x": np.array(values)}


async def all_of(streams, inputs, *, timeout_s=None):
    return [int(found["y"][0]) async for found in streams.run(inputs, timeout_s=timeout_s)]


async def idle(streams, engine):
    """Nothing is left of any request, and the next one has its place."""
    await asyncio.wait_for(streams._none.wait(), 20)
    assert len(streams) == 0 and not streams._endings
    assert engine.begun == engine.ended
    engine.open.set()
    assert await all_of(streams, x(2)) == [0, 1]


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_answers_in_order_and_an_end(engine, count):
    streams = streams_of(engine)
    assert await all_of(streams, x(count), timeout_s=20) == [*range(count)]
    # At once: nobody is left who would have to be waited for.
    assert len(streams) == 0
    await idle(streams, engine)
    assert threading.get_ident() not in engine.threads


async def test_the_next_answer_is_made_when_it_is_asked_for(engine):
    streams = streams_of(engine)
    async with aclosing(streams.run(x(5), timeout_s=None)) as answers:
        await anext(answers)
        await anext(answers)
        assert engine.made == 2
    await idle(streams, engine)
    assert engine.made == 4


async def test_an_error_comes_after_the_answers_before_it(engine):
    streams, found = streams_of(engine), []
    with pytest.raises(EngineFailure, match="in the middle"):
        async for answer in streams.run(x(5, 2), timeout_s=None):
            found.append(int(answer["y"][0]))
    assert found == [0, 1]
    await idle(streams, engine)


async def test_the_caller_leaves_between_two_answers(engine):
    streams = streams_of(engine)
    async with aclosing(streams.run(x(5), timeout_s=None)) as answers:
        await anext(answers)
    await idle(streams, engine)


async def test_the_caller_leaves_while_an_answer_is_made():
    """At once, however long that takes; the instance is free when the thread has come back."""
    engine = Counting(is_open=False)
    streams = streams_of(engine, most=3)
    first = asyncio.create_task(all_of(streams, x(5)))
    await engine.entered()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(first, 20)
    second = asyncio.create_task(all_of(streams, x(1)))
    await asyncio.sleep(0)
    assert len(streams) == 2 and engine.begun == 1
    engine.open.set()
    assert await second == [0]
    await idle(streams, engine)
    assert engine.made == 1 + 1 + 2


async def test_a_free_thread_does_not_end_what_another_is_in(caplog):
    engine = Counting(is_open=False, instances=2)
    streams = streams_of(engine)
    request = asyncio.create_task(all_of(streams, x(5)))
    await engine.entered()
    request.cancel()
    await asyncio.wait([request])
    # A thread's way there and back, twice: an end that does not wait has been tried by then.
    for _ in range(2):
        await asyncio.get_running_loop().run_in_executor(streams._pool, int)
    assert len(streams) == 1 and engine.ended == 0
    engine.open.set()
    await idle(streams, engine)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_the_deadline_passes_while_an_answer_is_made():
    engine = Counting(is_open=False)
    streams = streams_of(engine)
    with pytest.raises(DeadlineExceeded, match="counter-1 had not given all its answers by the deadline"):
        await asyncio.wait_for(all_of(streams, x(5), timeout_s=0.01), 20)
    assert len(streams) == 1
    engine.open.set()
    await idle(streams, engine)


async def test_p7_a_late_request_never_reaches_the_engine(engine):
    streams = streams_of(engine)
    with pytest.raises(DeadlineExceeded):
        await all_of(streams, x(5), timeout_s=0)
    await idle(streams, engine)
    assert engine.begun == 1


async def test_the_deadline_passes_in_the_queue():
    engine = Counting(is_open=False)
    streams = streams_of(engine)
    first = asyncio.create_task(all_of(streams, x(1)))
    await engine.entered()
    with pytest.raises(DeadlineExceeded):
        await all_of(streams, x(1), timeout_s=0.01)
    assert len(streams) == 1
    engine.open.set()
    assert await first == [0]
    await idle(streams, engine)
    assert engine.begun == 2


async def test_a_caller_who_leaves_the_queue_holds_nobody_up():
    engine = Counting(is_open=False)
    streams = streams_of(engine, most=2)
    first, second, third = (asyncio.create_task(all_of(streams, x(1))) for _ in range(3))
    await engine.entered()
    second.cancel()
    engine.open.set()
    assert await first == await third == [0]
    assert second.cancelled()
    await idle(streams, engine)


async def test_as_many_at_a_time_as_instances_and_no_more_may_wait():
    engine = Counting(is_open=False, instances=2)
    streams = streams_of(engine, most=1)
    tasks = [asyncio.create_task(all_of(streams, x(1))) for _ in range(3)]
    await engine.entered()
    await engine.entered()
    assert engine.begun == 2
    with pytest.raises(Overloaded, match="3 requests are at counter-1 on this node, as many as may"):
        await all_of(streams, x(1))
    engine.open.set()
    assert await asyncio.gather(*tasks) == [[0]] * 3
    await idle(streams, engine)


async def test_an_engine_that_fails_before_its_first_answer():
    class Broken(Gate):
        def stream(self, inputs):
            raise EngineFailure("no graph")

    streams = streams_of(Broken())
    for _ in range(3):
        with pytest.raises(EngineFailure, match="no graph"):
            await all_of(streams, x(1))
    await asyncio.wait_for(streams._none.wait(), 20)


async def test_an_end_that_fails_is_logged_and_frees_the_place(caplog):
    class Sulking(Counting):
        def stream(self, inputs):
            try:
                yield from super().stream(inputs)
            finally:
                if int(inputs["x"][0]) == 7:
                    raise EngineFailure("would not go")

    engine = Sulking()
    streams = streams_of(engine)
    async with aclosing(streams.run(x(7), timeout_s=None)) as answers:
        await anext(answers)
    await idle(streams, engine)
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "counter-1 failed when a request was broken off" in said.message
    assert "would not go" in str(said.exc_info[1])


async def test_close_waits_for_what_is_in_flight_and_takes_nothing_more():
    engine = Counting(is_open=False)
    streams = streams_of(engine)
    request = asyncio.create_task(all_of(streams, x(2)))
    await engine.entered()
    assert not await streams.close(0.01)
    with pytest.raises(NotReady, match="counter-1 is being unloaded from this node"):
        await all_of(streams, x(1))
    closing = asyncio.create_task(streams.close(20))
    await asyncio.sleep(0)
    assert not closing.done()
    engine.open.set()
    assert await request == [0, 1]
    assert await closing


async def test_close_waits_for_the_thread_of_a_caller_who_left():
    """An engine must not be freed under a thread that is still in it."""
    engine = Counting(is_open=False)
    streams = streams_of(engine)
    request = asyncio.create_task(all_of(streams, x(2)))
    await engine.entered()
    request.cancel()
    await asyncio.wait([request])
    assert not await streams.close(0.01)
    assert engine.ended == 0
    engine.open.set()
    assert await streams.close(20)
    assert engine.ended == 1


async def hanging():
    """An engine in a step that does not come back, and the request that waits for it."""
    engine = Counting()
    engine.open.clear()
    streams = streams_of(engine)
    hung = asyncio.create_task(all_of(streams, x(2)))
    assert await asyncio.to_thread(engine.running.acquire, timeout=20)
    return engine, streams, hung


async def test_p10_who_waits_behind_a_step_that_hangs_is_told_when_it_is_given_up():
    engine, streams, hung = await hanging()
    waiting = asyncio.create_task(all_of(streams, x(2), timeout_s=60))
    # It has its place in the line after its first turn of the loop.
    await asyncio.sleep(0)
    assert len(streams) == 2
    assert not await streams.close(0, give_up=True)
    for task in (hung, waiting):
        with pytest.raises(NotReady, match="given up"):
            await asyncio.wait_for(task, 20)
    # The thread is still in the step, so nothing may be freed before it is back.
    assert len(streams) == 1
    engine.open.set()
    await asyncio.wait_for(streams._none.wait(), 20)
    assert engine.begun == engine.ended == 1


async def test_p10_a_deadline_that_comes_as_the_engine_is_given_up_spoils_nothing():
    """Both timers of one turn of the loop: the request's own, and the end of the wait for what is in flight."""
    engine, streams, hung = await hanging()
    late = asyncio.create_task(all_of(streams, x(2), timeout_s=0.01))
    await asyncio.sleep(0)
    closing = asyncio.create_task(streams.close(0.0099, give_up=True))
    await asyncio.sleep(0)
    # The loop comes back when both are due.
    time.sleep(0.03)  # noqa: ASYNC251
    assert not await asyncio.wait_for(closing, 20)
    with pytest.raises(NotReady, match="given up"):
        await asyncio.wait_for(hung, 20)
    with pytest.raises((NotReady, DeadlineExceeded)):
        await asyncio.wait_for(late, 20)
    engine.open.set()
    await asyncio.wait_for(streams._none.wait(), 20)
