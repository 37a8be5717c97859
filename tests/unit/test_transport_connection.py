"""One connection without a socket: streams begin, carry bytes both ways and end, with h2 or raw frames opposite."""

from __future__ import annotations

import h2.events
import hpack
import pytest
from h2.errors import ErrorCodes

from nearmesh.transport import frames, headers
from nearmesh.transport.connection import FRAME_BYTES
from nearmesh.transport.frames import Code
from nearmesh.transport.headers import MAX_BLOCK_BYTES, MAX_TOLD_BYTES
from tests.http2_peer import HELLO, OPENING, Heard, Node, Pair, block, data, message
from tests.http2_peer import headers as opened

FINE = headers.fine((("x-load", "1"),))
TRAILERS = {"grpc-status": "0", "x-load": "1"}


def answer(heard: Heard, contents: bytes = b"answer") -> None:
    heard.stream.respond(headers.OPENING, contents, FINE)


# Calls.


def test_a_call_is_taken_in_and_answered() -> None:
    pair = Pair()
    heard = pair.ask(message(b"question"))
    assert heard.stream.headers.path == "/test.Service/Method"
    assert (bytes(heard.body), heard.news) == (message(b"question"), ["ended"])
    answer(heard)
    pair.exchange()
    assert dict(pair.of(h2.events.ResponseReceived, 1)[0].headers) == {
        ":status": "200",
        "content-type": "application/grpc",
    }
    assert (pair.body(1), pair.trailers(1)) == (message(b"answer"), TRAILERS)
    assert not pair.of(h2.events.StreamReset), "both sides said everything"


def test_what_is_written_in_one_turn_wakes_once() -> None:
    pair = Pair()
    before = pair.node.woken
    heard = pair.ask(b"q")
    assert pair.node.woken == before
    answer(heard)
    heard.stream.open(headers.OPENING)
    assert pair.node.woken == before + 1


def test_calls_on_one_connection_do_not_wait_for_each_other() -> None:
    pair = Pair()
    calls = [pair.ask(b"q%d" % number) for number in range(5)]
    for heard in reversed(calls):
        answer(heard, bytes(heard.body))
    pair.exchange()
    assert [pair.body(number) for number in (1, 3, 5, 7, 9)] == [message(b"q%d" % number) for number in range(5)]
    ends = [event.stream_id for event in pair.of(h2.events.StreamEnded)]
    assert ends == [9, 7, 5, 3, 1]


def test_a_stream_of_messages_goes_both_ways() -> None:
    pair = Pair()
    heard = pair.ask(end=False)
    heard.stream.open(headers.OPENING)
    for number in range(3):
        pair.send(1, b"q%d" % number, end=False)
        heard.stream.send(b"a%d" % number)
        heard.stream.open(headers.OPENING)
    pair.client.end_stream(1)
    pair.exchange()
    assert (bytes(heard.body), heard.news) == (b"q0q1q2", ["ended"])
    assert pair.trailers(1) is None
    heard.stream.finish(FINE)
    pair.exchange()
    assert (pair.body(1), pair.trailers(1)) == (message(b"a0") + message(b"a1") + message(b"a2"), TRAILERS)
    assert len(pair.of(h2.events.ResponseReceived, 1)) == 1


def test_a_request_without_contents_ends_with_its_headers() -> None:
    assert Pair().ask().news == ["ended"]


@pytest.mark.parametrize("said_before", [False, True])
def test_an_answer_that_went_wrong_has_its_reason(said_before: bool) -> None:
    pair = Pair()
    heard = pair.ask(b"q")
    if said_before:
        heard.stream.open(headers.OPENING)
        heard.stream.send(b"a")
    heard.stream.fail(headers.OPENING, FINE)
    pair.exchange()
    found = pair.trailers(1)
    assert found is not None and TRAILERS.items() <= found.items()
    assert pair.body(1) == (message(b"a") if said_before else b"")
    assert bool(pair.of(h2.events.TrailersReceived)) is said_before, "one block where nothing was said"


