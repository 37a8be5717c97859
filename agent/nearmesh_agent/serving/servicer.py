"""The Open Inference Protocol's gRPC service over the replicas of this node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh import tensors
from nearmesh.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    MeshError,
    NotFound,
    NotReady,
    Overloaded,
    SequenceLost,
    Unsupported,
)
from nearmesh.rpc import MAX_MESSAGE_CHARACTERS
from nearmesh_agent.serving import describe, inputs
from nearmesh_agent.serving.lanes import Answer
from nearmesh_agent.serving.metrics import UNKNOWN_MODEL, ServingMetrics
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.sequences import Kept, Step, StreamSequences, step_of
from nearmesh_agent.serving.table import ReplicaTable

# After one of these nothing on the stream can go well here: it ends with the status, so that clients turn elsewhere.
# All other errors are about one request; the stream goes on.
_END_STREAM = (SequenceLost, Draining, NotReady)

# Refusals for the node's sake; the rest of the errors are about the request.
_REJECTIONS = (Overloaded, Draining, NotReady, DeadlineExceeded)

_RECEIPT = "nearmesh_receipt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this node is; it signs receipts with it."""

    node: str
    site: str
    region: str


@dataclass(slots=True)
class _Call:
    """What is known about one request while it is answered."""

    started_s: float
    model: str = UNKNOWN_MODEL
    replica: Replica | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """A checked request: who computes it, on what, and as which step of which sequence."""

    replica: Replica
    arrays: dict[str, tensors.Array]
    outputs: list[str]
    step: Step | None

    def held(self) -> AbstractContextManager[None]:
        """A version that is taken out during a step waits for it: a first step has no state yet that would hold it."""
        return self.replica.holds.during() if self.step else nullcontext()


