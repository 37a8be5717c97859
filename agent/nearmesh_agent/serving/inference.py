"""From a request to its answer: what unary calls and streams have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

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
from nearmesh_agent.serving.metrics import ServingMetrics
from nearmesh_agent.serving.queue import Answer
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.sequences import Kept, Key, Sequences
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.serving.wire import Received

_FINAL = "triton_final_response"

# How requests end that neither succeed nor fail with an error of the mesh; anything else is a bug.
_OTHERS: dict[type[BaseException], str] = {asyncio.CancelledError: "CANCELLED", GeneratorExit: "CANCELLED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this node is; it signs receipts with it."""

    node: str
    site: str
    region: str


@dataclass(slots=True)
class _Call:
    """What is known about one request while it is answered."""

    request: Received
    started_s: float
    timeout_s: float | None
    replica: Replica | None = None

    def left_s(self, now_s: float) -> float | None:
        return None if self.timeout_s is None else self.timeout_s - (now_s - self.started_s)


class Inference:
    """Answers requests with the replicas of this node."""

    def __init__(self, table: ReplicaTable, place: Place, metrics: ServingMetrics) -> None:
        self._table = table
        self._place = place
        self._metrics = metrics
        # Set when the node leaves: nothing new is taken, sequences under way may end.
        self.draining = False
        # Requests that are being answered, those included that wait.
        self.under_way = 0

    async def answer(self, request: Received, timeout_s: float | None, sequences: Sequences, scope: str) -> Any:
        """A ModelInferResponse, or the bytes of one. `scope` keeps callers' sequences apart. Raises MeshError."""
        call = _Call(request, time.perf_counter(), timeout_s)
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
        call = _Call(Received(message, ()), time.perf_counter(), timeout_s)
        try:
            asked = self._asked(call)
            if asked.step is None:
                replica = call.replica = self._open(self._table.get(message.model_name, message.model_version))
                if not replica.package.decoupled:
                    replica.check_room(replica.intake.rows(message), timeout_s=call.timeout_s, priority=asked.priority)
        except MeshError as error:
            self._count(call, error)
            raise

    def _count(self, call: _Call, error: BaseException) -> None:
        took_ms = (time.perf_counter() - call.started_s) * 1000
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

    async def _answer(self, call: _Call, sequences: Sequences, scope: str) -> Any:
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
        if replica.package.decoupled:
            raise Unsupported(f"{replica.name!r} gives several answers to a request: call ModelStreamInfer")
        return await self._run(call, replica, asked)

    def _asked(self, call: _Call) -> Asked:
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

    def _holder(self, message: Any, key: Key, step: Step, sequences: Sequences) -> Replica:
        """A swap, or the model's end here, leaves a sequence with the version that it began with."""
        held = sequences.holder(key, step)
        return held or self._table.get(message.model_name, message.model_version)

    async def _step(self, call: _Call, key: Key, asked: Asked, sequences: Sequences) -> Any:
        """One request of a sequence, in its turn."""
        step, message = asked.step, call.request.message
        assert step is not None
        # Asked again: an earlier request of the sequence may have ended it while this one waited.
        replica = self._holder(message, key, step, sequences)
        # A version that is taken out during a step waits for it: a first step has no state yet that would hold it.
        with replica.holds.during() if step.start else nullcontext():
            kept = sequences.begin(key, step, replica, now_s=time.monotonic())
            if kept:
                _check_held(kept.replica, message)
            else:
                self._open(replica)
            call.replica = replica
            return await self._run(call, replica, asked, kept=kept, key=key, sequences=sequences)

    async def _run(
        self,
        call: _Call,
        replica: Replica,
        asked: Asked,
        *,
        kept: Kept | None = None,
        key: Key | None = None,
        sequences: Sequences | None = None,
    ) -> Any:
        message = call.request.message
        outputs = inputs.requested_outputs(replica.package, message, hidden=replica.hidden if key else ())
        arrays = replica.intake.read(call.request, held=kept.state if kept else inputs.NOTHING)
        decoded_s = time.perf_counter()
        answer = await replica.infer(arrays, timeout_s=call.left_s(decoded_s), priority=asked.priority)
        answered_s = time.perf_counter()
        if key and sequences is not None and asked.step:
            sequences.advance(key, asked.step, replica, answer.outputs, now_s=time.monotonic())
        response = service_pb2.ModelInferResponse(model_name=replica.name, model_version=replica.version, id=message.id)
        if asked.receipt:
            self._sign(response, replica, answer, (answered_s - call.started_s) * 1000)
        if asked.empty_final:
            response.parameters[_FINAL].bool_param = True
        encoded = wire.respond(response, _chosen(answer.outputs, outputs))
        ended_s = time.perf_counter()
        replica.tally.answered(
            answer,
            rows=answer.rows,
            decode_ms=(decoded_s - call.started_s) * 1000,
            encode_ms=(ended_s - answered_s) * 1000,
            now_ms=time.time_ns() // 1_000_000,
        )
        replica.tally.moved(call.request.size_bytes, wire.size_bytes(encoded))
        replica.measured.served((ended_s - call.started_s) * 1000)
        return encoded

    async def answers(self, request: Received, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        """A decoupled model's answers, in order, each a ModelInferResponse. Raises MeshError."""
        call = _Call(request, time.perf_counter(), timeout_s)
        message = request.message
        self.under_way += 1
        try:
            asked = self._asked(call)
            replica = call.replica = self._open(self._table.get(message.model_name, message.model_version))
            wanted = inputs.requested_outputs(replica.package, message)
            arrays = replica.intake.read(request)
            number, asked_s, bytes_out = 0, time.perf_counter(), 0
            async with aclosing(replica.stream(arrays, timeout_s=call.left_s(asked_s))) as answers:
                async for outputs in answers:
                    computed_s = time.perf_counter()
                    written = self._part(replica, message, asked, _chosen(outputs, wanted))
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
                last = _response(replica, message)
                last.parameters[_FINAL].bool_param = True
                yield last
        except BaseException as error:
            self._count(call, error)
            raise
        finally:
            self.under_way -= 1
        replica.tally.streamed((time.perf_counter() - call.started_s) * 1000, time.time_ns() // 1_000_000)
        replica.tally.moved(request.size_bytes, bytes_out)

    def _part(self, replica: Replica, message: Any, asked: Asked, outputs: Mapping[str, Array]) -> Any:
        """One of several answers."""
        response = _response(replica, message)
        if asked.empty_final:
            response.parameters[_FINAL].bool_param = False
        return wire.parsed(wire.respond(response, outputs))

    def decoupled(self, message: Any) -> bool:
        """Whether a request's model gives several answers. Raises NotFound, NotReady."""
        return self._table.get(message.model_name, message.model_version).package.decoupled

    def _sign(self, response: Any, replica: Replica, answer: Answer, service_ms: float) -> None:
        written = response.parameters
        written["nearmesh_node"].string_param = self._place.node
        written["nearmesh_site"].string_param = self._place.site
        written["nearmesh_region"].string_param = self._place.region
        written["nearmesh_digest"].string_param = replica.digest
        written["nearmesh_variant"].string_param = replica.variant
        written["nearmesh_queue_ms"].double_param = answer.queue_ms
        written["nearmesh_compute_ms"].double_param = answer.compute_ms
        written["nearmesh_service_ms"].double_param = service_ms
        written["nearmesh_batch_rows"].int64_param = answer.batch_rows


def _response(replica: Replica, message: Any) -> Any:
    return service_pb2.ModelInferResponse(model_name=replica.name, model_version=replica.version, id=message.id)


def _chosen(outputs: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    return {name: outputs[name] for name in names}


def _check_held(replica: Replica, message: Any) -> None:
    if replica.closed:
        raise SequenceLost(
            f"the version of {replica.name!r} that the sequence began with has left this node; start it again with "
            "sequence_start"
        )
    if message.model_version not in ("", replica.version):
        raise InvalidInput(f"version {message.model_version!r} given; the sequence began with {replica.version!r}")