def test_a_caller_who_is_answered_early_is_asked_to_stop() -> None:
    pair = Pair()
    heard = pair.ask(b"q", end=False)
    heard.stream.fail(headers.OPENING, FINE)
    pair.node.give(data(1, b"more"))
    pair.exchange()
    assert pair.trailers(1) is not None
    assert pair.of(h2.events.StreamReset, 1)[0].error_code == ErrorCodes.NO_ERROR
    pair.node.give(data(1, b"still", flags=frames.END_STREAM))
    assert (bytes(heard.body), heard.news) == (b"q", []), "what was on its way is nobody's"


@pytest.mark.parametrize("how", ["open", "send", "finish", "fail", "respond", "reset"])
def test_nothing_is_said_after_the_end(how: str) -> None:
    pair = Pair()
    heard = pair.ask(b"q")
    answer(heard)
    pair.exchange()
    stream = heard.stream
    match how:
        case "open":
            stream.open(headers.OPENING)
        case "send":
            stream.send(b"a")
        case "finish":
            stream.finish(FINE)
        case "fail":
            stream.fail(headers.OPENING, FINE)
        case "respond":
            answer(heard)
        case "reset":
            stream.reset(Code.CANCEL)
    assert pair.node.take() == b""


def test_an_answer_may_be_taken_back() -> None:
    pair = Pair()
    heard = pair.ask(b"q", end=False)
    heard.stream.reset(Code.INTERNAL_ERROR)
    pair.exchange()
    assert pair.of(h2.events.StreamReset, 1)[0].error_code == ErrorCodes.INTERNAL_ERROR
    pair.node.give(data(1, b"more"))
    assert bytes(heard.body) == b"q"


# How a request may be written.


def test_trailers_of_a_request_end_it() -> None:
    pair = Pair()
    heard = pair.ask(b"q", end=False)
    pair.client.send_headers(1, [("x-checksum", "1")], end_stream=True)
    pair.exchange()
    assert (bytes(heard.body), heard.news) == (b"q", ["ended"])
    answer(heard)
    pair.exchange()
    assert pair.trailers(1) == TRAILERS


def test_trailers_of_a_stream_that_is_over_keep_the_table_in_step() -> None:
    """They may enter headers that later blocks refer to."""
    node, encoder = Node(), hpack.Encoder()
    node.give(HELLO + opened(1, contents=encoder.encode(OPENING)))
    answer(node.heard[1])
    late = encoder.encode([("x-late", "1")])
    node.give(opened(1, flags=frames.END_HEADERS | frames.END_STREAM, contents=late))
    node.give(opened(3, contents=encoder.encode([*OPENING, ("x-late", "1")])))
    assert node.heard[3].stream.headers.metadata == (("x-late", "1"),)


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_padding_is_no_contents(padding: int) -> None:
    pair = Pair()
    heard = pair.ask(end=False)
    pair.client.send_data(1, b"question", pad_length=padding)
    pair.client.send_data(1, b"", pad_length=padding)
    pair.client.send_data(1, b"!", pad_length=padding, end_stream=True)
    pair.exchange()
    assert (bytes(heard.body), heard.news) == (b"question!", ["ended"])


