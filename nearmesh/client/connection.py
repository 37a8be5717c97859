"""A connection to a control plane's public listener, as operators' calls share it, and what its silence means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

import grpc

from nearmesh import addresses
from nearmesh.errors import DeadlineExceeded, MeshError, Unreachable
from nearmesh.rpc import REASON_KEY, from_rpc_error

T = TypeVar("T")

# A healthy control plane answers within milliseconds; this leaves room for a slow disk and a far away operator.
CALL_LIMIT_S = 15.0
# Of several control planes, the next one is tried after so long.
REACH_S = 3.0
# Publishing lasts as long as the upload; only a connection that froze ends it, by keepalive.
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)


class Connection:
    """To the first of the control planes that can be reached; `open` it first, and `close` it.

    Every call raises PermissionDenied or Unauthenticated when the token does not do, Unreachable when the control
    plane cannot be reached, and DeadlineExceeded after `CALL_LIMIT_S`.
    """

    def __init__(self, control_plane: str, ca_pem: bytes, token: str) -> None:
        self._of = (control_plane, ca_pem, token)
        self._addresses = addresses.several(control_plane)
        self._address = self._addresses[0]
        self._credentials = grpc.ssl_channel_credentials(ca_pem)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self.channel: grpc.aio.Channel

    def another(self) -> Connection:
        """One more to the same control planes, not open yet."""
        return Connection(*self._of)

    async def open(self) -> None:
        """Raises Unreachable where there are several and none answers."""
        self.channel = await self._connected()

    async def close(self) -> None:
        await self.channel.close()

    async def _connected(self) -> grpc.aio.Channel:
        for address in self._addresses:
            self._address = address
            channel = grpc.aio.secure_channel(address, self._credentials, _OPTIONS)
            if len(self._addresses) == 1:
                # A call that fails says more than a wait.
                return channel
            try:
                async with asyncio.timeout(REACH_S):
                    await channel.channel_ready()
                return channel
            except TimeoutError:
                await channel.close()
        raise Unreachable(f"no control plane can be reached at any of {', '.join(self._addresses)}")

    async def call(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        """One question, one answer."""
        return await self.translated(method(request, timeout=CALL_LIMIT_S, metadata=self._metadata))

    async def stream(self, method: Callable[..., Any], request: Any) -> AsyncGenerator[Any, None]:
        """Answers for as long as there are any; leaving early ends the call."""
        found = method(request, metadata=self._metadata)
        try:
            while (message := await self.translated(found.read())) is not grpc.aio.EOF:
                yield message
        finally:
            found.cancel()

    async def first(self, method: Callable[..., Any], request: Any) -> Any:
        """A stream's first answer; the rest is not waited for."""
        return await self.translated(_first(method(request, timeout=CALL_LIMIT_S, metadata=self._metadata)))

    async def send(self, method: Callable[[grpc.Channel], Any], parts: Iterable[Any]) -> Any:
        """A stream of requests and one answer, however long it takes; `method` finds it on a channel."""
        # Not on the asyncio channel: that one loses the answer of a server which refuses before the upload has ended
        # (grpc/grpc#36066), and says "Internal error from Core" instead.
        with grpc.secure_channel(self._address, self._credentials, _OPTIONS) as channel:
            return await self.translated(_finished(method(channel).future(parts, metadata=self._metadata)))

    async def translated(self, call: Awaitable[T]) -> T:
        """`call` with the mesh's own errors in place of gRPC's."""
        try:
            return await call
        except grpc.RpcError as error:
            found = from_rpc_error(error)
            trailing: Iterable[Any] = error.trailing_metadata() or ()
            if not any(key == REASON_KEY for key, _ in trailing):
                found = self._silence(found)
            raise found from None

    def _silence(self, error: MeshError) -> MeshError:
        """`error`, or what it means when it is gRPC's own word and not the control plane's."""
        if isinstance(error, Unreachable):
            return Unreachable(f"the control plane at {self._address} cannot be reached: {error.message}")
        if isinstance(error, DeadlineExceeded):
            return DeadlineExceeded(f"the control plane at {self._address} did not answer within {CALL_LIMIT_S:g} s")
        return error


async def _first(stream: Any) -> Any:
    async for message in stream:
        stream.cancel()
        return message
    raise Unreachable("the control plane ended the stream before it said anything")


async def _finished(call: Any) -> Any:
    """The result of a blocking channel's call; leaving early cancels the call."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    call.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    try:
        await done.wait()
        return call.result()
    finally:
        call.cancel()
        # The callback needs the loop, so the loop waits for it.
        await done.wait()
