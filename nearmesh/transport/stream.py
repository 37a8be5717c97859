"""One stream of a connection: what flow control lets through of an answer, and when the stream is over.

No sockets, no clock; `link` is the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from nearmesh.transport import frames
from nearmesh.transport.frames import Code
from nearmesh.transport.headers import RequestHeaders


class Receiver(Protocol):
    """Who takes in what comes on a stream."""

    def data(self, part: memoryview) -> None:
        """More of the caller's bytes; the memory is another's as soon as this returns."""
        ...

    def ended(self) -> None:
        """The caller has said everything."""
        ...

    def gone(self) -> None:
        """The caller, or its connection, has left; nothing that is sent will arrive."""
        ...


class Link(Protocol):
    """The connection, as its streams see it."""

    # What the peer has room for, over all streams; and the largest frame it takes.
    window: int
    frame_bytes: int

    def write(self, data: bytes | memoryview) -> None:
        """Sends bytes before the loop's next turn is over."""
        ...

    def hold(self, stream: Stream) -> None:
        """The stream has more to send than the connection has room for."""
        ...

    def closed(self, stream: Stream) -> None:
        """Both sides are done with it."""
        ...

    @property
    def flushed(self) -> asyncio.Future[None] | None:
        """None unless the peer is slow to read; then what tells that it has caught up."""
        ...


class Stream:
    """Belongs to one connection."""

    __slots__ = (
        "_ending",
        "_lent",
        "_link",
        "_opened",
        "_pending",
        "_room",
        "_uncredited",
        "coming",
        "gone",
        "headers",
        "number",
        "receive_window",
        "receiver",
        "remote_open",
        "sent_all",
        "window",
    )

    def __init__(
        self, link: Link, number: int, headers: RequestHeaders, *, window: int, receive_window: int, remote_open: bool
    ) -> None:
        self.number = number
        self.headers = headers
        # What the peer has room for, and what it may still send.
        self.window = window
        self.receive_window = receive_window
        # Of a frame that has begun, what is yet to come: the window has paid for it.
        self.coming = 0
        # The caller may say more.
        self.remote_open = remote_open
        self.receiver: Receiver | None = None
        # The last frame of the answer is on its way.
        self.sent_all = False
        # The caller left before the end, or was told to.
        self.gone = False
        self._link = link
        self._opened = False
        self._pending: deque[memoryview] = deque()
        self._ending: bytes | None = None
        self._room: asyncio.Future[None] | None = None
        self._uncredited = self._lent = 0

    # The answer.

    def respond(self, opening: bytes, message: bytes, ending: bytes) -> None:
        """A whole answer: opening headers, one message, trailers."""
        size = len(message) + frames.PREFIX_BYTES
        link = self._link
        if size > self.window or size > link.window or size > link.frame_bytes or self._opened:
            self.open(opening)
            self.send(message)
            self.finish(ending)
        elif not self._done:
            self.window -= size
            link.window -= size
            link.write(
                b"".join(
                    (
                        frames.head(len(opening), frames.HEADERS, frames.END_HEADERS, self.number),
                        opening,
                        frames.head(size, frames.DATA, 0, self.number),
                        b"\x00",
                        len(message).to_bytes(4, "big"),
                        message,
                        frames.head(len(ending), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.number),
                        ending,
                    )
                )
            )
            self._finished()

    def open(self, block: bytes) -> None:
        """Opening headers; safe to repeat."""
        if not self._opened and not self._done:
            self._opened = True
            self._link.write(frames.frame(frames.HEADERS, frames.END_HEADERS, self.number, block))

    def send(self, message: bytes) -> None:
        """One message, as fast as flow control allows; `room` tells when it has left."""
        if self._done or self._ending is not None:
            return
        self._pending.append(memoryview(b"\x00" + len(message).to_bytes(4, "big")))
        if message:
            self._pending.append(memoryview(message))
        self.pump()

    def finish(self, block: bytes) -> None:
        """Trailers, after every message."""
        if not self._done and self._ending is None:
            self._ending = block
            self.pump()

    def fail(self, opening: bytes, ending: bytes) -> None:
        """The end of an answer that went wrong, in one block where nothing was said before."""
        if self._opened:
            self.finish(ending)
        elif not self._done:
            block = opening + ending
            self._link.write(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.number, block))
            self._finished()

    def pump(self) -> None:
        """Sends what the peer has room for."""
        link, pending = self._link, self._pending
        while pending:
            size = min(len(pending[0]), self.window, link.window, link.frame_bytes)
            if size <= 0:
                if self.window > 0:
                    link.hold(self)
                return
            part = pending[0]
            if size == len(part):
                pending.popleft()
            else:
                pending[0] = part[size:]
            self.window -= size
            link.window -= size
            link.write(frames.head(size, frames.DATA, 0, self.number))
            link.write(part[:size])
        if self._ending is not None:
            flags = frames.END_HEADERS | frames.END_STREAM
            link.write(frames.frame(frames.HEADERS, flags, self.number, self._ending))
            self._finished()
        else:
            self._tell()

    def _tell(self) -> None:
        if self._room and not self._room.done():
            self._room.set_result(None)

    async def room(self) -> None:
        """Until everything sent so far has left: a caller that reads slowly is sent no more than it has room for."""
        while self._pending and not self._done:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        if not self._done:
            # What was written is handed to the socket in the loop's next turn; before that nobody knows if it is taken.
            await asyncio.sleep(0)
        while not self._done and (flushed := self._link.flushed):
            await asyncio.shield(flushed)

    @property
    def _done(self) -> bool:
        return self.sent_all or self.gone

    def _finished(self) -> None:
        self.sent_all = True
        if self.remote_open:
            # The answer is complete; NO_ERROR asks the caller to stop sending (RFC 9113, section 8.1).
            self._link.write(frames.reset(self.number, Code.NO_ERROR))
            self.remote_open = False
        self._tell()
        self._link.closed(self)

    # The request.

    def lend(self, size_bytes: int) -> None:
        """Room beyond the window, at once; what is credited next pays it back."""
        self._lent += size_bytes
        self.receive_window += size_bytes
        self._link.write(frames.window_update(self.number, size_bytes))

    def credit(self, size_bytes: int) -> None:
        """So many bytes were taken in and may be followed by as many more; told to the peer in large steps."""
        paid = min(size_bytes, self._lent)
        self._lent -= paid
        self._uncredited += size_bytes - paid
        if self.remote_open and self._uncredited > self.receive_window // 2:
            self.receive_window += self._uncredited
            self._link.write(frames.window_update(self.number, self._uncredited))
            self._uncredited = 0

    # The end.

    def reset(self, code: Code) -> None:
        """Ends it without an answer, or in the middle of one."""
        if not self._done:
            self._link.write(frames.reset(self.number, code))
            self.leave()
            self._link.closed(self)

    def leave(self) -> None:
        """The caller is gone."""
        self.gone = True
        self.remote_open = False
        self._pending.clear()
        self._tell()
