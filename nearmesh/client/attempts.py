"""One call, delivered: which node to ask next, when, and what a failure means.

One node is asked. If it fails, the next is asked at once. If it takes longer than its forecast 95th percentile, another
one is asked *beside* it, as long as the budget for such hedges lasts; if it is silent for longer than such a node ever
is, another is asked whatever the budget says, so that a frozen node costs a moment. The first answer counts, the others
are cancelled. When all have been asked, those that failed are asked again, with growing pauses, until the caller's
deadline. A call that is not idempotent is never asked twice, unless it cannot have left.

The clock is the event loop's, so that a test's loop decides how fast time passes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.client import picker, receipt
from nearmesh.client.experience import Experience
from nearmesh.client.picker import Choice
from nearmesh.client.receipt import Attempt
from nearmesh.client.tally import Key
from nearmesh.client.transport import NotSent, Reply, Transport
from nearmesh.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailure,
    InvalidInput,
    MeshError,
    NoRoute,
    NotFound,
    NotReady,
    Overloaded,
    Unauthenticated,
    Unreachable,
)
from nearmesh.routing import Times
from nearmesh.tensors import Array

# Pause after a round in which every node failed; doubled each round.
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0
# Larger requests take longer than a round trip, so they say nothing about it.
MAX_SAMPLE_BYTES = 64 * 1024

_REFUSALS = (NotReady, Draining, Overloaded)
# Another node may well serve.
_ELSEWHERE = (Unreachable, NoRoute, DeadlineExceeded, *_REFUSALS)
# Other nodes that a call may try after such an error. A version that is not there yet will be on the next one, or
# nowhere. An engine that broke may be one node's fault, or this request's: it does not go round a large mesh to break
# them all.
_MORE_WHEN_NOT_FOUND = 1
_MORE_WHEN_BROKEN = 3
# A node whose keys are old, or whose clock is wrong, refuses a good token; several do not.
MORE_WHEN_DENIED = 2


class Garbled(EngineFailure):
    """The node's answer makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is to be delivered, and until when."""

    request: service_pb2.ModelInferRequest
    # On the event loop's clock.
    deadline_s: float
    idempotent: bool = True
    # The order as of now, best first; asked again before each attempt.
    plan: Callable[[], Sequence[Choice]]
    # Of an order that is not empty, whom to ask first.
    pick: Callable[[Sequence[Choice]], Choice] = lambda choices: choices[0]
    # The objective as asked for, and the time that the model's policy aims at: what the call is counted by.
    objective: str = ""
    aim_ms: float = math.inf


@dataclass(frozen=True, slots=True)
class Delivery:
    """The answer, who gave it, and everyone who was asked."""

    response: service_pb2.ModelInferResponse
    outputs: Mapping[str, Array]
    choice: Choice
    attempt_ms: float
    attempts: tuple[Attempt, ...]
    # What was forecast of the node that answered, for a request of this size.
    forecast: Times
    # A second node was asked because the first took longer than forecast.
    hedged: bool


async def deliver(call: Call, transport: Transport, experience: Experience) -> Delivery:
    """Raises the error that no other node can mend; at the deadline the last one, DeadlineExceeded if none failed."""
    race = _Race(call, transport, experience)
    try:
        return await race.run()
    except MeshError:
        experience.tally.failed += 1
        raise
    finally:
        await race.stop()


@dataclass(slots=True)
class _Runner:
    """An attempt under way. Times on the loop's clock, infinite for never."""

    choice: Choice
    forecast: Times
    started_s: float
    # Late enough for a second request beside it.
    hedge_s: float
    # Late enough to be taken for frozen.
    patient_s: float
    is_hedge: bool
    silent: bool = False


