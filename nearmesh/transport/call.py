"""One call: taken in, run by its servicer, answered. Also what the servicer sees of it.

A caller is admitted by its headers, before anything else of it is read; whom a method refuses by the beginning of a
large message is answered then, and the rest of the message is not waited for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from nearmesh import rpc
from nearmesh.errors import DeadlineExceeded, Draining, InvalidInput, Unreachable
from nearmesh.rpc import Gatekeeper
from nearmesh.transport import headers
from nearmesh.transport.frames import PREFIX_BYTES, Code
from nearmesh.transport.headers import Value
from nearmesh.transport.messages import Message, Messages, Packed
from nearmesh.transport.stream import Stream

# Servicers keep to the deadline themselves; who does not is cancelled so much later.
_LATE_S = 0.02
# Of a large message, what is looked at before the rest has come; only names and shapes stand before its bulk.
_ENOUGH_BYTES = 4 * 1024
# Of a message from somebody who showed nothing; what is open to everyone asks for little.
_STRANGER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of a service."""

    path: str
    behavior: Callable[[Any, Any], Any]
    streams_in: bool = False
    streams_out: bool = False
    parse: Callable[[Any], Any]
    serialize: Callable[[Any], bytes]
    # Judges a large message by its beginning, with the seconds that its caller has left; raises MeshError to refuse it.
    check_head: Callable[[memoryview, float | None], None] | None = None
    # Where in a large message its bulk begins, from its first bytes; see `Messages`.
    contents_at: Callable[[memoryview], int] | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection."""

    address: str
    # As gRPC has it: its certificate under "x509_pem_cert", if it showed one.
    auth: Mapping[str, Iterable[bytes]]


class Host(Protocol):
    """The server, as its calls see it."""

    gatekeeper: Gatekeeper
    max_message_bytes: int
    # The block of headers that every answer begins with.
    opening: bytes

    def over(self, call: Call) -> None:
        """The call's work has ended."""
        ...


