"""Replicas over an engine that the test steers: the queue, deadlines, cancellation, warm-up, stall and close."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.serving.failures import FAILURES_IN_ROW
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.replica_config import ReplicaConfig

from nearmesh.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailure,
    NotReady,
    Overloaded,
)
from nearmesh.package import Batching, Sequence
from nearmesh.quantiles import LEAST_SAMPLES
from tests.gated_engine import Gate
from tests.tiny_models import package, spec

PACKAGE = package("doubler", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)])
INPUT = {"x": np.array([1.0, 2.0], np.float32)}


async def replica_of(engine, *, described=PACKAGE, clock=None, **config):
    options = {"clock": clock} if clock else {}
    replica = Replica(described, "sha256:1", make=lambda: engine, config=ReplicaConfig(**config), **options)
    await replica.activate()
    return replica


async def test_an_answer_and_its_times():
    replica = await replica_of(Gate())
    answer = await replica.infer(INPUT)
    assert answer.outputs["y"].tolist() == [2, 4]
    assert answer.queue_ms >= 0 and answer.compute_ms > 0
    assert replica.stats().in_flight == 0
    await replica.close()


async def test_p6_a_full_queue_refuses_at_once():
    engine = Gate(is_open=False)
    replica = await replica_of(engine, queue=2)
    accepted = [asyncio.create_task(replica.infer(INPUT)) for _ in range(3)]
    await engine.entered()
    assert replica.stats().in_flight == 3

    with pytest.raises(Overloaded, match="2 requests wait for doubler-1") as caught:
        await replica.infer(INPUT)
    assert caught.value.retry_after_ms >= 1

    engine.open.set()
    assert [answer.outputs["y"].tolist() for answer in await asyncio.gather(*accepted)] == [[2, 4]] * 3
    assert engine.calls == 3
    await replica.close()


async def test_p6_a_queue_that_is_too_long_for_the_deadline_refuses_at_once():
    engine = Gate(is_open=False)
    replica = await replica_of(engine, clock=lambda: 0.0)
    for _ in range(100):
        replica.measured.times.add(1, 100.0)
    accepted = [asyncio.create_task(replica.infer(INPUT))]
    await engine.entered()
    accepted += [asyncio.create_task(replica.infer(INPUT, timeout_s=timeout_s)) for timeout_s in (230.0, 340.0)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="about 400000 ms, the request has 350000 ms left") as caught:
        await replica.infer(INPUT, timeout_s=350.0)
    assert caught.value.retry_after_ms == pytest.approx(50_000, abs=10)
    accepted.append(asyncio.create_task(replica.infer(INPUT, timeout_s=450.0)))
    await asyncio.sleep(0)
    engine.open.set()
    assert len(await asyncio.gather(*accepted)) == engine.calls == 4
    # With nobody waiting, what is usual is no reason to refuse.
    await replica.infer(INPUT, timeout_s=50.0)
    await replica.close()


async def test_the_package_may_say_how_many_wait():
    engine = Gate(is_open=False)
    replica = await replica_of(engine, described=replace(PACKAGE, queue=1), queue=64)
    accepted = [asyncio.create_task(replica.infer(INPUT)) for _ in range(2)]
    await engine.entered()
    with pytest.raises(Overloaded):
        await replica.infer(INPUT)
    engine.open.set()
    await asyncio.gather(*accepted)
    await replica.close()


async def test_requests_share_calls_and_are_counted_by_rows():
    now = 0.0

    class Timed(Gate):
        def compute(self, inputs):
            nonlocal now
            now += 0.1
            return super().compute(inputs)

    engine = Timed(is_open=False)
    described = replace(PACKAGE, batching=Batching(max_batch=8))
    replica = await replica_of(engine, described=described, clock=lambda: now)
    for size in replica.measured.times.sizes:
        replica.measured.times.add(size, 0.1)
    first = asyncio.create_task(replica.infer(INPUT))
    await engine.entered()
    others = [asyncio.create_task(replica.infer(INPUT)) for _ in range(4)]
    await asyncio.sleep(0)
    engine.open.set()
    answers = await asyncio.gather(first, *others)
    assert [answer.outputs["y"].tolist() for answer in answers] == [[2, 4]] * 5
    assert engine.rows == [2, 8]
    assert sum(answer.first for answer in answers) == 2
    for _ in range(LEAST_SAMPLES):
        await replica.infer(INPUT)
    # Eight rows in 100 ms are what it can do.
    assert replica.stats().inferences_per_second == pytest.approx(80, rel=0.02)
    await replica.close()


async def test_a_late_answer_counts_as_slow_and_never_as_fast():
    replica = await replica_of(Gate())
    replica.measured._proven_s = 0.1
    replica.measured.too_late(1)
    assert replica.stats().service.p95_ms == 100
    for _ in range(LEAST_SAMPLES):
        replica.measured.too_late(5000)
    assert replica.stats().service.p95_ms == pytest.approx(5000, rel=0.02)
    await replica.close()


async def test_p7_cancelled_requests_never_reach_the_engine():
    engine = Gate(is_open=False)
    replica = await replica_of(engine, queue=2)
    first = asyncio.create_task(replica.infer(INPUT))
    await engine.entered()
    others = [asyncio.create_task(replica.infer(INPUT)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in others:
        task.cancel()
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*others, return_exceptions=True))
    assert replica.stats().in_flight == 1

    engine.open.set()
    await first
    await replica.close()
    assert engine.calls == 1


async def test_p7_expired_requests_never_reach_the_engine():
    now = 0.0
    engine = Gate(is_open=False)
    replica = await replica_of(engine, clock=lambda: now)
    first = asyncio.create_task(replica.infer(INPUT))
    await engine.entered()
    late = asyncio.create_task(replica.infer(INPUT, timeout_s=50.0))
    await asyncio.sleep(0)
    now = 60.0
    engine.open.set()
    with pytest.raises(DeadlineExceeded, match="the deadline passed in the queue"):
        await late
    with pytest.raises(DeadlineExceeded, match="when it arrived"):
        await replica.infer(INPUT, timeout_s=0)
    await first
    assert engine.calls == 1
    await replica.close()


async def test_a_failed_call_leaves_the_next_one_right():
    replica = await replica_of(Gate())
    with pytest.raises(EngineFailure):
        await replica.infer({"x": np.array([np.nan], np.float32)})
    assert (await replica.infer(INPUT)).outputs["y"].tolist() == [2, 4]
    await replica.close()


async def test_failures_in_a_row_are_the_engines_fault_until_it_answers():
    replica = await replica_of(Gate())
    for _ in range(FAILURES_IN_ROW - 1):
        with pytest.raises(EngineFailure):
            await replica.infer({"x": np.array([np.nan], np.float32)})
    await replica.infer(INPUT)
    assert replica._failures.in_row == 0 and replica.ready
    await replica.close()


async def test_instances():
    engine = Gate(is_open=False, instances=2)
    replica = await replica_of(engine)
    assert replica.instances == 2
    tasks = [asyncio.create_task(replica.infer(INPUT)) for _ in range(2)]
    await engine.entered()
    await engine.entered()
    engine.open.set()
    await asyncio.gather(*tasks)
    await replica.close()


async def test_p10_a_hung_engine_is_not_ready():
    now = 0.0
    engine = Gate(is_open=False)
    replica = await replica_of(engine, clock=lambda: now, stall_s=4.0)
    assert replica.ready
    hung = asyncio.create_task(replica.infer(INPUT))
    await engine.entered()
    now = 3.0
    assert replica.ready
    now = 5.0
    assert not replica.ready
    engine.open.set()
    await hung
    assert replica.ready
    await replica.close()


async def test_close_waits_for_what_was_accepted():
    engine = Gate(is_open=False)
    replica = await replica_of(engine)
    accepted = [asyncio.create_task(replica.infer(INPUT)) for _ in range(3)]
    await engine.entered()
    closing = asyncio.create_task(replica.close())
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="being unloaded"):
        await replica.infer(INPUT)
    assert engine.closed == 0
    engine.open.set()
    await closing
    assert len(await asyncio.gather(*accepted)) == 3
    assert engine.closed == 1


async def test_close_is_bounded_and_frees_nothing_that_is_in_use():
    engine = Gate(is_open=False)
    replica = await replica_of(engine, close_s=0.05)
    tasks = [asyncio.create_task(replica.infer(INPUT)) for _ in range(2)]
    await engine.entered()
    await replica.close()
    assert engine.closed == 0
    with pytest.raises(NotReady, match="before it had answered"):
        await tasks[1]
    engine.open.set()
    await tasks[0]


class SlowLoad:
    """Makes engines in a thread, once the test lets it."""

    def __init__(self):
        self.engine = Gate()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.closed = threading.Event()
        self.engine.close = self.closed.set

    def make(self):
        self.begun.set()
        assert self.go_on.wait(20)
        return self.engine


async def test_an_engine_that_nobody_waits_for_any_more_is_closed():
    slow = SlowLoad()
    replica = Replica(PACKAGE, "sha256:1", make=slow.make)
    loading = asyncio.create_task(replica.activate())
    assert await asyncio.to_thread(slow.begun.wait, 20)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not slow.closed.is_set()
    slow.go_on.set()
    assert await asyncio.to_thread(slow.closed.wait, 20)
    assert not replica.active


async def test_an_engine_that_is_ready_in_the_moment_of_the_cancellation_is_closed():
    slow = SlowLoad()
    slow.go_on.set()
    with ThreadPoolExecutor(1) as executor:
        replica = Replica(PACKAGE, "sha256:1", make=slow.make, executor=executor)
        loading = asyncio.create_task(replica.activate())
        await asyncio.sleep(0)
        # The loop stands still here until the thread is through.
        executor.submit(lambda: None).result(20)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
    assert await asyncio.to_thread(slow.closed.wait, 20)
    assert not replica.active


async def test_a_load_that_is_cancelled_before_its_turn_never_begins():
    slow = SlowLoad()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(slow.go_on.wait, 20)
        loading = asyncio.create_task(Replica(PACKAGE, "sha256:1", make=slow.make, executor=executor).activate())
        await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        slow.go_on.set()
    assert not slow.begun.is_set()


async def test_an_engine_that_is_loaded_while_the_replica_closes_is_closed():
    slow = SlowLoad()
    replica = Replica(PACKAGE, "sha256:1", make=slow.make)
    loading = asyncio.create_task(replica.activate())
    assert await asyncio.to_thread(slow.begun.wait, 20)
    await replica.close()
    slow.go_on.set()
    with pytest.raises(NotReady, match="being unloaded from this node"):
        await loading
    assert slow.closed.is_set() and not replica.active


@pytest.mark.parametrize("leave", [Replica.close, Replica.deactivate])
async def test_an_end_goes_on_when_who_asked_for_it_is_cancelled(leave):
    engine = Gate(is_open=False)
    closed = threading.Event()
    engine.close = closed.set
    replica = await replica_of(engine)
    accepted = asyncio.create_task(replica.infer(INPUT))
    await engine.entered()
    leaving = asyncio.create_task(leave(replica))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert not closed.is_set()
    engine.open.set()
    assert (await accepted).outputs["y"].tolist() == [2, 4]
    assert await asyncio.to_thread(closed.wait, 20)


async def test_p4_a_version_waits_for_its_sequences_to_end():
    sequence = Sequence(state=(), idle_s=60)
    replica = await replica_of(Gate(), described=replace(PACKAGE, sequence=sequence))
    await replica.sequences_over()
    replica.holds.take()
    with replica.holds.during():
        waiting = asyncio.create_task(replica.sequences_over())
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    replica.holds.give_back()
    await asyncio.wait_for(waiting, 5)
    await replica.close()


@pytest.mark.parametrize(("idle_s", "sequences_s"), [(0.05, 600.0), (600.0, 0.05)])
async def test_p4_silent_and_endless_sequences_are_not_waited_for_without_end(idle_s, sequences_s):
    described = replace(PACKAGE, sequence=Sequence(state=(), idle_s=idle_s))
    replica = await replica_of(Gate(), described=described, sequences_s=sequences_s)
    replica.holds.take()
    await asyncio.wait_for(replica.sequences_over(), 10)
    await replica.close()


def test_config():
    with pytest.raises(ConfigError):
        ReplicaConfig(queue=-1)
