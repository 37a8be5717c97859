"""How many calls a connection takes, and how it ends in order: told first, and what crosses the word is not lost."""

from __future__ import annotations

import h2.events
import hpack
import pytest
from h2.errors import ErrorCodes

from nearmesh.transport import frames, headers
from nearmesh.transport.frames import Code, ConnectionFailed
from tests.http2_peer import HELLO, OPENING, Heard, Node, Pair, data, message
from tests.http2_peer import headers as opened

FINE = headers.fine(())
WHOLE = frames.END_HEADERS | frames.END_STREAM


def answer(heard: Heard) -> None:
    heard.stream.respond(headers.OPENING, b"answer", FINE)


# So many calls at a time.


def test_a_call_too_many_is_refused_and_may_come_again() -> None:
    node = Node(streams=2)
    node.give(HELLO + opened(1) + opened(3))
    node.take()
    node.give(opened(5) + data(5, b"a", flags=frames.END_STREAM))
    assert node.take() == frames.reset(5, Code.REFUSED_STREAM)
    assert list(node.heard) == [1, 3]
    answer(node.heard[1])
    node.give(opened(7))
    assert list(node.heard) == [1, 3, 7]


def test_a_refused_call_keeps_the_table_in_step() -> None:
    node, encoder = Node(streams=1), hpack.Encoder()
    node.give(HELLO + opened(1, contents=encoder.encode(OPENING)))
    node.give(opened(3, contents=encoder.encode([*OPENING, ("x", "new")])))
    answer(node.heard[1])
    node.give(opened(5, contents=encoder.encode([*OPENING, ("x", "new")])))
    assert node.heard[5].stream.headers.metadata == (("x", "new"),)


@pytest.mark.parametrize("how", ["cancelled", "answered", "taken back"])
def test_calls_whose_work_goes_on_count_though_their_streams_are_over(how: str) -> None:
    """Otherwise who opens and cancels calls in turn has the node work on any number of them."""
    node = Node(streams=2)
    for number in (1, 3):
        node.give((HELLO if number == 1 else b"") + opened(number, flags=WHOLE))
        node.connection.working += 1
        if how == "cancelled":
            node.give(frames.reset(number, Code.CANCEL))
        elif how == "answered":
            answer(node.heard[number])
        else:
            node.heard[number].stream.reset(Code.CANCEL)
    node.take()
    node.give(opened(5))
    assert node.take() == frames.reset(5, Code.REFUSED_STREAM) and 5 not in node.heard
    node.connection.working -= 1
    node.give(opened(7))
    assert 7 in node.heard


def test_a_thousand_cancelled_calls_leave_nothing() -> None:
    node = Node(streams=2)
    node.give(HELLO)
    for number in range(1, 2001, 2):
        node.give(opened(number) + frames.reset(number, Code.CANCEL))
    assert len(node.heard) == 1000 and {tuple(heard.news) for heard in node.heard.values()} == {("gone",)}
    assert all(heard.stream.receiver is None for heard in node.heard.values())


# Farewell.


def frames_of(sent: bytes) -> list[tuple[int, bytes]]:
    """Kind and contents of each."""
    found = []
    while sent:
        end = frames.HEAD_BYTES + int.from_bytes(sent[:3], "big")
        found.append((sent[3], sent[frames.HEAD_BYTES : end]))
        sent = sent[end:]
    return found


def gone_away(last: int) -> tuple[int, bytes]:
    return frames.GOAWAY, last.to_bytes(4, "big") + bytes(4)


def heard_it(node: Node) -> bytes:
    """The peer's answer to the ping behind the first word."""
    first, (ping, word) = frames_of(node.take())
    assert (first, ping) == (gone_away(2**31 - 1), frames.PING)
    return frames.frame(frames.PING, frames.ACK, 0, word)


def test_a_peer_without_calls_leaves_at_once() -> None:
    node = Node()
    node.give(HELLO)
    node.take()
    assert not node.connection.finished
    node.connection.leave()
    assert not node.connection.finished, "the peer has not heard of it"
    node.give(heard_it(node))
    assert node.connection.finished
    assert frames_of(node.take()) == [gone_away(0)]


def test_another_implementation_understands_the_word() -> None:
    pair = Pair()
    pair.node.connection.leave()
    told = pair.node.take()
    first = pair.client.receive_data(told[:17])
    assert [(event.last_stream_id, event.error_code) for event in first] == [(2**31 - 1, ErrorCodes.NO_ERROR)]
    assert isinstance(first[0], h2.events.ConnectionTerminated)


