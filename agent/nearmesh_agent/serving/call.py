"""One engine call for a batch of requests, and what each of them gets from it. In an engine thread, or on the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nearmesh.errors import DeadlineExceeded, EngineFailure
from nearmesh_agent.engines.base import Engine
from nearmesh_agent.serving.batch import BatchLayout
from nearmesh_agent.serving.queue import Answer, Waiting
from nearmesh_agent.serving.times import ServiceTimes

Clock = Callable[[], float]
Result = Answer | Exception

# A size that a lone call proves to be so many times as fast as known was measured in a bad moment.
_STALE = 4


class EngineCalls:
    """Of one engine. `run` may be called by several threads."""

    def __init__(
        self, engine: Engine, layout: BatchLayout, times: ServiceTimes, *, clock: Clock, instances: int
    ) -> None:
        self._engine = engine
        self._layout = layout
        self._times = times
        self._clock = clock
        self._instances = instances
        self._effort_clock = effort_clock(engine, clock)

    def run(self, batch: Sequence[Waiting], *, alone: bool) -> list[Result]:
        """An answer or an error for each request."""
        try:
            return list(self._together(batch, alone=alone))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            # Whatever else it is belongs to the callers: they wait, and an engine thread must outlive it.
            failed = _tellable(error)
        if len(batch) == 1:
            return [failed]
        # One bad request must not spoil those that happened to share its call. Who has left is not computed again.
        return [self._again(one, failed) for one in batch]

    def _again(self, request: Waiting, failed: Exception) -> Result:
        """By itself, if anybody still waits for it."""
        if request.future.done():
            return failed
        if request.deadline_s <= self._clock():
            return DeadlineExceeded("the deadline passed before the request could be tried by itself")
        return self.run([request], alone=False)[0]

    def _together(self, batch: Sequence[Waiting], *, alone: bool) -> list[Answer]:
        started, effort_s = self._clock(), self._effort_clock()
        requests = [request.inputs for request in batch]
        rows = [request.rows for request in batch]
        outputs = self._engine.infer(self._layout.join(requests), alone=alone)
        shares = self._layout.split(outputs, requests, rows)
        seconds = self._clock() - started
        total = sum(rows)
        if alone:
            # It says little about calls that share the machine, but at worst they share it evenly.
            self._times.at_most(total, seconds * max(self._instances, _STALE))
        # With one instance no call shares it.
        alone = alone and self._instances > 1
        if not alone:
            self._times.add(total, seconds, self._effort_clock() - effort_s)
        return [
            Answer(
                share,
                (started - request.entered_s) * 1000,
                seconds * 1000,
                total,
                request is batch[0],
                alone,
                request.rows,
            )
            for share, request in zip(shares, batch, strict=True)
        ]


def effort_clock(engine: Engine, clock: Clock) -> Clock:
    """What a call's effort is measured with: on the CPU it computes in the thread that calls, alone calls apart."""
    on_cpu = bool(engine.providers) and engine.providers[0].startswith("CPU")
    return time.thread_time if on_cpu else clock


def _tellable(error: BaseException) -> Exception:
    """What a future takes: no end of an iteration, and none of the process."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = EngineFailure(f"the engine ended with {type(error).__name__}")
    failure.__cause__ = error
    return failure
