"""What a version on trial gets of its model's requests, and who answers where it fails: nobody sees that it did."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from nearmesh.errors import DeadlineExceeded
from nearmesh_agent.serving.attempts import Attempts, Outcome
from nearmesh_agent.serving.metrics import FAULTS, fault_of
from nearmesh_agent.serving.mirror import Mirror
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.serving.trial import Share, Trial, patience_s, together_s
from nearmesh_agent.serving.under_way import Call

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")


class Beside:
    """Of one node; belongs to one event loop."""

    def __init__(self, table: ReplicaTable) -> None:
        # Shows versions on trial what the standing ones have answered; its `run` has to be a task of somebody.
        self.mirror = Mirror(table)
        self._attempts = Attempts()

    def turn_s(self, call: Call, standing: Replica, trial: Trial, share: Share) -> float:
        """How long the version on trial may take for this request; 0: it is not its turn."""
        if call.request.message.model_version or not share.due():
            return 0.0
        replica = trial.replica
        if not replica.active and not replica.fault and replica.wake:
            # Others have put it out of memory, which is no fault of its own; its turn comes when it is back.
            self._attempts.start(replica.wake(replica, None))
            return 0.0
        turn_s = patience_s(call.left_s(time.perf_counter()), standing.measured.service().p95_ms / 1000)
        if turn_s:
            share.take()
        return turn_s

    async def answer(
        self,
        call: Call,
        standing: Replica,
        trial: Replica,
        turn_s: float,
        work: Callable[[Replica], Coroutine[Any, Any, T]],
    ) -> T | None:
        """What `work` gives on the version on trial, or else on the standing one."""
        call.replica = trial
        outcome = await self._attempts.within(work(trial), turn_s)
        if outcome.error is None:
            return outcome.answer
        call.replica, call.handed_on_s = standing, time.perf_counter()
        if outcome.reason in FAULTS:
            self._missed(call, trial, outcome)
            return await work(standing)
        # The caller did something wrong, unless the standing version finds nothing wrong with it.
        answer = await work(standing)
        self._missed(call, trial, outcome)
        return answer

    async def both(
        self,
        call: Call,
        standing: Replica,
        trial: Replica,
        tried: Coroutine[Any, Any, T],
        stood: Coroutine[Any, Any, U],
    ) -> tuple[T | None, U | None]:
        """What the version on trial and the standing one make of a request, at the same time; None of one that failed.

        Raises what the standing one raised where both have failed.
        """
        left_s = call.left_s(time.perf_counter())
        outcome, other = await asyncio.gather(
            self._attempts.within(tried, together_s(left_s, standing.measured.service().p95_ms / 1000)),
            self._attempts.within(stood, left_s),
        )
        if outcome.error is None:
            call.replica = trial
            return outcome.answer, other.answer
        call.replica = standing
        if other.error is None or outcome.reason in FAULTS:
            self._missed(call, trial, outcome)
        if other.error is not None:
            raise other.error
        return None, other.answer

    async def first(
        self, call: Call, trial: Replica, turn_s: float, answers: AsyncGenerator[T, None]
    ) -> tuple[bool, T | None]:
        """Whether the answers of the version on trial begin in time, and the first one; None if there are none."""
        call.replica = trial
        outcome = await self._attempts.within(_next(answers), turn_s)
        # Whose fault anything else was is not known yet.
        if outcome.error is not None and outcome.reason in FAULTS:
            self._missed(call, trial, outcome)
        return outcome.error is None, outcome.answer

    def _missed(self, call: Call, trial: Replica, outcome: Outcome[Any]) -> None:
        took_ms = (time.perf_counter() - call.started_s) * 1000
        log.debug("the standing version answers model=%s in place of %s: %s", trial.name, trial.version, outcome.error)
        trial.tally.failed(fault_of(outcome.reason), took_ms)
        if isinstance(outcome.error, DeadlineExceeded):
            trial.measured.too_late(took_ms)


async def _next(answers: AsyncGenerator[T, None]) -> T | None:
    return await anext(answers, None)