def test_calls_under_way_are_answered_first() -> None:
    """The other side is raw here: h2 takes the first word for the last."""
    node = Node()
    node.give(HELLO + opened(1) + opened(3, flags=WHOLE))
    node.take()
    node.connection.leave()
    node.connection.leave()
    node.give(heard_it(node))
    assert frames_of(node.take()) == [gone_away(3)]
    answer(node.heard[3])
    assert not node.connection.finished
    node.give(data(1, message(b"more"), flags=frames.END_STREAM))
    assert node.heard[1].news == ["ended"]
    answer(node.heard[1])
    assert node.connection.finished
    assert [kind for kind, _ in frames_of(node.take())] == [frames.HEADERS, frames.DATA, frames.HEADERS] * 2


def test_calls_that_cross_the_word_are_answered_and_later_ones_are_not() -> None:
    node = Node()
    node.give(HELLO + opened(1, flags=WHOLE))
    node.take()
    node.connection.leave()
    ack = heard_it(node)
    node.give(opened(3, flags=WHOLE) + ack + opened(5, flags=WHOLE))
    assert list(node.heard) == [1, 3]
    assert frames_of(node.take()) == [gone_away(3)]
    answer(node.heard[1])
    answer(node.heard[3])
    assert node.connection.finished


@pytest.mark.parametrize(
    "late",
    [
        data(5, b"contents"),
        data(5, b"contents", flags=frames.END_STREAM),
        data(5, b"\3abc\0\0\0", flags=frames.PADDED),
        frames.window_update(5, 100),
        frames.reset(5, Code.CANCEL),
        frames.frame(frames.HEADERS, WHOLE, 5, b"\x88"),
    ],
    ids=["contents", "last contents", "padded contents", "room", "end", "trailers"],
)
def test_what_belongs_to_a_call_that_came_too_late_harms_no_other(late: bytes) -> None:
    """The peer sent it before it knew (RFC 9113, section 6.8); calls under way are to be answered all the same."""
    node = Node()
    node.give(HELLO + opened(1))
    node.take()
    node.connection.leave()
    node.give(heard_it(node))
    node.give(opened(5) + late)
    node.give(data(1, b"more", flags=frames.END_STREAM))
    assert (list(node.heard), bytes(node.heard[1].body), node.heard[1].news) == ([1], b"more", ["ended"])


def test_headers_that_come_too_late_keep_the_table_in_step() -> None:
    """Trailers of a call under way may refer to them."""
    node, encoder = Node(), hpack.Encoder()
    node.give(HELLO + opened(1, contents=encoder.encode(OPENING)))
    node.take()
    node.connection.leave()
    node.give(heard_it(node))
    node.give(opened(3, contents=encoder.encode([*OPENING, ("x", "1")])))
    node.give(opened(1, flags=WHOLE, contents=encoder.encode([("x", "1")])))
    assert node.heard[1].news == ["ended"] and 3 not in node.heard


def test_a_ping_of_the_peers_own_is_no_answer_to_the_word() -> None:
    node = Node()
    node.give(HELLO + frames.frame(frames.PING, frames.ACK, 0, b"farewell"))
    node.connection.leave()
    node.take()
    node.give(frames.frame(frames.PING, frames.ACK, 0, b"whatever"))
    node.give(frames.frame(frames.PING, 0, 0, b"farewell"))
    assert not node.connection.finished
    node.give(opened(1))
    assert 1 in node.heard


@pytest.mark.parametrize("how", ["cancelled", "taken back", "lost"])
def test_a_connection_is_finished_when_the_last_call_leaves(how: str) -> None:
    node = Node()
    node.give(HELLO + opened(1))
    node.take()
    node.connection.leave()
    node.give(heard_it(node))
    assert not node.connection.finished
    if how == "cancelled":
        node.give(frames.reset(1, Code.CANCEL))
    elif how == "lost":
        node.connection.lost()
    else:
        node.heard[1].stream.reset(Code.CANCEL)
    assert node.connection.finished


def test_an_answer_that_waits_for_room_is_under_way() -> None:
    node = Node()
    node.give(HELLO + frames.settings({frames.INITIAL_WINDOW_SIZE: 5}) + opened(1, flags=WHOLE))
    answer(node.heard[1])
    node.take()
    node.connection.leave()
    node.give(heard_it(node))
    assert not node.connection.finished
    node.give(frames.window_update(1, 100))
    assert node.connection.finished


def test_a_mistake_after_the_word_ends_the_connection_as_before() -> None:
    node = Node()
    node.give(HELLO + opened(1))
    node.take()
    node.connection.leave()
    node.give(heard_it(node))
    with pytest.raises(ConnectionFailed):
        node.give(data(2, b"a"))