class Call:
    """Belongs to one stream. For its servicer, the part of `grpc.aio.ServicerContext` that servicers here use."""

    def __init__(self, host: Host, stream: Stream, method: Method, peer: Peer) -> None:
        """`start` comes next."""
        self._host = host
        self._stream = stream
        self._method = method
        self._peer = peer
        self._who = rpc.NOBODY
        self._loop = asyncio.get_running_loop()
        self._messages = Messages(host.max_message_bytes, stream.headers.encoding, method.contents_at)
        # Requests that came and were not taken yet; whether there will be more; who waits for them.
        self._inbox: deque[Message] | list[Message] = deque() if method.streams_in else []
        self._said_all = False
        self._news: asyncio.Future[None] | None = None
        self._looked = method.check_head is None
        self._task: asyncio.Task[None] | None = None
        self._trailing: tuple[Value, ...] = ()
        self._deadline_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._begun = self._stopped = self._ended = False

    def start(self) -> bool:
        """Admits the caller; False if it was refused and told so."""
        timeout_s = self._stream.headers.timeout_s
        if timeout_s is not None:
            self._deadline_s = self._loop.time() + timeout_s
            self._timer = self._loop.call_later(timeout_s + _LATE_S, self._expired)
        try:
            self._who = self._host.gatekeeper.admit(self, self._method.path)
            if self._who is rpc.NOBODY and not self._host.gatekeeper.open_door:
                self._messages = Messages(_STRANGER_BYTES, self._stream.headers.encoding)
        except Exception as error:
            self._fail(error)
            self._over()
            return False
        if self._method.streams_in:
            self._task = self._loop.create_task(self._run())
        return True

    # What comes on the stream.

    def data(self, part: memoryview) -> None:
        try:
            self._inbox.extend(self._messages.feed(part))
            if len(self._inbox) > 1 and not self._method.streams_in:
                raise InvalidInput(f"more than one message came; {self._method.path} takes one")
            missing = self._messages.missing_bytes
            if missing:
                if not self._looked:
                    self._look()
                short = missing - self._stream.coming - self._stream.receive_window
                if short > 0:
                    # What is needed for it to become complete: a message may be larger than the window.
                    self._stream.lend(short)
        except Exception as error:
            self._give_up(error)
        else:
            self._tell()

    def _look(self) -> None:
        begun = self._messages.begun()
        if len(begun) >= _ENOUGH_BYTES and self._method.check_head:
            self._looked = True
            self._method.check_head(begun, self.time_remaining())

    def ended(self) -> None:
        self._said_all = True
        if self._messages.partial:
            self._give_up(InvalidInput("the request ends in the middle of a message"))
        elif self._method.streams_in:
            self._tell()
        elif len(self._inbox) != 1:
            self._give_up(InvalidInput(f"{len(self._inbox)} messages came; {self._method.path} takes one"))
        elif self._task is None and not self._ended:
            self._task = self._loop.create_task(self._run())

    def gone(self) -> None:
        self._stop()

    def _tell(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)

    # Its end before its time.

    def _expired(self) -> None:
        self._give_up(DeadlineExceeded("the deadline passed before there was an answer"))

    def abandon(self) -> None:
        """The server stops and does not wait any longer."""
        self._give_up(Draining("the server stopped before there was an answer; another one may serve"))

    def _give_up(self, error: Exception) -> None:
        self._fail(error)
        # Only where an answer has begun and waits for room; its status would have to wait behind it.
        self._stream.reset(Code.CANCEL)
        self._stop()

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._task and not self._stopped:
            # Once: a second time would reach the servicer while it tidies up after the first.
            self._task.cancel()
        self._stopped = True
        if not self._begun:
            # A task cancelled before its first step runs nothing of `_run`, its `finally` included.
            self._over()

    def _over(self) -> None:
        if not self._ended:
            self._ended = True
            if self._timer:
                self._timer.cancel()
            self._inbox.clear()
            self._host.over(self)

    def _fail(self, error: Exception) -> None:
        failure = rpc.failure(error, self._method.path)
        block = headers.ending(failure.code, failure.message, failure.metadata)
        self._stream.fail(self._host.opening, block)

    # Its work.

    async def _run(self) -> None:
        self._begun = True
        try:
            rpc.answering(self._who)
            if self._method.streams_in or self._method.streams_out:
                await self._exchange()
            else:
                request = await self._parsed(self._inbox.pop())
                response = await self._method.behavior(request, self)
                self._respond(response)
            # Until the caller has it the call is under way: its deadline counts, and a server that stops waits.
            await self._stream.room()
        except asyncio.CancelledError:
            # Its own work's, and not the caller's or the server's: those have ended the stream by now.
            self._fail(Unreachable("the work on the request was given up; another node may serve"))
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._over()

    async def _exchange(self) -> None:
        request = self._requests() if self._method.streams_in else await self._parsed(self._inbox.pop())
        responses = self._method.behavior(request, self)
        if not self._method.streams_out:
            self._respond(await responses)
            return
        async with aclosing(responses):
            async for response in responses:
                self._still()
                await self._write(response)
        self._stream.open(self._host.opening)
        self._stream.finish(headers.fine(self._trailing))

    async def _write(self, response: Any) -> None:
        """One more response; returns when the caller has room for another one."""
        self._stream.open(self._host.opening)
        self._stream.send(self._serialized(response))
        await self._stream.room()

    def _respond(self, response: Any) -> None:
        self._stream.respond(self._host.opening, self._serialized(response), headers.fine(self._trailing))

    def _serialized(self, response: Any) -> bytes:
        """What goes to many callers, or is made of pieces, a servicer may give as bytes."""
        return response if isinstance(response, bytes) else self._method.serialize(response)

    async def _requests(self) -> AsyncGenerator[Any, None]:
        """What the caller says; no more is taken from it than is asked for here."""
        assert isinstance(self._inbox, deque)
        while True:
            while self._inbox:
                message = self._inbox.popleft()
                self._stream.credit(len(message) + PREFIX_BYTES)
                self._still()
                yield await self._parsed(message)
            if self._said_all:
                return
            self._news = self._loop.create_future()
            await self._news

    def _still(self) -> None:
        """Raises PermissionDenied once the caller of an open stream has been removed."""
        self._host.gatekeeper.check(self._who, self._method.path)

    async def _parsed(self, message: Message) -> Any:
        if isinstance(message, Packed):
            # A thousand times as large, perhaps: the loop does not wait for it.
            message = await asyncio.to_thread(self._messages.opened, message)
        try:
            return self._method.parse(message)
        except DecodeError as error:
            raise rpc.unreadable(len(message), error) from None

    # What the servicer may ask of it and tell it.

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None if it has none."""
        return None if self._deadline_s is None else self._deadline_s - self._loop.time()

    def invocation_metadata(self) -> tuple[Value, ...]:
        """What the caller sent beside its request."""
        return self._stream.headers.metadata

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """The caller's certificate, if it showed one."""
        return self._peer.auth

    def peer(self) -> str:
        """The caller's address."""
        return self._peer.address

    def set_trailing_metadata(self, metadata: tuple[Value, ...]) -> None:
        """What goes out behind an answer."""
        self._trailing = metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """For generated code, which says so of a method that a servicer lacks, and then raises; that is what counts."""

    def set_details(self, details: str) -> None:
        """As `set_code`."""
