"""A connection's place on the event loop: bytes from a socket to `Connection` and back."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from nearmesh.transport.call import Peer
from nearmesh.transport.connection import Connection, Limits
from nearmesh.transport.frames import ConnectionFailed
from nearmesh.transport.stream import Receiver, Stream

log = logging.getLogger(__name__)

# Read at a time, by all connections of a server in turn: what is read is taken in at once.
READ_BYTES = 256 * 1024
# From so much on that a peer has not read, streams wait with more; and from so much on, it is not read from either.
_UNSENT_BYTES, _MOST_UNSENT_BYTES = 4 * 1024 * 1024, 16 * 1024 * 1024
# In which a new connection must show that it speaks HTTP/2.
INTRODUCTION_S = 20.0
# A machine that vanished is noticed after idle + count x interval seconds; with an answer on its way to it, or when it
# takes nothing of one, after so many milliseconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}


class Http2Protocol(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(
        self,
        accept: Callable[[Stream, Http2Protocol], Receiver | None],
        made: Callable[[Http2Protocol], None],
        lost: Callable[[Http2Protocol], None],
        limits: Limits,
        buffer: memoryview,
    ) -> None:
        self._made = made
        self._lost = lost
        self._limits = limits
        self._buffer = buffer
        # What was read of a frame that is not complete; short, since contents never wait.
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._closing = False
        self._accept = accept
        self.peer = Peer("unknown", {})
        self.connection: Connection

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        found = transport.get_extra_info("socket")
        if found is not None and found.family != socket.AF_UNIX:
            _keep_alive(found)
        certificate = _certificate(transport)
        if certificate and x509.load_der_x509_certificate(certificate).not_valid_after_utc < datetime.now(UTC):
            # A session that is taken up again skips the handshake's own look at it.
            log.info("closed: a certificate that has expired")
            transport.abort()
        self.peer = _peer(transport, certificate)
        self.connection = Connection(lambda stream: self._accept(stream, self), self._wake, self._limits)
        self._timer = self._loop.call_later(INTRODUCTION_S, self._too_slow)
        self._made(self)

    def _too_slow(self) -> None:
        if not self.connection.introduced:
            log.info("closed peer=%s: it did not speak HTTP/2 within %s s", self.peer.address, INTRODUCTION_S)
            self._transport.abort()

    # In.

    def get_buffer(self, sizehint: int) -> memoryview:
        kept = len(self._rest)
        if kept:
            self._buffer[:kept] = self._rest
        return self._buffer[kept:]

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        end = len(self._rest) + nbytes
        try:
            at = self.connection.receive(self._buffer[:end])
        except ConnectionFailed as error:
            log.info("closed peer=%s: %s (%s)", self.peer.address, error.why, error.code.name)
            self.connection.fail(error)
            self.close()
            return
        self._rest = bytes(self._buffer[at:end]) if at < end else b""
        if self.connection.finished:
            self.close()

    def eof_received(self) -> bool:
        return False

    # Out.

    def _wake(self) -> None:
        """What is written in one turn of the loop goes out as one piece."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        output = self.connection.output
        if output and not self._transport.is_closing():
            self._transport.write(b"".join(output) if len(output) > 1 else output[0])
            if self.connection.flushed and self._transport.get_write_buffer_size() > _MOST_UNSENT_BYTES:
                self._transport.pause_reading()
        output.clear()
        if self.connection.finished:
            self.close()

    def pause_writing(self) -> None:
        self.connection.flushed = self._loop.create_future()

    def resume_writing(self) -> None:
        self._caught_up()
        if not self._transport.is_closing():
            # Safe if it was not paused.
            self._transport.resume_reading()

    def _caught_up(self) -> None:
        flushed, self.connection.flushed = self.connection.flushed, None
        if flushed and not flushed.done():
            flushed.set_result(None)

    # The end.

    def leave(self) -> None:
        """Closes once the peer knows and everything under way is answered."""
        self.connection.leave()

    @property
    def unsent(self) -> bool:
        """Some of what was written waits for the peer to take it."""
        return bool(self._transport.get_write_buffer_size())

    def close(self) -> None:
        """With what was written before."""
        if not self._closing:
            self._closing = True
            self._flush()
            if not self._transport.is_closing():
                # Closed a second time, a TLS transport of asyncio forgets its connection and cannot be aborted.
                self._transport.close()

    def abort(self) -> None:
        """At once: the peer does not take what was written to it."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._timer:
            self._timer.cancel()
        self._caught_up()
        self.connection.lost()
        self._lost(self)


def _certificate(transport: Any) -> bytes | None:
    """What the peer showed, in DER."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return tls.getpeercert(binary_form=True) if tls else None


def _peer(transport: Any, certificate: bytes | None) -> Peer:
    name = transport.get_extra_info("peername")
    # One on this machine, through a socket in the file system, has none.
    host, port, *more = name if isinstance(name, tuple) else ("unknown", 0)
    address = f"ipv6:[{host}]:{port}" if more else f"ipv4:{host}:{port}"
    shown = {"x509_pem_cert": (ssl.DER_cert_to_PEM_cert(certificate).encode(),)} if certificate else {}
    return Peer(address, shown)


def _keep_alive(found: socket.socket) -> None:
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        # Not on every system by these names.
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