class _Race:
    """The attempts of one call."""

    def __init__(self, call: Call, transport: Transport, experience: Experience) -> None:
        self._call = call
        self._transport = transport
        self._experience = experience
        self._tally = experience.tally
        self._model = call.request.model_name
        self._size = call.request.ByteSize()
        self._clock = asyncio.get_running_loop().time
        self._started_s = self._clock()
        self._running: dict[asyncio.Task[Reply], _Runner] = {}
        self._asked: set[str] = set()
        self._pause_s = FIRST_PAUSE_S
        self._paused_until_s = -math.inf
        self._done: list[Attempt] = []
        # Whose engines failed on this request: theirs is the fault if another's did not.
        self._broken: list[_Runner] = []
        # Who did not believe the token: theirs is the fault if another did.
        self._denied: list[_Runner] = []
        self._missing = 0
        self._hedged = False
        self._last_error: MeshError | None = None

    async def run(self) -> Delivery:
        self._tally.calls += 1
        self._experience.budget.called()
        while (now_s := self._clock()) < self._call.deadline_s:
            self._start_what_is_due(now_s)
            if delivery := await self._settle():
                return delivery
        raise self._too_late()

    async def stop(self) -> None:
        """Cancels what is still under way."""
        for task, runner in self._running.items():
            task.cancel()
            self._experience.ended(runner.choice.node)
        await asyncio.gather(*self._running, return_exceptions=True)

    # Whom to ask.

    def _start_what_is_due(self, now_s: float) -> None:
        self._note_silence(now_s)
        hopeful = self._hopeful()
        if not hopeful and now_s >= self._paused_until_s:
            self._start_next(now_s)
        elif len(hopeful) == 1 and now_s >= hopeful[0].hedge_s:
            self._start_hedge(hopeful[0], now_s)

    def _hopeful(self) -> list[_Runner]:
        return [runner for runner in self._running.values() if not runner.silent]

    def _note_silence(self, now_s: float) -> None:
        for runner in self._hopeful():
            if now_s >= runner.patient_s:
                runner.silent = True
                self._experience.failed(runner.choice.node, now_s=now_s)
                self._tally.silences += 1

    def _start_next(self, now_s: float) -> None:
        """The first node of a call, or the next one after those that failed or are silent."""
        choices = self._call.plan()
        busy = {runner.choice.node for runner in self._running.values()}
        if busy and not self._call.idempotent:
            choices = []
        if choices and not self._asked and not busy:
            choice: Choice | None = self._call.pick(choices)
        else:
            choice = next((c for c in choices if c.node not in self._asked and c.node not in busy), None)
        if choice:
            self._tally.failovers += self._last_error is not None and not busy
            self._start(choice)
            return
        self._give_up_early()
        self._paused_until_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        self._asked.clear()

    def _start_hedge(self, late: _Runner, now_s: float) -> None:
        """Not before help is due (`picker.due_ms`): that may be some time after the late one was late."""
        running = [runner.choice for runner in self._running.values()]
        busy = self._asked | {choice.node for choice in running}
        choice = picker.beside(self._call.plan(), busy, {choice.site for choice in running})
        due_ms = picker.due_ms(late.forecast, choice.forecast, self._call.aim_ms) if choice else math.inf
        late.hedge_s = late.started_s + due_ms / 1000
        if now_s < late.hedge_s:
            return
        late.hedge_s = math.inf
        if choice and self._experience.budget.take():
            self._tally.hedges += 1
            self._hedged = True
            self._start(choice, is_hedge=True)

    def _start(self, choice: Choice, *, is_hedge: bool = False) -> None:
        now_s, node, candidate = self._clock(), choice.node, choice.endpoint.candidate
        hedge_s = patience_s = math.inf
        if self._call.idempotent:
            correction = self._experience.correction(node, self._model, now_s=now_s)
            hedge_s = picker.hedge_s(candidate, self._size, correction)
            patience_s = picker.patience_s(candidate, self._size)
        work = self._transport.infer(choice.endpoint, self._call.request, self._call.deadline_s - now_s)
        self._asked.add(node)
        self._experience.began(node)
        self._running[asyncio.ensure_future(work)] = _Runner(
            choice=choice,
            forecast=picker.forecast(candidate, self._size),
            started_s=now_s,
            hedge_s=now_s + hedge_s,
            patient_s=now_s + patience_s,
            is_hedge=is_hedge,
        )

    # What becomes of it.

    async def _settle(self) -> Delivery | None:
        """Waits until an attempt ends, or another one may be due. Returns the first success."""
        left_s = self._next_due_s() - self._clock()
        if left_s <= 0:
            return None
        if not self._running:
            await asyncio.sleep(left_s)
            return None
        done, _ = await asyncio.wait(self._running, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        # In the order in which they were asked, so that the better node wins a tie.
        for task in [task for task in self._running if task in done]:
            if delivery := self._judge(task):
                return delivery
        return None

    def _next_due_s(self) -> float:
        hopeful = self._hopeful()
        due = [self._call.deadline_s, *(runner.patient_s for runner in hopeful)]
        if not hopeful:
            due.append(self._paused_until_s)
        elif len(hopeful) == 1:
            due.append(hopeful[0].hedge_s)
        return min(due)

    def _judge(self, task: asyncio.Task[Reply]) -> Delivery | None:
        """Takes a finished attempt out of the race. Raises an error that no other node can mend."""
        runner = self._running.pop(task)
        node, ms = runner.choice.node, self._ms_since(runner.started_s)
        self._experience.ended(node)
        try:
            reply = task.result()
            outputs = outputs_of(reply)
        except MeshError as error:
            self._done.append(Attempt(node, f"{error.reason}: {error.message}", ms))
            if not self._learn(runner, error):
                raise
            self._last_error = error
            return None
        return self._won(reply, outputs, runner, ms)

    def _won(self, reply: Reply, outputs: Mapping[str, Array], runner: _Runner, ms: float) -> Delivery:
        now_s, node = self._clock(), runner.choice.node
        self._experience.answered(node, self._model)
        self._tally.answered(
            self._key(runner), ms, runner.forecast, late=1000 * (now_s - self._started_s) > self._call.aim_ms
        )
        self._tally.hedges_won += runner.is_hedge
        if reply.warm:
            self._experience.took(node, self._model, ms, runner.forecast, now_s=now_s)
            network_ms = receipt.network_ms(reply.response, ms)
            if network_ms is not None and self._size < MAX_SAMPLE_BYTES:
                self._experience.sample(node, network_ms, now_s=now_s)
        for denied in self._denied:
            self._tally.node_failed(self._key(denied))
        for bad in (*self._broken, *self._denied):
            self._experience.erred(bad.choice.node, self._model, bad.forecast, now_s=now_s)
        overtaken = [self._overtaken(other, runner) for other in self._running.values()]
        attempts = (*self._done, *overtaken, Attempt(node, "", ms))
        return Delivery(reply.response, outputs, runner.choice, ms, attempts, runner.forecast, self._hedged)

    def _overtaken(self, runner: _Runner, winner: _Runner) -> Attempt:
        node, ms = runner.choice.node, self._ms_since(runner.started_s)
        if runner.silent:
            self._tally.node_failed(self._key(runner))
        elif runner.started_s < winner.started_s:
            patience_s = runner.patient_s - runner.started_s
            self._experience.lost_race(node, self._model, ms, now_s=self._clock(), patience_s=patience_s)
        else:
            return Attempt(node, receipt.BESIDE, ms)
        return Attempt(node, receipt.OVERTAKEN, ms)

    def _learn(self, runner: _Runner, error: MeshError) -> bool:
        """Remembers what the failure says of the node; returns whether another may be asked."""
        now_s, node = self._clock(), runner.choice.node
        if isinstance(error, Unauthenticated):
            # It did nothing: the call may go to another one, whatever it is, and if none answers the token is bad.
            self._denied.append(runner)
            return len({denied.choice.node for denied in self._denied}) <= MORE_WHEN_DENIED
        if isinstance(error, Unreachable):
            self._experience.failed(node, now_s=now_s)
        elif isinstance(error, _REFUSALS):
            self._experience.refused(node, self._model, now_s=now_s, retry_after_ms=error.retry_after_ms)
        elif _is_broken(error):
            self._broken.append(runner)
        elif isinstance(error, NotFound):
            self._missing += 1
        elif not isinstance(error, _ELSEWHERE):
            return False
        self._tally.node_failed(self._key(runner))
        if not self._call.idempotent:
            return isinstance(error, NotSent)
        return len(self._broken) <= _MORE_WHEN_BROKEN and self._missing <= _MORE_WHEN_NOT_FOUND

    def _give_up_early(self) -> None:
        """All have been asked: an error that other nodes did not mend is not worth waiting for."""
        error = self._last_error
        if error and not self._running and not isinstance(error, _ELSEWHERE):
            raise error

    def _too_late(self) -> MeshError:
        for runner in self._running.values():
            # A caller's short deadline proves nothing against the node.
            if runner.silent:
                self._tally.node_failed(self._key(runner))
        if self._running or isinstance(self._last_error, DeadlineExceeded):
            asked = [*(attempt.node for attempt in self._done), *(r.choice.node for r in self._running.values())]
            names = ", ".join(dict.fromkeys(asked))
            return DeadlineExceeded(f"{self._model}: no answer within the call's deadline; asked: {names}")
        return self._last_error or NoRoute(f"no node serves {self._model} at present")

    def _key(self, runner: _Runner) -> Key:
        return Key(self._model, runner.choice.node, self._call.objective)

    def _ms_since(self, then_s: float) -> float:
        return 1000 * (self._clock() - then_s)


def is_of_node(error: MeshError) -> bool:
    """Whether it speaks against the node; what a caller did wrong does not, nor a version that is not there."""
    return _is_broken(error) or isinstance(error, _ELSEWHERE)


def _is_broken(error: MeshError) -> bool:
    """An error of the node's own making: its engine failed, or it met a bug."""
    return isinstance(error, EngineFailure) or type(error) is MeshError


def outputs_of(reply: Reply) -> Mapping[str, Array]:
    """The arrays of an answer. Raises Garbled."""
    try:
        return tensors.decode_response(reply.response)
    except InvalidInput as error:
        raise Garbled(f"the answer makes no sense: {error.message}") from None
