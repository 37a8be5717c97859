"""A gRPC client that costs as little as it can: HTTP/2 frames on an event loop, streams and whole messages, no more.

It trusts its server: what must not be the bottleneck of a measurement checks nothing that it does not need.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hpack

from nearmesh.transport import frames

# The server is never to wait for room.
_WINDOW_BYTES = 2**30


class BareConnection(asyncio.Protocol):
    """`message(stream, bytes)` is called for each message, `ended(stream, why)` when a stream is over."""

    def __init__(self, message: Callable[[int, bytes], None], ended: Callable[[int, str], None]) -> None:
        self._message = message
        self._ended = ended
        self._transport: Any = None
        self._received = b""
        self._contents: dict[int, bytearray] = {}
        self._next = 1
        self._written: list[bytes] = []
        self._headers = hpack.Decoder()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        asked = {frames.INITIAL_WINDOW_SIZE: _WINDOW_BYTES, frames.MAX_FRAME_SIZE: 2**20}
        self._write(frames.PREFACE + frames.settings(asked) + frames.window_update(0, _WINDOW_BYTES))

    def open(self, path: str, metadata: Sequence[tuple[str, str]] = ()) -> int:
        """Begins a call; its number."""
        number, self._next = self._next, self._next + 2
        pairs = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "localhost")]
        pairs += [("te", "trailers"), ("content-type", "application/grpc"), *metadata]
        # Without the table, so that each block stands for itself.
        block = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*pair) for pair in pairs])
        self._contents[number] = bytearray()
        self._write(frames.frame(frames.HEADERS, frames.END_HEADERS, number, block))
        return number

    def send(self, number: int, message: bytes) -> None:
        """One message of a call."""
        self._write(frames.head(len(message) + frames.PREFIX_BYTES, frames.DATA, 0, number))
        self._write(b"\0" + len(message).to_bytes(4, "big") + message)

    def _write(self, data: bytes) -> None:
        """What is written in one turn of the loop goes out as one piece."""
        if not self._written:
            asyncio.get_running_loop().call_soon(self._flush)
        self._written.append(data)

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"".join(self._written))
        self._written.clear()

    def close(self) -> None:
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for number in list(self._contents):
            self._over(number, f"the connection is lost: {exc}")

    def data_received(self, data: bytes) -> None:
        data, at = self._received + data, 0
        while len(data) - at >= frames.HEAD_BYTES:
            upper, lower, kind, flags, number = frames.HEAD.unpack_from(data, at)
            end = at + frames.HEAD_BYTES + (upper << 8 | lower)
            if end > len(data):
                break
            self._frame(kind, flags, number, data[at + frames.HEAD_BYTES : end])
            at = end
        self._received = data[at:]

    def _frame(self, kind: int, flags: int, number: int, contents: bytes) -> None:
        if kind == frames.DATA and number in self._contents:
            self._data(number, contents)
        elif kind == frames.HEADERS:
            told = dict(self._headers.decode(contents))
            if flags & frames.END_STREAM:
                self._over(number, f"status {told.get('grpc-status')}: {told.get('grpc-message', '')}")
        elif kind == frames.RST_STREAM:
            self._over(number, f"reset {int.from_bytes(contents, 'big')}")
        elif kind in (frames.SETTINGS, frames.PING) and not flags & frames.ACK:
            self._write(frames.frame(kind, frames.ACK, 0, contents if kind == frames.PING else b""))

    def _data(self, number: int, part: bytes) -> None:
        contents = self._contents[number]
        contents += part
        while len(contents) >= frames.PREFIX_BYTES:
            end = frames.PREFIX_BYTES + int.from_bytes(contents[1 : frames.PREFIX_BYTES], "big")
            if len(contents) < end:
                return
            message = bytes(contents[frames.PREFIX_BYTES : end])
            del contents[:end]
            self._message(number, message)

    def _over(self, number: int, why: str) -> None:
        if self._contents.pop(number, None) is not None:
            self._ended(number, why)


async def connected(
    address: str, tls: ssl.SSLContext, message: Callable[[int, bytes], None], ended: Callable[[int, str], None]
) -> BareConnection:
    """A connection to a control plane on this machine."""
    host, _, port = address.rpartition(":")
    _, found = await asyncio.get_running_loop().create_connection(
        lambda: BareConnection(message, ended), host, int(port), ssl=tls, server_hostname=host
    )
    return found


async def standard_input() -> asyncio.StreamReader:
    """What the parent says; read on the loop, since a thread that waits for it would keep the process alive."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def client_tls(ca_file: str, pair_file: str | None = None) -> ssl.SSLContext:
    """Knows the mesh's CA, and shows a certificate if there is one."""
    tls = ssl.create_default_context(cafile=ca_file)
    tls.set_alpn_protocols(["h2"])
    if pair_file:
        tls.load_cert_chain(pair_file)
    return tls
