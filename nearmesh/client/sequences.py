"""Stateful models: a sequence of calls on one stream to one node, which keeps the state between them.

The first call may still move to another node, since no state exists yet. After that a sequence lives and dies with its
node: when that is lost, SequenceLost says so at once, and the app begins a new one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.client import picker, receipt
from nearmesh.client.attempts import MORE_WHEN_DENIED
from nearmesh.client.channels import Channels, call_error, raise_if_cancelled
from nearmesh.client.experience import Experience
from nearmesh.client.picker import Choice, Route
from nearmesh.client.receipt import Answer, Attempt
from nearmesh.errors import (
    DeadlineExceeded,
    Draining,
    MeshError,
    NotReady,
    Overloaded,
    SequenceLost,
    Unauthenticated,
    Unreachable,
    error_classes,
)

# Of any node that could begin the sequence, one of these is a reason to ask the next.
_ELSEWHERE = (Unreachable, NotReady, Draining, Overloaded, DeadlineExceeded, Unauthenticated)

MakeRequest = Callable[[Mapping[str, Any], Iterable[str]], service_pb2.ModelInferRequest]


class Sequence:
    """One sequence; made by `Mesh.sequence`, used as an async context manager.

    Calls are made one after the other. Leaving the block ends the stream, and with it the node's state.
    """

    def __init__(
        self,
        channels: Channels,
        experience: Experience,
        route: Callable[[], Route],
        plan: Callable[[], list[Choice]],
        make_request: MakeRequest,
        deadline_s: float,
    ) -> None:
        self._channels = channels
        self._experience = experience
        self._route = route
        self._plan = plan
        self._make_request = make_request
        self._deadline_s = deadline_s
        # Triton's sequence ids are above 0.
        self.id = random.getrandbits(62) + 1
        self._stream: Any = None
        self._choice: Choice | None = None
        self._over = ""
        self._turn = asyncio.Lock()

    @property
    def node(self) -> str | None:
        """The node that keeps the state; None before the first answer."""
        return self._choice.node if self._choice else None

    async def __aenter__(self) -> Sequence:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end("it was closed")

    async def infer(
        self,
        inputs: Mapping[str, np.ndarray[Any, Any]],
        *,
        last: bool = False,
        outputs: Iterable[str] = (),
        deadline_s: float | None = None,
    ) -> Answer:
        """The next step. `last` lets the node drop the state with its answer.

        Raises SequenceLost when the node is gone or silent beyond the deadline, InvalidInput and others as
        `Mesh.infer`; after InvalidInput the sequence goes on.
        """
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        async with self._turn:
            if self._over:
                raise SequenceLost(f"sequence {self.id} is over: {self._over}; begin a new one")
            request = self._make_request(inputs, outputs)
            request.parameters["sequence_id"].int64_param = self.id
            request.parameters["sequence_end"].bool_param = last
            request.parameters["sequence_start"].bool_param = self._choice is None
            answer = await (self._go_on(request, limit_s) if self._choice else self._begin(request, limit_s))
            if last:
                self._end("its last call was made")
            return answer

    async def _begin(self, request: service_pb2.ModelInferRequest, limit_s: float) -> Answer:
        """Asks node after node until one has begun the sequence. Raises the last node's error."""
        clock = asyncio.get_running_loop().time
        start_s, failed, size = clock(), list[Attempt](), request.ByteSize()
        choices, denied = self._plan(), 0
        for index, choice in enumerate(choices):
            began_s = clock()
            left_s = start_s + limit_s - began_s
            patience_s = picker.patience_s(choice.endpoint.candidate, size)
            wait_s = min(left_s, patience_s) if index + 1 < len(choices) else left_s
            self._stream = self._channels.stream(choice.endpoint)
            try:
                response = await self._exchange(request, wait_s)
            except MeshError as error:
                self._stream.cancel()
                failed.append(Attempt(choice.node, f"{error.reason}: {error.message}", 1000 * (clock() - began_s)))
                # A caller's short deadline proves nothing against the node.
                silent = isinstance(error, DeadlineExceeded) and wait_s >= patience_s
                if silent or isinstance(error, Unreachable):
                    self._experience.failed(choice.node, now_s=clock())
                denied += isinstance(error, Unauthenticated)
                if index + 1 == len(choices) or denied > MORE_WHEN_DENIED:
                    raise
                if not isinstance(error, _ELSEWHERE) or clock() - start_s >= limit_s:
                    raise
                continue
            self._choice = choice
            return self._answer(response, began_s, start_s, tuple(failed))
        raise Unreachable("no node serves this model at present")

    async def _go_on(self, request: service_pb2.ModelInferRequest, limit_s: float) -> Answer:
        start_s = asyncio.get_running_loop().time()
        try:
            return self._answer(await self._exchange(request, limit_s), start_s, start_s, ())
        except (Unreachable, DeadlineExceeded, Draining, NotReady, SequenceLost) as error:
            self._end(error.message)
            raise SequenceLost(f"sequence {self.id} on node {self.node} was lost: {error.message}") from None

    async def _exchange(self, request: service_pb2.ModelInferRequest, limit_s: float) -> Any:
        """Sends one request and returns its response. Raises what the node, or the connection, says."""
        try:
            async with asyncio.timeout(limit_s):
                await self._stream.write(request)
                message = await self._stream.read()
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {limit_s:.3g} s") from None
        except asyncio.InvalidStateError:
            # The stream had ended before this request.
            raise await self._ended() from None
        except grpc.aio.AioRpcError as error:
            raise_if_cancelled(error)
            raise call_error(error) from None
        if message is grpc.aio.EOF:
            raise await self._ended()
        if message.error_message:
            raise _stream_error(message)
        return message.infer_response

    async def _ended(self) -> MeshError:
        stream = self._stream
        code, details = await stream.code(), await stream.details()
        if code is grpc.StatusCode.OK:
            return SequenceLost("the node ended the stream")
        trailing = await stream.trailing_metadata()
        return call_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details))

    def _answer(self, response: Any, began_s: float, start_s: float, failed: tuple[Attempt, ...]) -> Answer:
        now_s = asyncio.get_running_loop().time()
        assert self._choice is not None
        ms = 1000 * (now_s - began_s)
        attempts = (*failed, Attempt(self._choice.node, "", ms))
        total_ms = 1000 * (now_s - start_s)
        route = self._route()
        return receipt.answer(
            response,
            tensors.decode_response(response),
            self._choice,
            route,
            forecast=self._choice.forecast,
            attempt_ms=ms,
            total_ms=total_ms,
            attempts=attempts,
        )

    def _end(self, why: str) -> None:
        self._over = self._over or why
        if self._stream is not None:
            self._stream.cancel()


def _stream_error(message: Any) -> MeshError:
    """Triton's streams carry errors as text alone; a node of the mesh puts the reason beside it."""
    reason = receipt.parameters(message.infer_response).get(receipt.REASON, "")
    return error_classes().get(str(reason), MeshError)(message.error_message)
