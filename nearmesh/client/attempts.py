"""One call, delivered: which node to ask next, when, and what a failure means.

The first choice is asked. If it fails, the next is asked at once; if it is merely silent for longer than such a node
ever is, the next is asked *beside* it and the first answer counts (the others are cancelled), so that a frozen node
costs a moment and a slow one costs nothing. When all have been asked, those that failed are asked again, with growing
pauses, until the caller's deadline. A call that is not idempotent is never asked twice, unless it cannot have left.

The clock is the event loop's, so that a test's loop decides how fast time passes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from nearmesh.client import picker, receipt
from nearmesh.client.experience import Experience
from nearmesh.client.picker import Choice
from nearmesh.client.receipt import Attempt
from nearmesh.client.transport import NotSent, Reply, Transport
from nearmesh.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailure,
    MeshError,
    NoRoute,
    NotFound,
    NotReady,
    Overloaded,
    Unreachable,
)

# Pause after a round in which every node failed; doubled each round.
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0
# Larger requests take longer than a round trip, so they say nothing about it.
MAX_SAMPLE_BYTES = 64 * 1024

_REFUSALS = (NotReady, Draining, Overloaded)
# Another node may well serve.
_ELSEWHERE = (Unreachable, NoRoute, DeadlineExceeded, *_REFUSALS)
# Perhaps only this node: a version that is not there yet, an engine that broke. Worth one more node, not all of them.
_ONCE_MORE = (NotFound, EngineFailure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is to be delivered, and until when."""

    request: service_pb2.ModelInferRequest
    # On the event loop's clock.
    deadline_s: float
    idempotent: bool = True
    # The order as of now, best first; asked again before each attempt.
    plan: Callable[[], list[Choice]]


@dataclass(frozen=True, slots=True)
class Delivery:
    """The answer, who gave it, and everyone who was asked."""

    response: service_pb2.ModelInferResponse
    choice: Choice
    attempt_ms: float
    attempts: tuple[Attempt, ...]


async def deliver(call: Call, transport: Transport, experience: Experience) -> Delivery:
    """Raises the error that no other node can mend; at the deadline the last one, DeadlineExceeded if none failed."""
    race = _Race(call, transport, experience)
    try:
        return await race.run()
    finally:
        await race.stop()


@dataclass(frozen=True, slots=True)
class _Runner:
    """An attempt under way."""

    choice: Choice
    started_s: float


class _Race:
    """The attempts of one call."""

    def __init__(self, call: Call, transport: Transport, experience: Experience) -> None:
        self._call = call
        self._transport = transport
        self._experience = experience
        self._model = call.request.model_name
        self._size = call.request.ByteSize()
        self._clock = asyncio.get_running_loop().time
        self._running: dict[asyncio.Task[Reply], _Runner] = {}
        self._done: list[Attempt] = []
        self._last_error: MeshError | None = None
        self._once_more = True

    async def run(self) -> Delivery:
        asked: set[str] = set()
        pause_s = FIRST_PAUSE_S
        while self._clock() < self._call.deadline_s:
            choice = self._next(asked)
            if choice:
                asked.add(choice.node)
                delivery = await self._settle(self._start(choice), self._patience_s(choice))
            else:
                self._give_up_early()
                delivery = await self._settle(None, pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                asked.clear()
            if delivery:
                return delivery
        raise self._too_late()

    async def stop(self) -> None:
        """Cancels what is still under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _next(self, asked: set[str]) -> Choice | None:
        busy = {runner.choice.node for runner in self._running.values()}
        if busy and not self._call.idempotent:
            return None
        return next((c for c in self._call.plan() if c.node not in asked and c.node not in busy), None)

    def _patience_s(self, choice: Choice) -> float:
        return picker.patience_s(choice.endpoint.candidate, self._size) if self._call.idempotent else math.inf

    def _start(self, choice: Choice) -> asyncio.Task[Reply]:
        now_s = self._clock()
        left_s = self._call.deadline_s - now_s
        task = asyncio.ensure_future(self._transport.infer(choice.endpoint, self._call.request, left_s))
        self._running[task] = _Runner(choice, now_s)
        return task

    async def _settle(self, newest: asyncio.Task[Reply] | None, patience_s: float) -> Delivery | None:
        """Waits until an attempt succeeds (returned), the newest one fails, or patience is over."""
        patient_until_s = self._clock() + patience_s
        until_s = min(patient_until_s, self._call.deadline_s)
        while (left_s := until_s - self._clock()) > 0:
            if not self._running:
                await asyncio.sleep(left_s)
                return None
            done, _ = await asyncio.wait(self._running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            # In the order in which they were asked, so that the better node wins a tie.
            for task in [task for task in self._running if task in done]:
                if delivery := self._judge(task):
                    return delivery
            if newest in done:
                return None
        # A caller's short deadline proves nothing against the node.
        if newest in self._running and patient_until_s <= self._call.deadline_s:
            self._experience.failed(self._running[newest].choice.node, now_s=self._clock())
        return None

    def _judge(self, task: asyncio.Task[Reply]) -> Delivery | None:
        """Takes a finished attempt out of the race. Raises an error that no other node can mend."""
        runner = self._running.pop(task)
        node, ms = runner.choice.node, 1000 * (self._clock() - runner.started_s)
        try:
            reply = task.result()
        except MeshError as error:
            self._done.append(Attempt(node, f"{error.reason}: {error.message}", ms))
            self._learn(node, error)
            if not self._may_go_on(error):
                raise
            self._last_error = error
            return None
        return self._won(reply, runner.choice, ms)

    def _won(self, reply: Reply, choice: Choice, ms: float) -> Delivery:
        self._experience.answered(choice.node, self._model)
        network_ms = receipt.network_ms(reply.response, ms)
        if reply.warm and network_ms is not None and self._size < MAX_SAMPLE_BYTES:
            self._experience.sample(choice.node, network_ms, now_s=self._clock())
        overtaken = [
            Attempt(runner.choice.node, receipt.OVERTAKEN, 1000 * (self._clock() - runner.started_s))
            for runner in self._running.values()
        ]
        return Delivery(reply.response, choice, ms, (*self._done, *overtaken, Attempt(choice.node, "", ms)))

    def _learn(self, node: str, error: MeshError) -> None:
        now_s = self._clock()
        if isinstance(error, Unreachable):
            self._experience.failed(node, now_s=now_s)
        elif isinstance(error, _REFUSALS):
            self._experience.refused(node, self._model, now_s=now_s, retry_after_ms=error.retry_after_ms)

    def _may_go_on(self, error: MeshError) -> bool:
        if not self._call.idempotent:
            return isinstance(error, NotSent)
        if isinstance(error, _ONCE_MORE) or type(error) is MeshError:
            allowed, self._once_more = self._once_more, False
            return allowed
        return isinstance(error, _ELSEWHERE)

    def _give_up_early(self) -> None:
        """All have been asked: an error that was worth one more node is not worth waiting for."""
        error = self._last_error
        if error and not self._running and not isinstance(error, _ELSEWHERE):
            raise error

    def _too_late(self) -> MeshError:
        if self._running or isinstance(self._last_error, DeadlineExceeded):
            asked = [*(attempt.node for attempt in self._done), *(r.choice.node for r in self._running.values())]
            names = ", ".join(dict.fromkeys(asked))
            return DeadlineExceeded(f"{self._model}: no answer within the call's deadline; asked: {names}")
        return self._last_error or NoRoute(f"no node serves {self._model} at present")
