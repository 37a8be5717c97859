"""One HTTP/2 connection, the server's side: bytes in, streams out (RFC 9113). No sockets, no clock.

Contents of DATA frames go to their stream as they come; every other frame is small and is waited for. What a peer can
make this side keep is bounded: one header block, streams up to a number, and for each what its receiver keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from nearmesh.transport import frames
from nearmesh.transport.frames import Code, ConnectionFailed
from nearmesh.transport.headers import MAX_BLOCK_BYTES, MAX_TOLD_BYTES, HeaderReader
from nearmesh.transport.stream import Receiver, Stream

# With large frames a request of half a megabyte is one step instead of 37.
FRAME_BYTES = 2**20
# The connection as a whole sets no limit: its streams do, by number and by window.
_WINDOW_BYTES, _REFILL_BYTES = 2**30, 2**29
# Sent after the word that this side is leaving; its echo tells that the peer has heard.
_FAREWELL = b"farewell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may do."""

    # Calls at a time; cancelled ones count until their work has ended.
    streams: int
    # What it may send on a stream before somebody takes it in.
    window_bytes: int


class Connection:
    """`receive` takes what came; what is to be sent is in `output`, and `wake` is called when there is some."""

    def __init__(self, accept: Callable[[Stream], Receiver | None], wake: Callable[[], None], limits: Limits) -> None:
        """`accept` answers a stream at once, or says who takes in what comes on it."""
        self._accept = accept
        self._wake = wake
        self._limits = limits
        self._headers = HeaderReader()
        self._streams: dict[int, Stream] = {}
        # Streams whose answers wait for room on the connection, in order.
        self._held: dict[int, Stream] = {}
        self._last_stream = 0
        self._preface_left = len(frames.PREFACE)
        self._introduced = False
        # The header block that is being received: its stream, whether the request ends with it, and its parts.
        self._block: tuple[int, bool, bytearray] | None = None
        # The DATA frame that is being received: for whom (None: nobody), bytes left, padding after them, the end.
        self._data_for: Stream | None = None
        self._data_left = self._data_padding = 0
        self._data_ends = False
        self._receive_window = _WINDOW_BYTES
        self._peer_window = frames.WINDOW_BYTES
        self._leaving = self._left = False
        # See stream.Link.
        self.window = frames.WINDOW_BYTES
        self.frame_bytes = frames.FRAME_BYTES
        self.flushed: asyncio.Future[None] | None = None
        self.output: list[bytes | memoryview] = []
        # Calls whose work has not ended, though their streams may have.
        self.working = 0
        asked = {
            frames.MAX_CONCURRENT_STREAMS: limits.streams,
            frames.INITIAL_WINDOW_SIZE: limits.window_bytes,
            frames.MAX_FRAME_SIZE: FRAME_BYTES,
            frames.MAX_HEADER_LIST_SIZE: MAX_TOLD_BYTES,
        }
        self.write(frames.settings(asked) + frames.window_update(0, _WINDOW_BYTES - frames.WINDOW_BYTES))

    # Out.

    def write(self, data: bytes | memoryview) -> None:
        if not self.output:
            self._wake()
        self.output.append(data)

    def hold(self, stream: Stream) -> None:
        self._held[stream.number] = stream

    def closed(self, stream: Stream) -> None:
        self._streams.pop(stream.number, None)
        self._held.pop(stream.number, None)
        # They refer to each other; apart, both are freed at once and not by a search for cycles.
        stream.receiver = None

    @property
    def introduced(self) -> bool:
        """The peer has shown that it speaks HTTP/2."""
        return self._introduced

    @property
    def finished(self) -> bool:
        """This side has said that it leaves, the peer knows, and nothing is under way."""
        return self._left and not self._streams

    def leave(self) -> None:
        """Takes no new streams once the peer has heard of it; those that cross the word on their way are answered."""
        if not self._leaving:
            self._leaving = True
            self.write(frames.go_away(frames.MOST_WINDOW_BYTES, Code.NO_ERROR))
            self.write(frames.frame(frames.PING, 0, 0, _FAREWELL))

    def fail(self, error: ConnectionFailed) -> None:
        """The last that the peer hears."""
        self.write(frames.go_away(self._last_stream, error.code, error.why))

    def lost(self) -> None:
        """The connection is gone, and every caller with it."""
        streams, self._streams = list(self._streams.values()), {}
        self._held.clear()
        for stream in streams:
            self._gone(stream)

    # In.

    def receive(self, data: memoryview) -> int:
        """How many of the bytes were taken; the rest is to come again, with more. Raises ConnectionFailed."""
        at, end = 0, len(data)
        if self._preface_left:
            at = self._preface(data)
            if self._preface_left:
                return at
        if self._data_left or self._data_padding:
            at = self._more_data(data, at, end)
        while end - at >= frames.HEAD_BYTES:
            upper, lower, kind, flags, number = frames.HEAD.unpack_from(data, at)
            length, number = upper << 8 | lower, number & frames.MOST_WINDOW_BYTES
            if length > FRAME_BYTES:
                raise ConnectionFailed(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes; {FRAME_BYTES} are allowed")
            content = at + frames.HEAD_BYTES
            if kind == frames.DATA and self._introduced and self._block is None:
                if flags & frames.PADDED and content == end:
                    break
                at = self._data(number, flags, length, data, content, end)
                continue
            if length > MAX_BLOCK_BYTES:
                raise ConnectionFailed(Code.ENHANCE_YOUR_CALM, f"{length} bytes in a frame of kind {kind}")
            if content + length > end:
                break
            at = content + length
            self._frame(kind, flags, number, bytes(data[content:at]))
        return at

    def _preface(self, data: memoryview) -> int:
        size = min(self._preface_left, len(data))
        start = len(frames.PREFACE) - self._preface_left
        if data[:size] != frames.PREFACE[start : start + size]:
            raise ConnectionFailed(Code.PROTOCOL_ERROR, "this is not HTTP/2: gRPC clients alone are answered here")
        self._preface_left -= size
        return size

    # DATA.

    def _data(self, number: int, flags: int, length: int, data: memoryview, at: int, end: int) -> int:
        """Begins a frame of contents; where what follows begins."""
        self._receive_window -= length
        if self._receive_window < _REFILL_BYTES:
            self.write(frames.window_update(0, _WINDOW_BYTES - self._receive_window))
            self._receive_window = _WINDOW_BYTES
        stream = self._streams.get(number)
        if stream is None:
            if not number % 2 or (number > self._last_stream and not self._left):
                raise ConnectionFailed(Code.PROTOCOL_ERROR, f"contents for stream {number}, which was not opened")
            # It was answered or cancelled while this was on its way.
        elif not stream.remote_open:
            raise ConnectionFailed(Code.STREAM_CLOSED, f"contents after the end of stream {number}")
        else:
            stream.receive_window -= length
            if stream.receive_window < 0:
                raise ConnectionFailed(Code.FLOW_CONTROL_ERROR, f"more on stream {number} than there is room for")
        ends = bool(flags & frames.END_STREAM)
        if not flags & frames.PADDED and at + length <= end:
            if stream is not None:
                self._deliver(stream, data[at : at + length], ends)
            return at + length
        self._data_padding = 0
        if flags & frames.PADDED:
            self._data_padding = data[at]
            length -= 1 + self._data_padding
            at += 1
            if length < 0:
                raise ConnectionFailed(Code.PROTOCOL_ERROR, "a frame with more padding than it is long")
            if stream is not None:
                stream.credit(1 + self._data_padding)
        self._data_for, self._data_left, self._data_ends = stream, length, ends
        return self._more_data(data, at, end)

    def _more_data(self, data: memoryview, at: int, end: int) -> int:
        """Goes on with a frame of contents; where what follows begins."""
        size = min(self._data_left, end - at)
        self._data_left -= size
        stream, over = self._data_for, not self._data_left
        if stream is not None and (size or over):
            stream.coming = self._data_left
            self._deliver(stream, data[at : at + size], over and self._data_ends)
        at += size
        if over:
            self._data_for = None
            padding = min(self._data_padding, end - at)
            self._data_padding -= padding
            at += padding
        return at

    def _deliver(self, stream: Stream, part: memoryview, ends: bool) -> None:
        receiver = stream.receiver
        if receiver is not None and not stream.gone and not stream.sent_all:
            if part:
                receiver.data(part)
            if ends and stream.remote_open:
                stream.remote_open = False
                receiver.ended()

    # Every other frame.

    def _frame(self, kind: int, flags: int, number: int, contents: bytes) -> None:
        if not self._introduced:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise ConnectionFailed(Code.PROTOCOL_ERROR, "a connection begins with settings")
            self._introduced = True
        if self._block is not None and (kind != frames.CONTINUATION or number != self._block[0]):
            raise ConnectionFailed(Code.PROTOCOL_ERROR, f"a frame of kind {kind} within headers")
        if kind == frames.HEADERS:
            self._begin_block(number, flags, contents)
        elif kind == frames.CONTINUATION:
            self._more_block(flags, contents)
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(number, frames.uint32(contents, "WINDOW_UPDATE") & frames.MOST_WINDOW_BYTES)
        elif kind == frames.RST_STREAM:
            frames.uint32(contents, "RST_STREAM")
            self._reset(number)
        elif kind == frames.SETTINGS:
            self._settings(flags, number, contents)
        elif kind == frames.PING:
            self._ping(flags, number, contents)
        elif kind in (frames.DATA, frames.PUSH_PROMISE):
            raise ConnectionFailed(Code.PROTOCOL_ERROR, f"a frame of kind {kind} where none may be")
        # PRIORITY is advice, GOAWAY of a client changes nothing, and unknown kinds are for others.

    def _begin_block(self, number: int, flags: int, contents: bytes) -> None:
        if not number % 2:
            raise ConnectionFailed(Code.PROTOCOL_ERROR, f"headers for stream {number}, which no client may open")
        start, end = 0, len(contents)
        if flags & frames.PADDED:
            start, end = 1, end - (contents[0] if contents else 1)
        if flags & frames.PRIORITIZED:
            start += 5
        if start > end:
            raise ConnectionFailed(Code.PROTOCOL_ERROR, "headers with more padding than they are long")
        self._block = number, bool(flags & frames.END_STREAM), bytearray(contents[start:end])
        if flags & frames.END_HEADERS:
            self._end_block()

    def _more_block(self, flags: int, contents: bytes) -> None:
        if self._block is None:
            raise ConnectionFailed(Code.PROTOCOL_ERROR, "a continuation of nothing")
        self._block[2].extend(contents)
        # Also a bound on continuations without contents: each one has to bring something.
        if len(self._block[2]) > MAX_BLOCK_BYTES or not (contents or flags & frames.END_HEADERS):
            raise ConnectionFailed(Code.ENHANCE_YOUR_CALM, f"headers of more than {MAX_BLOCK_BYTES} bytes")
        if flags & frames.END_HEADERS:
            self._end_block()

    def _end_block(self) -> None:
        assert self._block is not None
        number, ends, block = self._block
        self._block = None
        headers = self._headers.read(bytes(block))
        if number <= self._last_stream:
            # Trailers, which in gRPC a request does not have; or for a stream that is over.
            stream = self._streams.get(number)
            if stream is not None:
                if not ends or not stream.remote_open:
                    raise ConnectionFailed(Code.PROTOCOL_ERROR, f"headers in the middle of stream {number}")
                self._deliver(stream, memoryview(b""), True)
            return
        if self._left:
            # Above what the peer was told is looked at: it will ask another node.
            return
        self._last_stream = number
        if max(len(self._streams), self.working) >= self._limits.streams:
            self.write(frames.reset(number, Code.REFUSED_STREAM))
            return
        if headers.malformed:
            self.write(frames.reset(number, Code.PROTOCOL_ERROR))
            return
        stream = Stream(
            self,
            number,
            headers,
            window=self._peer_window,
            receive_window=self._limits.window_bytes,
            remote_open=not ends,
        )
        self._streams[number] = stream
        stream.receiver = self._accept(stream)
        if ends and stream.receiver is not None:
            stream.receiver.ended()

    def _reset(self, number: int) -> None:
        if not number or number > self._last_stream:
            if self._left and number % 2:
                return
            raise ConnectionFailed(Code.PROTOCOL_ERROR, f"an end of stream {number}, which was not opened")
        stream = self._streams.get(number)
        if stream is not None:
            self._gone(stream)

    def _gone(self, stream: Stream) -> None:
        receiver = stream.receiver
        stream.leave()
        self.closed(stream)
        if receiver:
            receiver.gone()

    def _window_update(self, number: int, more_bytes: int) -> None:
        if not more_bytes:
            raise ConnectionFailed(Code.PROTOCOL_ERROR, "a window that grows by nothing")
        if not number:
            self.window += more_bytes
            if self.window > frames.MOST_WINDOW_BYTES:
                raise ConnectionFailed(Code.FLOW_CONTROL_ERROR, "a window that is too large")
            # Each either uses up the room, and then waits behind the others, or has nothing more for it.
            while self._held and self.window > 0:
                self._held.pop(next(iter(self._held))).pump()
        elif (grown := self._streams.get(number)) is not None:
            grown.window += more_bytes
            if grown.window > frames.MOST_WINDOW_BYTES:
                raise ConnectionFailed(Code.FLOW_CONTROL_ERROR, f"a window of stream {number} that is too large")
            grown.pump()
        elif number > self._last_stream and not self._left:
            raise ConnectionFailed(Code.PROTOCOL_ERROR, f"room for stream {number}, which was not opened")

    def _settings(self, flags: int, number: int, contents: bytes) -> None:
        if number:
            raise ConnectionFailed(Code.PROTOCOL_ERROR, "settings for a stream")
        if flags & frames.ACK:
            if contents:
                raise ConnectionFailed(Code.FRAME_SIZE_ERROR, "settings that are acknowledged and given at once")
            return
        before, first_window = self._peer_window, self._peer_window
        for setting, value in frames.read_settings(contents):
            if setting == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MOST_WINDOW_BYTES:
                    raise ConnectionFailed(Code.FLOW_CONTROL_ERROR, f"a first window of {value} bytes")
                first_window = value
            elif setting == frames.MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES <= value <= frames.MOST_FRAME_BYTES:
                    raise ConnectionFailed(Code.PROTOCOL_ERROR, f"frames of {value} bytes")
                self.frame_bytes = value
        # Once for all that a frame says: what is asked for a thousand times costs no more.
        if first_window != before:
            self._resize(first_window)
        # Before anything that uses them: the peer counts with its new settings from this word on.
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if first_window > before:
            for stream in list(self._streams.values()):
                stream.pump()

    def _resize(self, first_window: int) -> None:
        """The first window counts for streams that are open already, too."""
        grown, self._peer_window = first_window - self._peer_window, first_window
        for stream in self._streams.values():
            stream.window += grown
            if stream.window > frames.MOST_WINDOW_BYTES:
                raise ConnectionFailed(Code.FLOW_CONTROL_ERROR, f"a window of stream {stream.number} that is too large")

    def _ping(self, flags: int, number: int, contents: bytes) -> None:
        if number:
            raise ConnectionFailed(Code.PROTOCOL_ERROR, f"a ping for stream {number}")
        if len(contents) != 8:
            raise ConnectionFailed(Code.FRAME_SIZE_ERROR, f"a ping of {len(contents)} bytes")
        if not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, contents))
        elif contents == _FAREWELL and self._leaving and not self._left:
            self._left = True
            self.write(frames.go_away(self._last_stream, Code.NO_ERROR))
