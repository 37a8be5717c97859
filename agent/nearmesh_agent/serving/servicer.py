"""The Open Inference Protocol's gRPC service over the replicas of this node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.errors import Draining, MeshError, NotFound, NotReady, SequenceLost, Unsupported
from nearmesh.rpc import MAX_MESSAGE_CHARACTERS, caller
from nearmesh.tokens import SUBJECT_HEADER
from nearmesh_agent.serving import describe, wire
from nearmesh_agent.serving.inference import Inference
from nearmesh_agent.serving.metrics import ServingMetrics
from nearmesh_agent.serving.mirror import Mirror
from nearmesh_agent.serving.orca import OrcaReporter
from nearmesh_agent.serving.residency import Residency
from nearmesh_agent.serving.responses import Place
from nearmesh_agent.serving.sequences import Sequences
from nearmesh_agent.serving.table import ReplicaTable

# After one of these nothing on the stream can go well here: it ends with the status, so that clients turn elsewhere.
# All other errors are about one request; the stream goes on.
_END_STREAM = (SequenceLost, Draining, NotReady)

# Requests of one stream that are worked on at a time; the rest waits in the connection. They may share engine calls.
_AHEAD = 32

# Which attempt a call is: retries before it, by gRPC's clients; its number, by Envoy.
_RETRIES, _GATEWAY_ATTEMPT = "grpc-previous-rpc-attempts", "x-envoy-attempt-count"

# How often sequences that were silent too long are looked for. Their idle times are many seconds.
_EXPIRE_EVERY_S = 1.0


@dataclass(eq=False, slots=True)
class _OpenStream:
    """A stream that has not come to its end."""

    sequences: Sequences
    reader: asyncio.Task[None]
    # Why the node ends it.
    ending: MeshError | None = None

    def end(self, why: MeshError) -> None:
        """What was read so far is answered; `why` is the status behind it."""
        if not self.reader.done():
            self.ending = self.ending or why
            self.reader.cancel()


def _refused(sentence: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: object, request: object, context: object) -> Any:
        raise Unsupported(sentence)

    return method


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """`inference.GRPCInferenceService`. Errors are raised from `nearmesh.errors`; `nearmesh.rpc` translates them."""

    def __init__(
        self,
        table: ReplicaTable,
        place: Place,
        *,
        metrics: ServingMetrics | None = None,
        residency: Residency | None = None,
    ) -> None:
        """Without a `residency`, models cannot be loaded and unloaded by hand."""
        self._table = table
        self._residency = residency
        self._inference = Inference(table, place, metrics or ServingMetrics(table))
        self._orca = OrcaReporter(table)
        # Those of unary calls; each stream has its own.
        self.sequences = Sequences(most=None)
        self._streams: set[_OpenStream] = set()

    @property
    def draining(self) -> bool:
        """The node leaves: nothing new is taken, sequences under way may end, streams without one are ended."""
        return self._inference.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._inference.draining = value
        for stream in list(self._streams) if value else ():
            if not stream.sequences.alive:
                stream.end(self._inference.turned_away())

    def end_sequences(self) -> None:
        """The node waits no longer: after the requests that have come, each stream says so and ends."""
        for stream in list(self._streams):
            stream.end(self._inference.sequence_ends() if stream.sequences.alive else self._inference.turned_away())

    @property
    def mirror(self) -> Mirror:
        """What shows versions on trial the requests of others; its `run` is to be a task."""
        return self._inference.mirror

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._inference.under_way

    @property
    def sequences_kept(self) -> int:
        """Sequences whose state is on this node."""
        return len(self.sequences) + sum(len(stream.sequences) for stream in self._streams)

    @property
    def drained(self) -> bool:
        """Nothing new is taken, and nothing is left."""
        return self.draining and not (self.in_flight or self.sequences_kept or self._streams)

    @property
    def utilization(self) -> float:
        """Share of the node that is taken by what it serves; above 1 when requests queue for it."""
        return self._orca.utilization()

    @property
    def ready(self) -> bool:
        """False while the node has nothing to serve, while it leaves, or while an engine hangs or fails."""
        wanted = [replica for replica in self._table if not (replica.unloaded or replica.on_trial)]
        return not self.draining and len(wanted) > 0 and all(replica.ready for replica in wanted)

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
        chosen = list(self._table)
        if request.name:
            found = self._table.get(request.name, request.version)
            chosen = [found] if request.version else [other for other in chosen if other.name == found.name]
        return service_pb2.ModelStatisticsResponse(model_stats=[describe.statistics(replica) for replica in chosen])

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        return describe.index(self._table, only_ready=request.ready)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Brings a model of this node back into memory; answers when it is there."""
        if request.parameters:
            raise Unsupported(
                f"loading takes no parameters here, got {sorted(request.parameters)}: what a model is stands in its "
                "package; publish a version with `nearmesh model publish`"
            )
        standing = self._table.get(request.model_name)
        await self._control().load(standing)
        # Unloading has taken both.
        if (trial := self._table.trial_beside(standing)) and trial.replica.unloaded:
            await self._control().load(trial.replica)
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Takes a model out of memory until it is loaded by hand. No model depends on another one here."""
        self._table.get(request.model_name)
        for replica in self._table:
            if replica.name == request.model_name:
                await self._control().unload(replica)
        return service_pb2.RepositoryModelUnloadResponse()

    def _control(self) -> Residency:
        if self._residency is None:
            raise Unsupported("models are not loaded and unloaded by hand on this node")
        return self._residency

    # Inference.

    def check_head(self, begun: memoryview, timeout_s: float | None) -> None:
        """Judges a large request for ModelInfer by its first bytes. Raises MeshError when the rest is not wanted."""
        message = wire.head(begun)
        if message is not None:
            self._inference.check_head(message, timeout_s)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """`request` is a message, or what `wire.read` makes of one."""
        found = request if isinstance(request, wire.Received) else wire.received(request)
        answer = await self._inference.answer(
            found, context.time_remaining(), self.sequences, _scope(context), partial(_attempt, context)
        )
        context.set_trailing_metadata(self._orca.metadata())
        return answer

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers in the order of the requests, which may share engine calls."""
        sequences = Sequences()
        line: asyncio.Queue[tuple[Any, asyncio.Task[Any] | None] | None] = asyncio.Queue()
        room = asyncio.Semaphore(_AHEAD)
        under_way: set[asyncio.Task[Any]] = set()

        def over(task: asyncio.Task[Any]) -> None:
            under_way.discard(task)
            # Looked at here, since nobody asks for it once the stream has ended with an earlier one.
            if not task.cancelled():
                task.exception()

        def start(message: Any) -> asyncio.Task[Any] | None:
            """None for a decoupled model: it begins when its turn to answer comes."""
            if self._decoupled(message):
                return None
            work = self._inference.answer(wire.received(message), context.time_remaining(), sequences, "")
            task = asyncio.create_task(work)
            under_way.add(task)
            task.add_done_callback(over)
            return task

        async def read() -> None:
            async for message in requests:
                await room.acquire()
                line.put_nowait((message, start(message)))

        reader = asyncio.create_task(read())
        stream = _OpenStream(sequences, reader)
        self._streams.add(stream)
        # However the requests end, what came before is answered first.
        reader.add_done_callback(lambda _: line.put_nowait(None))
        try:
            while entry := await line.get():
                # Closed with the stream and not some time after it: decoupled work ends when its caller leaves.
                async with aclosing(self._replies(*entry, sequences, context)) as replies:
                    async for response in replies:
                        yield response
                room.release()
                if self.draining and not sequences.alive:
                    stream.end(self._inference.turned_away())
            if stream.ending and reader.cancelled():
                raise stream.ending
            await reader
        finally:
            reader.cancel()
            for task in under_way:
                task.cancel()
            await asyncio.gather(reader, *under_way, return_exceptions=True)
            sequences.close()
            self._streams.discard(stream)

    def _decoupled(self, message: Any) -> bool:
        try:
            return self._inference.decoupled(message)
        except MeshError:
            # The request itself will say so, in its turn.
            return False

    async def _replies(
        self, message: Any, task: asyncio.Task[Any] | None, sequences: Sequences, context: Any
    ) -> AsyncGenerator[Any, None]:
        try:
            if task is not None:
                response = wire.parsed(await task)
                yield service_pb2.ModelStreamInferResponse(infer_response=response)
                return
            async with aclosing(self._inference.answers(wire.received(message), context.time_remaining())) as answers:
                async for response in answers:
                    yield service_pb2.ModelStreamInferResponse(infer_response=response)
        except _END_STREAM as error:
            # One that may not begin here any more takes none with it that is under way on the same stream.
            if not (isinstance(error, Draining) and len(sequences)):
                raise
            yield _failed(message, error)
        except MeshError as error:
            yield _failed(message, error)

    async def forget_idle(self) -> None:
        """Lets go of sequences that were silent too long, of unary calls and of open streams; until it is cancelled."""
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            now_s = time.monotonic()
            for sequences in (self.sequences, *(stream.sequences for stream in self._streams)):
                sequences.expire(now_s)

    # What Triton offers beyond this.

    SystemSharedMemoryStatus = _refused("shared memory is not offered: tensors travel in the message")
    SystemSharedMemoryRegister = SystemSharedMemoryStatus
    SystemSharedMemoryUnregister = SystemSharedMemoryStatus
    CudaSharedMemoryStatus = SystemSharedMemoryStatus
    CudaSharedMemoryRegister = SystemSharedMemoryStatus
    CudaSharedMemoryUnregister = SystemSharedMemoryStatus
    TraceSetting = _refused("trace settings are not offered: the node's metrics and receipts say where time goes")
    LogSettings = _refused("log settings are not offered over the network: they are in the node's configuration")


def _attempt(context: Any) -> int:
    """1 for the first: gRPC's retries and those of a gateway say so in a header, the SDK's are calls of their own."""
    told = {key: value for key, value in context.invocation_metadata() if key in (_RETRIES, _GATEWAY_ATTEMPT)}
    try:
        return max(1, int(told.get(_GATEWAY_ATTEMPT, 1)), int(told.get(_RETRIES, 0)) + 1)
    except ValueError:
        return 1


def _scope(context: Any) -> str:
    """Whose sequences a call may go on with: its caller's, and behind a gateway those of the token checked there."""
    who = caller()
    if who.role != "gateway":
        return str(who)
    return next((f"{who}/{value}" for key, value in context.invocation_metadata() if key == SUBJECT_HEADER), str(who))


def _failed(request: Any, error: MeshError) -> Any:
    """The protocol has only a sentence here; the id and the reason stand beside it for those who look."""
    failed = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
    failed.parameters["nearmesh_reason"].string_param = error.reason
    if error.retry_after_ms is not None:
        failed.parameters["nearmesh_retry_after_ms"].int64_param = error.retry_after_ms
    return service_pb2.ModelStreamInferResponse(
        error_message=error.message[:MAX_MESSAGE_CHARACTERS], infer_response=failed
    )
