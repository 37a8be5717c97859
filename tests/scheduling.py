"""Schedulers over a gated engine, for their tests."""

from __future__ import annotations

import asyncio
import time

import numpy as np
from nearmesh_agent.serving.batch import BatchLayout
from nearmesh_agent.serving.occupancy import Occupancy
from nearmesh_agent.serving.queue import Limits
from nearmesh_agent.serving.scheduler import Scheduler
from nearmesh_agent.serving.times import ServiceTimes

from nearmesh.package import Batching
from tests.tiny_models import package, spec


def ask(*values):
    """A request with a row for each value."""
    return {"x": np.array(values or (1,), np.float32)}


def times_of(max_batch=8, preferred=(), *, call_s=0.001, row_s=0.0):
    """What the warm-up would have measured, without any deviation."""
    times = ServiceTimes(max_batch, preferred)
    for size in times.sizes:
        for _ in range(100):
            times.add(size, call_s + row_s * size)
    return times


def scheduler_of(engine, times=None, *, max_batch=8, clock=time.monotonic, **limits):
    """By default a call of up to eight rows takes as long as one of a single row."""
    described = package(
        "doubler", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)], batching=Batching(max_batch=max_batch)
    )
    return Scheduler(
        engine,
        BatchLayout(described),
        times or times_of(max_batch),
        limits=Limits(**limits),
        clock=clock,
        name="doubler-1",
        # Whatever else the machine may do while the tests run.
        occupancy=Occupancy(runnable=lambda: 1),
    )


async def started(scheduler, inputs, **options):
    """The task of a request that is in the queue by now, or refused."""
    task = asyncio.create_task(scheduler.run(inputs, **options))
    await asyncio.sleep(0)
    return task


async def all_started(scheduler, *requests, **options):
    return [await started(scheduler, inputs, **options) for inputs in requests]


async def answers_of(tasks):
    return [answer.outputs["y"].tolist() for answer in await asyncio.wait_for(asyncio.gather(*tasks), 20)]
