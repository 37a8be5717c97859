"""The agent's way to the process that keeps its vectors: calls by name, messages as the bytes that came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc

from nearmesh.errors import MeshError, NotReady
from nearmesh.rpc import REASON_KEY, from_rpc_error
from nearmesh_agent.vectors.namespaces import KEY

Message = bytes | memoryview

AWAY = "the vectors of this node are being opened; ask again in a moment, or another node of the site"
# A process that is started again answers within this, mostly.
_AGAIN_MS = 500
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),
    # Another process behind the same path is another connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
)


class VectorChannel:
    """To one socket; `close` when done."""

    def __init__(self, socket: str) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._methods: dict[tuple[str, str], Any] = {}

    async def call(
        self, method: str, message: Message, *, reach: str, timeout_s: float | None, more: tuple[Any, ...] = ()
    ) -> bytes:
        """`method` is "/package.Service/Method"; `reach` the caller's namespace, or any. Raises its error."""
        found = self._method("unary_unary", method)
        try:
            answer: bytes = await found(bytes(message), metadata=((KEY, reach), *more), timeout=timeout_s)
            return answer
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        except asyncio.CancelledError:
            _check_cancelled()
            raise NotReady(AWAY, retry_after_ms=_AGAIN_MS) from None

    async def stream(
        self, method: str, message: Message, *, reach: str, timeout_s: float | None, more: tuple[Any, ...] = ()
    ) -> AsyncGenerator[bytes, None]:
        """One request, and answers for as long as there are any; leaving early ends the call."""
        call = self._method("unary_stream", method)(bytes(message), metadata=((KEY, reach), *more), timeout=timeout_s)
        async for answer in _read(call):
            yield answer

    async def exchange(
        self, method: str, messages: AsyncIterator[Message], *, reach: str, more: tuple[Any, ...] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Requests and answers, as they come."""

        async def sent() -> AsyncIterator[bytes]:
            async for message in messages:
                yield bytes(message)

        call = self._method("stream_stream", method)(sent(), metadata=((KEY, reach), *more))
        async for answer in _read(call):
            yield answer

    async def ready(self, timeout_s: float) -> bool:
        """Whether somebody answers within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError:
            return False
        return True

    def _method(self, kind: str, name: str) -> Any:
        key = (kind, name)
        if key not in self._methods:
            self._methods[key] = getattr(self._channel, kind)(name)
        return self._methods[key]

    async def close(self) -> None:
        await self._channel.close()


async def _read(call: Any) -> AsyncGenerator[bytes, None]:
    try:
        async for answer in call:
            yield answer
    except grpc.aio.AioRpcError as error:
        raise _translated(error) from None
    except asyncio.CancelledError:
        _check_cancelled()
        raise NotReady(AWAY, retry_after_ms=_AGAIN_MS) from None
    finally:
        call.cancel()


def _check_cancelled() -> None:
    """Raises CancelledError if it was the present task that was cancelled.

    The library says so as well to whoever waits when the channel is closed, as it is when the process ends.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise asyncio.CancelledError


def _translated(error: grpc.aio.AioRpcError) -> MeshError:
    """The process's own error; where it said nothing, what its silence means."""
    if error.code() is grpc.StatusCode.CANCELLED:
        _check_cancelled()
    if any(key == REASON_KEY for key, _ in error.trailing_metadata() or ()):
        return from_rpc_error(error)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        return NotReady(AWAY, retry_after_ms=_AGAIN_MS)
    return from_rpc_error(error)
