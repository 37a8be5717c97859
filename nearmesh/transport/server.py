"""The gRPC server: listeners, the table of methods, connections and calls, and an orderly end.

Generated code adds servicers to it as it adds them to a `grpc.aio.Server`. A server has two listeners, public (TLS,
bearer token) and mesh (a certificate is asked), which lead to the same servicers: what a caller may do follows from who
it is (`nearmesh.rpc`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from nearmesh.errors import MeshError, TooLarge, Unsupported
from nearmesh.rpc import Gatekeeper, failure
from nearmesh.tls import Credentials
from nearmesh.transport import headers
from nearmesh.transport.call import Call, Method
from nearmesh.transport.connection import Limits
from nearmesh.transport.listener import BACKLOG, bound, bound_unix, check_loopback, server_context, shown
from nearmesh.transport.messages import ENCODINGS
from nearmesh.transport.protocol import READ_BYTES, Http2Protocol
from nearmesh.transport.stream import Receiver, Stream

log = logging.getLogger(__name__)

# Calls at a time on one connection; more come on another. Without a limit, one caller could take all memory.
MAX_STREAMS = 1000
# A whole request may be on its way at once: with a small window, one of several megabytes would need many round trips.
STREAM_WINDOW_BYTES = 32 * 1024 * 1024
_LIMITS = Limits(streams=MAX_STREAMS, window_bytes=STREAM_WINDOW_BYTES)
# For a TLS handshake; who takes longer is not there any more, or means ill.
_HANDSHAKE_S = 20.0
# In which peers hear that the server leaves, and take what was written to them.
_FAREWELL_S = 1.0


@dataclass(slots=True)
class _Listener:
    socket: socket.socket
    tls: ssl.SSLContext | None
    server: asyncio.Server | None = None


class Server:
    """Belongs to one event loop. Every call passes the gatekeeper."""

    def __init__(self, gatekeeper: Gatekeeper, max_message_bytes: int, *, metadata: headers.Metadata = ()) -> None:
        """`metadata` goes out before every answer."""
        self.gatekeeper = gatekeeper
        self.max_message_bytes = max_message_bytes
        self.opening = headers.opening(metadata)
        self._methods: dict[str, Method] = {}
        self._listeners: list[_Listener] = []
        self._connections: set[Http2Protocol] = set()
        self._calls: dict[Call, Http2Protocol] = {}
        # Set while there is no call, and while there is no connection.
        self._quiet, self._deserted = asyncio.Event(), asyncio.Event()
        self._quiet.set()
        self._deserted.set()
        # Peers are told that the server leaves; it has left, and nobody comes any more.
        self._leaving = self._left = False
        self._buffer = memoryview(bytearray(READ_BYTES))

    # Methods.

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """For generated code."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            self._methods[path] = _method(path, handler)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """For generated code, which names the same methods one by one as well."""

    def check_heads(
        self, path: str, check: Callable[[memoryview, float | None], None], contents_at: Callable[[memoryview], int]
    ) -> None:
        """Has large messages to a method judged and laid out by their beginning; see `Method`."""
        self._methods[path] = replace(self._methods[path], check_head=check, contents_at=contents_at)

    # Listeners.

    def listen(self, address: str, current: Callable[[], Credentials], *, mesh: bool) -> str:
        """Adds a listener with TLS and returns its host:port. Raises ConfigError."""
        return self._listen(address, server_context(current, mesh=mesh))

    def listen_plain(self, address: str) -> str:
        """Adds a listener without TLS, for loopback alone. Raises ConfigError."""
        check_loopback(address)
        return self._listen(address, None)

    def listen_unix(self, path: Path) -> None:
        """Adds a socket in the file system, for processes of this user alone. Raises ConfigError."""
        self._listeners.append(_Listener(bound_unix(path), None))

    def _listen(self, address: str, tls: ssl.SSLContext | None) -> str:
        found = bound(address)
        self._listeners.append(_Listener(found, tls))
        return shown(address, found)

    async def start(self) -> None:
        """From here on calls are answered."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            if listener.socket.family == socket.AF_UNIX:
                listener.server = await loop.create_unix_server(self._connected, sock=listener.socket, backlog=BACKLOG)
                continue
            listener.server = await loop.create_server(
                self._connected,
                sock=listener.socket,
                ssl=listener.tls,
                backlog=BACKLOG,
                ssl_handshake_timeout=_HANDSHAKE_S if listener.tls else None,
            )

    def _connected(self) -> Http2Protocol:
        return Http2Protocol(self._accept, self._made, self._lost, _LIMITS, self._buffer)

    def _made(self, protocol: Http2Protocol) -> None:
        # Its handshake may have begun before the listener was closed.
        if self._left:
            protocol.abort()
            return
        self._connections.add(protocol)
        self._deserted.clear()
        if self._leaving:
            protocol.leave()

    def _lost(self, protocol: Http2Protocol) -> None:
        self._connections.discard(protocol)
        if not self._connections:
            self._deserted.set()

    # Calls.

    def _accept(self, stream: Stream, protocol: Http2Protocol) -> Receiver | None:
        asked = stream.headers
        if asked.http_status == headers.TOO_LARGE:
            self._refuse(stream, TooLarge(f"headers of more than {headers.MAX_TOLD_BYTES} bytes, which are allowed"))
            return None
        if asked.http_status != 200:
            stream.fail(headers.plain_http(asked.http_status), b"")
            return None
        method = self._methods.get(asked.path)
        if method is None:
            self._refuse(stream, Unsupported(f"{asked.path[:200]} is not offered here"))
            return None
        if asked.encoding not in ENCODINGS:
            known = ", ".join(ENCODINGS)
            self._refuse(stream, Unsupported(f"encoding {asked.encoding[:50]!r} is none of {known}"))
            return None
        call = Call(self, stream, method, protocol.peer)
        self._calls[call] = protocol
        self._quiet.clear()
        protocol.connection.working += 1
        return call if call.start() else None

    def _refuse(self, stream: Stream, why: MeshError) -> None:
        told = failure(why, stream.headers.path)
        block = headers.accepts(ENCODINGS) + headers.ending(told.code, told.message, told.metadata)
        stream.fail(self.opening, block)

    def over(self, call: Call) -> None:
        protocol = self._calls.pop(call)
        protocol.connection.working -= 1
        if not self._calls:
            self._quiet.set()

    # The end.

    async def stop(self, grace_s: float | None) -> None:
        """Takes no new connections; what is under way has `grace_s` to end. Safe to repeat, and before `start`.

        Peers are told first, and calls that cross the word on their way are answered as well.
        """
        for listener in self._listeners:
            if listener.server:
                listener.server.close()
            listener.socket.close()
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + (grace_s or 0)
        self._leaving = True
        for protocol in self._connections:
            protocol.leave()
        # What crosses the word on its way has the rest of the time, too.
        await _within(self._deserted, min(_FAREWELL_S, grace_s or 0))
        await _within(self._quiet, until_s - now_s())
        self._left = True
        for call in list(self._calls):
            call.abandon()
        for protocol in list(self._connections):
            protocol.close()
        unsent = any(protocol.unsent for protocol in self._connections)
        if not await _within(self._deserted, max(_FAREWELL_S, until_s - now_s() if unsent else 0)):
            for protocol in list(self._connections):
                protocol.abort()
            await self._deserted.wait()
        if not await _within(self._quiet, _FAREWELL_S):
            log.error("%d calls do not end; the server is stopped without them", len(self._calls))


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether it happened in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


def _method(path: str, handler: Any) -> Method:
    """From what generated code says of it."""
    return Method(
        path=path,
        behavior=handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream,
        streams_in=handler.request_streaming,
        streams_out=handler.response_streaming,
        parse=handler.request_deserializer,
        serialize=handler.response_serializer,
    )
