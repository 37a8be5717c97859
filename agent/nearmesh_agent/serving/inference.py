"""From a request to its answer: what unary calls and streams have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, nullcontext
from functools import partial
from typing import Any

from nearmesh.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    MeshError,
    NotFound,
    NotReady,
    SequenceLost,
    Unsupported,
)
from nearmesh_agent.engines.base import Array
from nearmesh_agent.serving import asked as parameters
from nearmesh_agent.serving import inputs, wire
from nearmesh_agent.serving.asked import Asked, Step
from nearmesh_agent.serving.beside import Beside
from nearmesh_agent.serving.metrics import ServingMetrics
from nearmesh_agent.serving.mirror import Mirror
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.responses import FINAL, Place, begun, chosen
from nearmesh_agent.serving.sequences import Key, Sequences, Spare
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.serving.under_way import Call, Computed, first_attempt
from nearmesh_agent.serving.wire import Received

# How requests end that neither succeed nor fail with an error of the mesh; anything else is a bug.
_OTHERS: dict[type[BaseException], str] = {asyncio.CancelledError: "CANCELLED", GeneratorExit: "CANCELLED"}


class Inference:
    """Answers requests with the replicas of this node."""

    def __init__(self, table: ReplicaTable, place: Place, metrics: ServingMetrics) -> None:
        self._table = table
        self._place = place
        self._metrics = metrics
        self._beside = Beside(table)
        # Set when the node leaves: nothing new is taken, sequences under way may end.
        self.draining = False
        # Requests that are being answered, those included that wait.
        self.under_way = 0

    @property
    def mirror(self) -> Mirror:
        """What shows versions on trial the requests of others; its `run` has to be a task of somebody."""
        return self._beside.mirror

    async def answer(
        self,
        request: Received,
        timeout_s: float | None,
        sequences: Sequences,
        scope: str,
        attempt: Callable[[], int] = first_attempt,
    ) -> Any:
        """A ModelInferResponse, or the bytes of one. `scope` keeps callers' sequences apart. Raises MeshError."""
        call = Call(request, time.perf_counter(), timeout_s, attempt=attempt)
        self.under_way += 1
        try:
            return await self._answer(call, sequences, scope)
        except BaseException as error:
            self._count(call, error)
            raise
        finally:
            self.under_way -= 1

    def check_head(self, message: Any, timeout_s: float | None) -> None:
        """Judges a large request by what it says before its tensors. Raises what `answer` would raise at once.

        So a node that has no time for it need not receive it.
        """
        call = Call(Received(message, ()), time.perf_counter(), timeout_s)
        try:
            asked = self._asked(call)
            if asked.step is None:
                replica = call.replica = self._open(self._table.get(message.model_name, message.model_version))
                if not replica.package.decoupled:
                    replica.check_room(replica.intake.rows(message), timeout_s=call.timeout_s, priority=asked.priority)
        except MeshError as error:
            self._count(call, error)
            raise

    def _count(self, call: Call, error: BaseException) -> None:
        took_ms = (time.perf_counter() - call.begun_s) * 1000
        outcome = error.reason if isinstance(error, MeshError) else _OTHERS.get(type(error), MeshError.reason)
        replica = call.replica or self._meant(call.request.message)
        if replica is None:
            self._metrics.unknown(outcome)
            return
        replica.tally.failed(outcome, took_ms)
        if isinstance(error, DeadlineExceeded):
            replica.measured.too_late(took_ms)

    def _meant(self, message: Any) -> Replica | None:
        """Whom a request named that was refused before it got there."""
        try:
            return self._table.get(message.model_name, message.model_version)
        except (NotFound, NotReady):
            return None

    async def _answer(self, call: Call, sequences: Sequences, scope: str) -> Any:
        message = call.request.message
        asked = self._asked(call)
        if asked.step is None:
            replica = self._table.get(message.model_name, message.model_version)
        else:
            key: Key = (scope, message.model_name, asked.step.id)
            replica = self._holder(message, key, asked.step, sequences)
            if replica.package.sequence:
                async with sequences.turn(key):
                    return await self._step(call, key, asked, sequences)
        call.replica = self._open(replica)
        # Whoever carries the state of a sequence along has it from one version, and no other could go on with it.
        trial = None if replica.package.sequence else self._table.trial_beside(replica)
        if trial and (turn_s := self._beside.turn_s(call, replica, trial, trial.requests)):
            return await self._beside.answer(call, replica, trial.replica, turn_s, partial(self._run, call, asked))
        computed = await self._compute(call, asked, replica)
        if trial and trial.mirrored.next():
            self.mirror.offer(replica, trial.replica, call.request, computed.answer.outputs)
        return self._respond(call, asked, replica, computed)

    async def _run(self, call: Call, asked: Asked, replica: Replica) -> Any:
        return self._respond(call, asked, replica, await self._compute(call, asked, replica))

    async def _compute(
        self, call: Call, asked: Asked, replica: Replica, *, held: Mapping[str, Array] | None = None
    ) -> Computed:
        """Within a sequence `held` is the state that it goes on from."""
        if replica.package.decoupled:
            raise Unsupported(f"{replica.name!r} gives several answers to a request: call ModelStreamInfer")
        message = call.request.message
        names = inputs.requested_outputs(replica.package, message, hidden=() if held is None else replica.hidden)
        arrays = replica.intake.read(call.request, held=held or inputs.NOTHING)
        decoded_s = time.perf_counter()
        answer = await replica.infer(arrays, timeout_s=call.left_s(decoded_s), priority=asked.priority)
        return Computed(answer, names, decoded_s, time.perf_counter())

    def _respond(self, call: Call, asked: Asked, replica: Replica, computed: Computed) -> Any:
        """Writes the answer, and counts it."""
        answer, answered_s = computed.answer, computed.answered_s
        response = begun(replica, call.request.message)
        if asked.receipt:
            self._place.sign(response, replica, answer, (answered_s - call.started_s) * 1000, call.attempt())
        if asked.empty_final:
            response.parameters[FINAL].bool_param = True
        encoded = wire.respond(response, chosen(answer.outputs, computed.names))
        ended_s = time.perf_counter()
        replica.tally.answered(
            answer,
            rows=answer.rows,
            decode_ms=(computed.decoded_s - call.begun_s) * 1000,
            encode_ms=(ended_s - answered_s) * 1000,
            now_ms=time.time_ns() // 1_000_000,
        )
        replica.tally.moved(call.request.size_bytes, wire.size_bytes(encoded))
        replica.measured.served((ended_s - call.begun_s) * 1000)
        return encoded

    def _asked(self, call: Call) -> Asked:
        asked = parameters.read(call.request.message)
        if asked.timeout_s is not None:
            call.timeout_s = asked.timeout_s if call.timeout_s is None else min(asked.timeout_s, call.timeout_s)
        return asked

    def _open(self, replica: Replica) -> Replica:
        """For a new piece of work. Raises Draining."""
        if self.draining:
            raise self.turned_away()
        return replica

    def turned_away(self) -> Draining:
        """What new work is told while the node leaves."""
        return Draining(f"node {self._place.node!r} is leaving; another node may serve")

    def sequence_ends(self) -> SequenceLost:
        """What a sequence is told that has not ended in time."""
        return SequenceLost(
            f"node {self._place.node!r} is leaving, and the state of its sequences goes with it; begin the sequence "
            "anew with sequence_start, and another node takes it"
        )

    # Sequences.

    def _holder(self, message: Any, key: Key, step: Step, sequences: Sequences) -> Replica:
        """A swap, or the model's end here, leaves a sequence with the version that it began with."""
        held = sequences.holder(key, step)
        return held or self._table.get(message.model_name, message.model_version)

    async def _step(self, call: Call, key: Key, asked: Asked, sequences: Sequences) -> Any:
        """One request of a sequence, in its turn."""
        step, message = asked.step, call.request.message
        assert step is not None
        # Asked again: an earlier request of the sequence may have ended it while this one waited.
        replica = self._holder(message, key, step, sequences)
        if step.start:
            trial = self._table.trial_beside(self._open(replica))
            able = trial and trial.replica.package.sequence
            if trial and able and self._beside.turn_s(call, replica, trial, trial.sequences):
                return await self._on_both(call, key, asked, sequences, trial.replica, Spare(replica, {}))
        elif (spare := self._spare(message, key, replica, sequences)) and replica.on_trial:
            return await self._on_both(call, key, asked, sequences, replica, spare)
        elif spare and not spare.replica.closed:
            # The trial was taken back, and its sequences need not wait for their end.
            sequences.hand_over(key)
            replica = spare.replica
        computed = await self._step_on(call, key, asked, sequences, replica)
        return self._respond(call, asked, replica, computed)

    def _spare(self, message: Any, key: Key, replica: Replica, sequences: Sequences) -> Spare | None:
        """The standing version, where it has kept up with a sequence that another one began."""
        if message.model_version or self._table.serving(replica):
            return None
        return sequences.spare(key, now_s=time.monotonic())

    async def _step_on(self, call: Call, key: Key, asked: Asked, sequences: Sequences, replica: Replica) -> Computed:
        step, message = asked.step, call.request.message
        assert step is not None
        # A version that is taken out during a step waits for it: a first step has no state yet that would hold it.
        with replica.holds.during() if step.start else nullcontext():
            kept = sequences.begin(key, step, replica, now_s=time.monotonic())
            if kept:
                _check_held(kept.replica, message)
            else:
                self._open(replica)
            call.replica = replica
            computed = await self._compute(call, asked, replica, held=kept.state if kept else {})
            sequences.advance(key, step, replica, computed.answer.outputs, now_s=time.monotonic())
            return computed

    async def _on_both(
        self, call: Call, key: Key, asked: Asked, sequences: Sequences, trial: Replica, spare: Spare
    ) -> Any:
        """A step of a sequence that a version on trial has begun, or is to begin.

        The standing version takes every step as well, from a state of its own, so that it can go on if the other fails.
        """
        step, standing = asked.step, spare.replica
        assert step is not None
        tried, stood = await self._beside.both(
            call,
            standing,
            trial,
            self._step_on(call, key, asked, sequences, trial),
            self._compute(call, asked, standing, held=spare.state),
        )
        if tried:
            sequences.keep_spare(key, standing, stood.answer.outputs if stood else None)
            return self._respond(call, asked, trial, tried)
        assert stood is not None
        sequences.advance(key, step, standing, stood.answer.outputs, now_s=time.monotonic())
        return self._respond(call, asked, standing, stood)

    # Decoupled models.

    async def answers(self, request: Received, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        """A decoupled model's answers, in order, each a ModelInferResponse. Raises MeshError."""
        call = Call(request, time.perf_counter(), timeout_s)
        message = request.message
        self.under_way += 1
        try:
            asked = self._asked(call)
            replica = call.replica = self._open(self._table.get(message.model_name, message.model_version))
            async with aclosing(self._chosen_stream(call, asked, replica)) as answers:
                async for answer in answers:
                    yield answer
        except BaseException as error:
            self._count(call, error)
            raise
        finally:
            self.under_way -= 1

    async def _chosen_stream(self, call: Call, asked: Asked, standing: Replica) -> AsyncGenerator[Any, None]:
        """From the version on trial if it is its turn and its first answer comes, else from the standing one."""
        trial = self._table.trial_beside(standing)
        turn_s = self._beside.turn_s(call, standing, trial, trial.requests) if trial else 0.0
        begins, first = False, None
        if trial and turn_s:
            answers = self._stream(call, asked, trial.replica)
            begins, first = await self._beside.first(call, trial.replica, turn_s, answers)
        if not begins:
            call.replica, call.handed_on_s = standing, time.perf_counter()
            answers = self._stream(call, asked, standing)
        async with aclosing(answers):
            if first is not None:
                yield first
            async for answer in answers:
                yield answer

    async def _stream(self, call: Call, asked: Asked, replica: Replica) -> AsyncGenerator[Any, None]:
        if not replica.package.decoupled:
            raise Unsupported(f"{replica.name!r} gives one answer to a request")
        message = call.request.message
        wanted = inputs.requested_outputs(replica.package, message)
        arrays = replica.intake.read(call.request)
        number, asked_s, bytes_out = 0, time.perf_counter(), 0
        async with aclosing(replica.stream(arrays, timeout_s=call.left_s(asked_s))) as answers:
            async for outputs in answers:
                computed_s = time.perf_counter()
                written = self._part(replica, message, asked, chosen(outputs, wanted))
                bytes_out += wire.size_bytes(written)
                replica.tally.responded(
                    number,
                    compute_ms=(computed_s - asked_s) * 1000,
                    encode_ms=(time.perf_counter() - computed_s) * 1000,
                )
                yield written
                # The caller took its time in between.
                number, asked_s = number + 1, time.perf_counter()
        if asked.empty_final:
            last = begun(replica, message)
            last.parameters[FINAL].bool_param = True
            yield last
        replica.tally.streamed((time.perf_counter() - call.begun_s) * 1000, time.time_ns() // 1_000_000)
        replica.tally.moved(call.request.size_bytes, bytes_out)

    def _part(self, replica: Replica, message: Any, asked: Asked, outputs: Mapping[str, Array]) -> Any:
        """One of several answers."""
        response = begun(replica, message)
        if asked.empty_final:
            response.parameters[FINAL].bool_param = False
        return wire.parsed(wire.respond(response, outputs))

    def decoupled(self, message: Any) -> bool:
        """Whether a request's model gives several answers. Raises NotFound, NotReady."""
        return self._table.get(message.model_name, message.model_version).package.decoupled


def _check_held(replica: Replica, message: Any) -> None:
    if replica.closed:
        raise SequenceLost(
            f"the version of {replica.name!r} that the sequence began with has left this node; start it again with "
            "sequence_start"
        )
    if message.model_version not in ("", replica.version):
        raise InvalidInput(f"version {message.model_version!r} given; the sequence began with {replica.version!r}")