def _refused(sentence: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: object, request: object, context: object) -> Any:
        raise Unsupported(sentence)

    return method


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """`inference.GRPCInferenceService`. Errors are raised from `nearmesh.errors`; `nearmesh.rpc` translates them."""

    def __init__(self, table: ReplicaTable, place: Place, *, metrics: ServingMetrics | None = None) -> None:
        self._table = table
        self._place = place
        self._metrics = metrics or ServingMetrics()
        # Set when the node leaves: nothing new is taken, sequences under way may end.
        self.draining = False

    @property
    def ready(self) -> bool:
        """False while the node has nothing to serve, while it leaves, or while an engine call hangs."""
        return not self.draining and len(self._table) > 0 and all(replica.ready for replica in self._table)

    # Health and description.

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        try:
            ready = not self.draining and self._table.get(request.name, request.version).ready
        except (NotFound, NotReady):
            ready = False
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return describe.server()

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        replica = self._table.get(request.name, request.version)
        versions = {other.version for other in self._table if other.name == replica.name}
        return describe.metadata(replica, {request.version} if request.version else versions)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        return describe.configuration(self._table.get(request.name, request.version))

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        chosen = [self._table.get(request.name, request.version)] if request.name else list(self._table)
        return service_pb2.ModelStatisticsResponse(model_stats=[describe.statistics(replica) for replica in chosen])

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        return describe.index(self._table, only_ready=request.ready)

    # Inference.

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        return await self._infer(request, _timeout_s(request, context), None)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers in the order of the requests."""
        sequences = StreamSequences()
        try:
            async for request in requests:
                try:
                    answer = await self._infer(request, _timeout_s(request, context), sequences)
                except _END_STREAM:
                    raise
                except MeshError as error:
                    yield _failed(request, error)
                else:
                    yield service_pb2.ModelStreamInferResponse(infer_response=answer)
        finally:
            sequences.close()

    async def _infer(self, request: Any, timeout_s: float | None, sequences: StreamSequences | None) -> Any:
        call = _Call(time.perf_counter())
        with self._counted(call):
            work = self._prepare(request, call, sequences)
            decoded_s = time.perf_counter()
            left_s = None if timeout_s is None else timeout_s - (decoded_s - call.started_s)
            with work.held():
                answer = await work.replica.infer(work.arrays, timeout_s=left_s)
                answered_s = time.perf_counter()
                if work.step and sequences is not None:
                    sequences.advance(work.replica, work.step, answer.outputs, now_s=time.monotonic())
            response = _respond(request, work, answer.outputs)
            work.replica.tally.answered(
                answer,
                rows=inputs.rows(work.replica.package, work.arrays),
                decode_ms=(decoded_s - call.started_s) * 1000,
                encode_ms=(time.perf_counter() - answered_s) * 1000,
                now_ms=time.time_ns() // 1_000_000,
            )
            service_ms = (time.perf_counter() - call.started_s) * 1000
            work.replica.served(service_ms)
            if _RECEIPT in request.parameters and request.parameters[_RECEIPT].bool_param:
                self._sign(response, work.replica, answer, service_ms)
            return response

    def _prepare(self, request: Any, call: _Call, sequences: StreamSequences | None) -> _Work:
        """Everything that can be wrong with a request is found here, before it meets the queue."""
        # A swap, or the model's end here, leaves a sequence with the version that it began with.
        replica = sequences.holder(request) if sequences is not None else None
        replica = replica or self._table.get(request.model_name, request.model_version)
        call.model = replica.name
        package = replica.package
        step = step_of(request) if package.sequence else None
        kept: Kept | None = None
        if step:
            if sequences is None:
                raise InvalidInput(f"a sequence of {package.name!r} lives on one stream: call ModelStreamInfer")
            kept = sequences.begin(package.name, step, now_s=time.monotonic())
        if self.draining and kept is None:
            raise Draining(f"node {self._place.node!r} is leaving; another node may serve")
        if kept:
            _check_held(kept.replica, request)
        call.replica = replica
        hidden = [state.output for state in package.sequence.state] if step and package.sequence else []
        outputs = inputs.requested_outputs(package, request, hidden=hidden)
        held = kept.state if kept else {}
        return _Work(replica, inputs.read(package, request, held=held), outputs, step)

    @contextmanager
    def _counted(self, call: _Call) -> Iterator[None]:
        # Whatever is not counted as something else below is a bug.
        status, metrics = "INTERNAL", self._metrics
        metrics.in_flight.inc()
        try:
            yield
            status = "OK"
            metrics.service_s.labels(call.model).observe(time.perf_counter() - call.started_s)
        except MeshError as error:
            status = error.status.name
            if isinstance(error, _REJECTIONS):
                metrics.rejected.labels(call.model, error.reason).inc()
            if isinstance(error, DeadlineExceeded) and call.replica:
                call.replica.too_late((time.perf_counter() - call.started_s) * 1000)
            raise
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        finally:
            metrics.in_flight.dec()
            metrics.requests.labels(call.model, status).inc()
            if status != "OK" and call.replica:
                call.replica.tally.failed((time.perf_counter() - call.started_s) * 1000)

    def _sign(self, response: Any, replica: Replica, answer: Answer, service_ms: float) -> None:
        parameters = response.parameters
        parameters["nearmesh_node"].string_param = self._place.node
        parameters["nearmesh_site"].string_param = self._place.site
        parameters["nearmesh_region"].string_param = self._place.region
        parameters["nearmesh_digest"].string_param = replica.digest
        parameters["nearmesh_variant"].string_param = replica.engine.variant
        parameters["nearmesh_queue_ms"].double_param = answer.queue_ms
        parameters["nearmesh_compute_ms"].double_param = answer.compute_ms
        parameters["nearmesh_service_ms"].double_param = service_ms

    # What Triton offers beyond this.

    RepositoryModelLoad = _refused("models are not loaded here by hand: `nearmesh model deploy` says what serves where")
    RepositoryModelUnload = _refused(
        "models are not unloaded here by hand: `nearmesh model deploy` says what serves where"
    )
    SystemSharedMemoryStatus = _refused("shared memory is not offered: tensors travel in the message")
    SystemSharedMemoryRegister = SystemSharedMemoryStatus
    SystemSharedMemoryUnregister = SystemSharedMemoryStatus
    CudaSharedMemoryStatus = SystemSharedMemoryStatus
    CudaSharedMemoryRegister = SystemSharedMemoryStatus
    CudaSharedMemoryUnregister = SystemSharedMemoryStatus
    TraceSetting = _refused("trace settings are not offered: the node's metrics and receipts say where time goes")
    LogSettings = _refused("log settings are not offered over the network: they are in the node's configuration")


def _check_held(replica: Replica, request: Any) -> None:
    if replica.closed:
        raise SequenceLost(
            f"the version of {replica.name!r} that the sequence began with has left this node; start it again with "
            "sequence_start"
        )
    if request.model_version not in ("", replica.version):
        raise InvalidInput(f"version {request.model_version!r} given; the sequence began with {replica.version!r}")


def _timeout_s(request: Any, context: Any) -> float | None:
    """What is left of the caller's time: gRPC's deadline, or Triton's `timeout` parameter in microseconds if sooner."""
    left: float | None = context.time_remaining()
    microseconds = request.parameters["timeout"].int64_param if "timeout" in request.parameters else 0
    if microseconds > 0:
        return min(microseconds / 1e6, left) if left is not None else microseconds / 1e6
    return left


def _respond(request: Any, work: _Work, outputs: Any) -> Any:
    response = service_pb2.ModelInferResponse(
        model_name=work.replica.name, model_version=work.replica.version, id=request.id
    )
    tensors.add_outputs(response, {name: outputs[name] for name in work.outputs})
    return response


def _failed(request: Any, error: MeshError) -> Any:
    """The protocol has only a sentence here; the id and the reason stand beside it for those who look."""
    failed = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
    failed.parameters["nearmesh_reason"].string_param = error.reason
    if error.retry_after_ms is not None:
        failed.parameters["nearmesh_retry_after_ms"].int64_param = error.retry_after_ms
    return service_pb2.ModelStreamInferResponse(
        error_message=error.message[:MAX_MESSAGE_CHARACTERS], infer_response=failed
    )
