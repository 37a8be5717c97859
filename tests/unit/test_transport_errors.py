"""What a peer may not do ends its connection with the right code, and no bytes whatever do more to the node."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearmesh.transport import frames, headers
from nearmesh.transport.connection import FRAME_BYTES
from nearmesh.transport.frames import Code, ConnectionFailed
from nearmesh.transport.headers import MAX_BLOCK_BYTES
from tests.http2_peer import HELLO, OPENING, Heard, Node, block, data, message
from tests.http2_peer import headers as opened

END = frames.END_STREAM
WHOLE = frames.END_HEADERS | END
FINE = headers.fine(())

# A stream that is open, and one whose caller has said everything; `begun` adds one that was answered.
BEGUN = HELLO + opened(1) + opened(3, flags=WHOLE)


def frame(kind: int, flags: int = 0, stream: int = 0, contents: bytes = b"") -> bytes:
    return frames.frame(kind, flags, stream, contents)


def begun() -> Node:
    node = Node(window_bytes=2**16)
    node.give(BEGUN + opened(5, flags=WHOLE))
    node.heard[5].stream.respond(headers.OPENING, b"a", FINE)
    return node


def setting(key: int, value: int) -> bytes:
    return frames.settings({key: value})


MISTAKES = {
    "a frame that is too large": (frames.head(FRAME_BYTES + 1, frames.DATA, 0, 1), Code.FRAME_SIZE_ERROR),
    "headers that are too large": (frames.head(MAX_BLOCK_BYTES + 1, frames.HEADERS, 0, 7), Code.ENHANCE_YOUR_CALM),
    "settings that are too large": (frames.head(MAX_BLOCK_BYTES + 1, frames.SETTINGS, 0, 0), Code.ENHANCE_YOUR_CALM),
    "contents of no stream": (data(0, b"a"), Code.PROTOCOL_ERROR),
    "contents of a stream to come": (data(7, b"a"), Code.PROTOCOL_ERROR),
    "contents of a server's stream": (data(2, b"a"), Code.PROTOCOL_ERROR),
    "contents after the end": (data(3, b"a"), Code.STREAM_CLOSED),
    "an end after the end": (data(3, flags=END), Code.STREAM_CLOSED),
    "more padding than contents": (data(1, b"\x05abcd", flags=frames.PADDED), Code.PROTOCOL_ERROR),
    "padding of nothing": (data(1, b"", flags=frames.PADDED) + b"\x01", Code.PROTOCOL_ERROR),
    "contents within headers": (opened(7, flags=0) + data(1, b"a"), Code.PROTOCOL_ERROR),
    "another frame within headers": (opened(7, flags=0) + frame(frames.PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR),
    "an unknown frame within headers": (opened(7, flags=0) + frame(0x99), Code.PROTOCOL_ERROR),
    "headers within headers": (opened(7, flags=0) + opened(7), Code.PROTOCOL_ERROR),
    "a continuation for another stream": (
        opened(7, flags=0) + frame(frames.CONTINUATION, 4, 9),
        Code.PROTOCOL_ERROR,
    ),
    "a continuation of nothing": (frame(frames.CONTINUATION, 4, 1, b"\x88"), Code.PROTOCOL_ERROR),
    "continuations without contents": (opened(7, flags=0) + frame(frames.CONTINUATION, 0, 7), Code.ENHANCE_YOUR_CALM),
    "continuations without end": (
        opened(7, flags=0) + frame(frames.CONTINUATION, 0, 7, bytes(MAX_BLOCK_BYTES // 2)) * 2,
        Code.ENHANCE_YOUR_CALM,
    ),
    "headers of no stream": (opened(0), Code.PROTOCOL_ERROR),
    "headers of a server's stream": (opened(2), Code.PROTOCOL_ERROR),
    "headers in the middle": (opened(1), Code.PROTOCOL_ERROR),
    "headers with too much padding": (
        opened(7, flags=frames.END_HEADERS | frames.PADDED, contents=b"\x05abcd"),
        Code.PROTOCOL_ERROR,
    ),
    "headers with padding and no contents": (
        opened(7, flags=frames.END_HEADERS | frames.PADDED, contents=b""),
        Code.PROTOCOL_ERROR,
    ),
    "headers with half a priority": (
        opened(7, flags=frames.END_HEADERS | frames.PRIORITIZED, contents=b"abcd"),
        Code.PROTOCOL_ERROR,
    ),
    "headers that cannot be unpacked": (opened(7, contents=b"\xff\xff\xff\xff\xff\xff\xff"), Code.COMPRESSION_ERROR),
    "headers for a stream that is over that cannot be unpacked": (opened(5, contents=b"\xfe"), Code.COMPRESSION_ERROR),
    "headers that unpack to too much": (
        opened(7, contents=b"\x40\x01a\x7f\xb0\x1e" + b"v" * 4015 + b"\xbe" * 30),
        Code.ENHANCE_YOUR_CALM,
    ),
    "an end of no stream": (frames.reset(0, Code.CANCEL), Code.PROTOCOL_ERROR),
    "an end of a stream to come": (frames.reset(7, Code.CANCEL), Code.PROTOCOL_ERROR),
    "an end of another size": (frame(frames.RST_STREAM, 0, 1, bytes(5)), Code.FRAME_SIZE_ERROR),
    "settings for a stream": (frame(frames.SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
    "settings of another size": (frame(frames.SETTINGS, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
    "a first window that is too large": (setting(frames.INITIAL_WINDOW_SIZE, 2**31), Code.FLOW_CONTROL_ERROR),
    "frames that are too small": (setting(frames.MAX_FRAME_SIZE, 2**14 - 1), Code.PROTOCOL_ERROR),
    "frames that are too large": (setting(frames.MAX_FRAME_SIZE, 2**24), Code.PROTOCOL_ERROR),
    "a promise": (frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), Code.PROTOCOL_ERROR),
    "a ping of another size": (frame(frames.PING, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
    "a ping for a stream": (frame(frames.PING, 0, 1, bytes(8)), Code.PROTOCOL_ERROR),
    "a window that grows by nothing": (frames.window_update(0, 0), Code.PROTOCOL_ERROR),
    "a stream's window that grows by nothing": (frames.window_update(1, 0), Code.PROTOCOL_ERROR),
    "a window of another size": (frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), Code.FRAME_SIZE_ERROR),
    "a window that is too large": (frames.window_update(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
    "a stream's window that is too large": (frames.window_update(1, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
    "a window that settings make too large": (
        frames.window_update(1, 2**31 - 2**16) + setting(frames.INITIAL_WINDOW_SIZE, 2**16),
        Code.FLOW_CONTROL_ERROR,
    ),
    "room for a stream to come": (frames.window_update(7, 1), Code.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("what", MISTAKES)
@pytest.mark.parametrize("step", [1, 2**20])
def test_a_mistake_ends_the_connection(what: str, step: int) -> None:
    sent, code = MISTAKES[what]
    node = begun()
    with pytest.raises(ConnectionFailed) as caught:
        for at in range(0, len(sent), step):
            node.give(sent[at : at + step])
    assert caught.value.code is code and caught.value.why
    node.take()
    node.connection.fail(caught.value)
    told = node.take()
    assert (told[3], told[9:17]) == (frames.GOAWAY, b"\0\0\0\5\0\0\0" + bytes((code,)))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        frames.PREFACE[:-1] + b"\r",
        frames.PREFACE + frame(frames.PING, 0, 0, bytes(8)),
        frames.PREFACE + opened(1),
        frames.PREFACE + data(1, b"a"),
        frames.PREFACE + frame(frames.SETTINGS, frames.ACK, 0),
        frames.PREFACE + frames.PREFACE,
    ],
)
@pytest.mark.parametrize("step", [1, 2**20])
def test_who_does_not_begin_as_http2_does_is_not_listened_to(sent: bytes, step: int) -> None:
    node = Node()
    with pytest.raises(ConnectionFailed):
        for at in range(0, len(sent), step):
            node.give(sent[at : at + step])
    assert not node.connection.introduced and not node.heard


@pytest.mark.parametrize(
    "opening",
    [
        [*OPENING, ("X-Upper", "1")],
        OPENING[1:],
        [*OPENING, ("grpc-timeout", "soon")],
        [*OPENING, ("x-bin", "?")],
    ],
)
def test_a_malformed_request_ends_its_stream_alone(opening: list[tuple[str, str]]) -> None:
    node = begun()
    node.take()
    node.give(opened(7, contents=block(opening=opening)) + data(7, b"a") + data(1, b"b") + opened(9))
    assert node.take() == frames.reset(7, Code.PROTOCOL_ERROR)
    assert 7 not in node.heard and bytes(node.heard[1].body) == b"b" and 9 in node.heard


def test_the_highest_bit_of_a_stream_means_nothing() -> None:
    node = begun()
    node.give(data(1 | 1 << 31, b"a") + frame(frames.WINDOW_UPDATE, 0, 1, b"\x80\0\0\1"))
    assert bytes(node.heard[1].body) == b"a"


# A whole conversation, in which everything happens that may happen.
TALK = (
    BEGUN
    + data(1, message(b"abc"))
    + setting(frames.INITIAL_WINDOW_SIZE, 10)
    + frame(frames.PING, 0, 0, b"12345678")
    + data(1, b"\x03" + b"def" + bytes(3), flags=frames.PADDED)
    + opened(5, flags=0, contents=block()[:20])
    + frame(frames.CONTINUATION, frames.END_HEADERS, 5, block()[20:])
    + opened(7, flags=WHOLE | frames.PADDED | frames.PRIORITIZED, contents=b"\2\0\0\0\0\1" + block() + bytes(2))
    + frames.window_update(0, 100)
    + frames.window_update(5, 100)
    + frame(frames.PRIORITY, 0, 5, bytes(5))
    + data(5, b"\2\0\0", flags=frames.PADDED | END)
    + setting(frames.INITIAL_WINDOW_SIZE, 5)
    + frames.reset(3, Code.CANCEL)
    + frame(0x77, 0, 0, b"what?")
    + opened(9, contents=block(("x", "1")))
    + data(9, bytes(300))
    + opened(9, flags=WHOLE, contents=b"\x88")
    + data(1, b"ghi", flags=END)
    + frames.go_away(0, Code.NO_ERROR)
)


class Echo(Node):
    """Answers with what came, as soon as everything has."""

    def answer(self) -> None:
        for heard in self.heard.values():
            if heard.news == ["ended"]:
                heard.stream.respond(headers.OPENING, bytes(heard.body), FINE)


def outcome(parts: list[bytes]) -> dict[int, tuple[bytes, list[str]]]:
    node = Echo(window_bytes=2**16)
    for part in parts:
        node.give(part)
    assert node.kept_bytes == 0
    node.answer()
    node.take()
    return {number: (bytes(heard.body), heard.news) for number, heard in node.heard.items()}


EXPECTED = {
    1: (message(b"abc") + b"defghi", ["ended"]),
    3: (b"", ["ended", "gone"]),
    5: (b"", ["ended"]),
    7: (b"", ["ended"]),
    9: (bytes(300), ["ended"]),
}


def test_a_conversation_is_understood() -> None:
    assert outcome([TALK]) == EXPECTED
    assert outcome([bytes((byte,)) for byte in TALK]) == EXPECTED


def test_a_conversation_may_be_cut_anywhere() -> None:
    for at in range(1, len(TALK)):
        assert outcome([TALK[:at], TALK[at:]]) == EXPECTED, f"cut at {at}"


@given(st.lists(st.integers(1, len(TALK) - 1), max_size=10, unique=True))
def test_a_conversation_may_be_cut_into_any_pieces(places: list[int]) -> None:
    ends = [0, *sorted(places), len(TALK)]
    assert outcome([TALK[start:end] for start, end in pairwise(ends)]) == EXPECTED


def endure(sent: bytes, step: int) -> None:
    """Gives the node anything: it goes on or says why not, keeps little, and answers what it was asked as before."""
    node = Echo(streams=5, window_bytes=2**16)
    try:
        for at in range(0, len(sent), step):
            node.give(sent[at : at + step])
            node.answer()
            # A frame that is no contents, and whatever of the next one came with it.
            assert node.kept_bytes <= frames.HEAD_BYTES + MAX_BLOCK_BYTES
            # Each byte that came makes the node say a bounded number of bytes beside the answers.
            assert len(node.take()) <= 2000 + 20 * len(sent)
    except ConnectionFailed as error:
        node.connection.fail(error)
        assert error.why
    node.connection.lost()
    for heard in node.heard.values():
        assert isinstance(heard, Heard) and heard.stream.receiver is None


STEPS = st.sampled_from([1, 7, 100, 2**20])


@settings(max_examples=300)
@given(st.binary(max_size=300), st.booleans(), STEPS)
def test_garbage_is_endured(garbage: bytes, introduced: bool, step: int) -> None:
    endure((HELLO if introduced else b"") + garbage, step)


FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255) | st.sampled_from([0, 1, 4, 5]),
    st.integers(0, 12),
    st.binary(max_size=30) | st.just(block()) | st.sampled_from([bytes(4), b"\0\0\0\1", bytes(8), b"\0\4\0\0\0\5"]),
)


@settings(max_examples=300)
@given(st.lists(FRAMES, max_size=20), STEPS)
def test_any_sequence_of_frames_is_endured(sent: list[bytes], step: int) -> None:
    endure(HELLO + b"".join(sent), step)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(len(frames.PREFACE), len(TALK) - 1), st.integers(0, 255), st.sampled_from("=+-")),
        min_size=1,
        max_size=4,
    ),
    STEPS,
)
def test_a_conversation_with_damage_is_endured(damage: list[tuple[int, int, str]], step: int) -> None:
    sent = bytearray(TALK)
    for place, byte, how in damage:
        if how == "=":
            sent[place % len(sent)] = byte
        elif how == "+":
            sent.insert(place % len(sent), byte)
        else:
            del sent[place % len(sent)]
    endure(bytes(sent), step)
