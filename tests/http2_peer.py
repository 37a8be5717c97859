"""The other end of a connection, by the library h2: in memory, with the agent's side right beside it."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack
from h2.settings import SettingCodes, Settings

from nearmesh.transport import frames
from nearmesh.transport.connection import Connection, Limits
from nearmesh.transport.stream import Stream

OPENING = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Service/Method"),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
# What begins every connection of a client: the preface and settings that ask for nothing.
HELLO = frames.PREFACE + frames.settings({})


def block(*pairs: tuple[str, str | bytes], opening: Any = OPENING) -> bytes:
    """A request's headers that leave the table as it is."""
    return bytes(hpack.Encoder().encode([(name, value, True) for name, value in [*opening, *pairs]]))


def headers(number: int, *, flags: int = frames.END_HEADERS, contents: bytes | None = None) -> bytes:
    """The frame that opens a stream."""
    return frames.frame(frames.HEADERS, flags, number, block() if contents is None else contents)


def data(number: int, contents: bytes = b"", *, flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, number, contents)


def message(contents: bytes, *, compressed: int = 0) -> bytes:
    """As gRPC has it in the contents of a stream."""
    return bytes((compressed,)) + len(contents).to_bytes(4, "big") + contents


class Heard:
    """What came on one stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.body = bytearray()
        self.news: list[str] = []
        # So much more may come as came; a test turns it off to see a window fill.
        self.credits = True

    def data(self, part: memoryview) -> None:
        assert part, "nothing is no news"
        assert not self.news, "nothing comes after the end"
        self.body += part
        if self.credits:
            self.stream.credit(len(part))

    def ended(self) -> None:
        self.news.append("ended")

    def gone(self) -> None:
        self.news.append("gone")


class Node:
    """The agent's side of a connection, fed as a socket would feed it."""

    def __init__(self, *, streams: int = 100, window_bytes: int = 2**20, credits: bool = True) -> None:
        self.heard: dict[int, Heard] = {}
        self.credits = credits
        self.woken = 0
        self._rest = b""
        self.connection = Connection(self._accept, self._wake, Limits(streams=streams, window_bytes=window_bytes))

    def _accept(self, stream: Stream) -> Heard:
        assert stream.number not in self.heard
        found = self.heard[stream.number] = Heard(stream)
        found.credits = self.credits
        return found

    def _wake(self) -> None:
        self.woken += 1

    def give(self, came: bytes) -> None:
        """Bytes from the peer. Raises ConnectionFailed."""
        memory = bytearray(self._rest + came)
        taken = self.connection.receive(memoryview(memory))
        self._rest = bytes(memory[taken:])
        # The next connection reads into the same memory.
        memory[:] = b"\xee" * len(memory)

    def take(self) -> bytes:
        """What the peer is to be sent."""
        found = b"".join(self.connection.output)
        self.connection.output.clear()
        return found

    @property
    def kept_bytes(self) -> int:
        """What waits for the rest of its frame."""
        return len(self._rest)


class Reader:
    """What a client of h2's has heard so far."""

    events: list[h2.events.Event]

    def of(self, kind: type[Any], number: int | None = None) -> list[Any]:
        """The events of a kind so far, of one stream if it is named."""
        found = [event for event in self.events if isinstance(event, kind)]
        return found if number is None else [event for event in found if event.stream_id == number]

    def body(self, number: int) -> bytes:
        """What came of an answer so far."""
        return b"".join(event.data for event in self.of(h2.events.DataReceived, number))

    def trailers(self, number: int) -> dict[str, str] | None:
        """What an answer ended with; None while it goes on."""
        for kind in (h2.events.TrailersReceived, h2.events.ResponseReceived):
            for event in self.of(kind, number):
                if event.stream_ended:
                    return dict(event.headers)
        return None


class Pair(Reader):
    """A client of h2 and a node, with nothing but memory between them."""

    def __init__(self, *, settings: dict[int, int] | None = None, step: int = 0, **limits: Any) -> None:
        """`settings` are the client's; with `step` the node gets so many bytes at a time."""
        self.node = Node(**limits)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._step = step
        asked = {SettingCodes(key): value for key, value in (settings or {}).items()}
        self.client.local_settings = Settings(client=True, initial_values=asked)
        # Otherwise h2 learns of it when the other side has agreed.
        self.client.max_inbound_frame_size = self.client.local_settings.max_frame_size
        self.client.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.exchange()

    def exchange(self) -> None:
        """Until neither side has more to say."""
        while True:
            out, back = self.client.data_to_send(), self.node.take()
            if not out and not back:
                return
            step = self._step or len(out) or 1
            for at in range(0, len(out), step):
                self.node.give(out[at : at + step])
            self.events += self.client.receive_data(back)

    def ask(self, contents: bytes = b"", *, end: bool = True) -> Heard:
        """Opens a stream; what of `contents` is more than there is room for waits in `send`."""
        number = self.client.get_next_available_stream_id()
        self.client.send_headers(number, OPENING, end_stream=end and not contents)
        if contents:
            self.send(number, contents, end=end)
        self.exchange()
        return self.node.heard[number]

    def send(self, number: int, contents: bytes, *, end: bool = True) -> None:
        """As fast as the node lets it. Fails if the node stops giving room."""
        rest = contents
        while rest:
            room = min(self.client.local_flow_control_window(number), self.client.max_outbound_frame_size)
            assert room > 0, f"no room for {len(rest)} bytes"
            part, rest = rest[:room], rest[room:]
            self.client.send_data(number, part, end_stream=end and not rest)
            self.exchange()

    def read_all(self, number: int) -> bytes:
        """The answer to its end, with room given for what was read."""
        seen = 0
        while self.trailers(number) is None:
            count = len(self.body(number)) - seen
            assert count, "the answer does not go on"
            seen += count
            self.client.increment_flow_control_window(count)
            self.client.increment_flow_control_window(count, number)
            self.exchange()
        return self.body(number)