@pytest.mark.parametrize("flags", [0, frames.PADDED, frames.PRIORITIZED, frames.PADDED | frames.PRIORITIZED])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_headers_may_be_padded_have_a_priority_and_go_on(flags: int, parts: int) -> None:
    contents = block(("x", "v" * 300))
    size = -(-len(contents) // parts)
    first, *more = [contents[at : at + size] for at in range(0, len(contents), size)]
    before = b"\x03" * bool(flags & frames.PADDED) + b"\0\0\0\0\x10" * bool(flags & frames.PRIORITIZED)
    after = bytes(3) * bool(flags & frames.PADDED)
    ends = [0] * len(more) + [frames.END_HEADERS]
    sent = frames.frame(frames.HEADERS, flags | ends[0] | frames.END_STREAM, 1, before + first + after)
    sent += b"".join(frames.frame(frames.CONTINUATION, end, 1, part) for part, end in zip(more, ends[1:], strict=True))
    node = Node()
    node.give(HELLO + sent)
    assert node.heard[1].stream.headers.metadata == (("x", "v" * 300),)
    assert node.heard[1].news == ["ended"]


def test_frames_that_say_nothing_here_are_passed_over() -> None:
    node = Node()
    node.give(
        HELLO
        + frames.frame(frames.PRIORITY, 0, 3, b"\0\0\0\0\x10")
        + frames.frame(frames.SETTINGS, frames.ACK, 0)
        + frames.frame(frames.PING, frames.ACK, 0, b"whatever")
        + frames.go_away(0, Code.NO_ERROR, "bye")
        + frames.frame(0x10, 0xFF, 0, b"of another protocol")
        + frames.settings({0x99: 7, 8: 1})
        + opened(1)
        + frames.frame(0xEE, 0, 1, bytes(MAX_BLOCK_BYTES))
        + data(1, b"q", flags=frames.END_STREAM)
    )
    assert (bytes(node.heard[1].body), node.heard[1].news) == (b"q", ["ended"])


def test_a_ping_comes_back() -> None:
    pair = Pair()
    pair.client.ping(b"12345678")
    pair.exchange()
    assert [event.ping_data for event in pair.of(h2.events.PingAckReceived)] == [b"12345678"]


def test_settings_of_both_sides_are_agreed() -> None:
    pair = Pair(streams=7, window_bytes=2**21)
    assert pair.of(h2.events.SettingsAcknowledged)
    told = pair.client.remote_settings
    assert (told.max_concurrent_streams, told.initial_window_size, told.max_frame_size) == (7, 2**21, FRAME_BYTES)
    assert told.max_header_list_size == MAX_TOLD_BYTES


@pytest.mark.parametrize("size", [2**14, 2**20])
def test_frames_are_as_large_as_the_peer_takes_them(size: int) -> None:
    big = 2**24
    pair = Pair(settings={frames.MAX_FRAME_SIZE: size, frames.INITIAL_WINDOW_SIZE: big})
    pair.client.increment_flow_control_window(big)
    answer(pair.ask(b"q"), bytes(3 * 2**20))
    pair.exchange()
    assert pair.body(1) == message(bytes(3 * 2**20))
    assert max(len(event.data) for event in pair.of(h2.events.DataReceived)) == size


# Leaving before the end.


def test_a_caller_may_leave_in_the_middle() -> None:
    pair = Pair()
    heard = pair.ask(b"q", end=False)
    other = pair.ask(b"other")
    pair.client.reset_stream(1, ErrorCodes.CANCEL)
    pair.exchange()
    assert heard.news == ["gone"] and heard.stream.gone and other.news == ["ended"]
    answer(heard)
    assert pair.node.take() == b""
    # What crosses it on the way is nobody's; so is a second end.
    pair.node.give(frames.window_update(1, 10) + frames.reset(1, Code.CANCEL))
    answer(other)
    pair.exchange()
    assert heard.news == ["gone"] and pair.trailers(3) == TRAILERS


def test_a_caller_may_leave_in_the_middle_of_a_frame() -> None:
    node = Node()
    node.give(HELLO + opened(1) + opened(3) + data(1, b"a" * 100)[:50])
    heard = node.heard[1]
    assert len(heard.body) == 41
    heard.stream.reset(Code.CANCEL)
    node.give(b"a" * 59 + data(3, b"next"))
    assert (len(heard.body), bytes(node.heard[3].body)) == (41, b"next")


def test_a_lost_connection_takes_every_caller_along() -> None:
    pair = Pair()
    calls = [pair.ask(b"q", end=number == 1) for number in range(3)]
    answer(calls[0])
    pair.node.connection.lost()
    assert [heard.news for heard in calls] == [[], ["ended", "gone"], ["gone"]]
    pair.node.take()
    for heard in calls:
        answer(heard)
    assert pair.node.take() == b""
