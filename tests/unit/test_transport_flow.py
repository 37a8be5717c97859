"""Flow control: neither side sends what the other has no room for, and everything arrives once there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import h2.events
import pytest
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from nearmesh.transport import frames, headers
from nearmesh.transport.frames import Code, ConnectionFailed
from tests.http2_peer import HELLO, Heard, Node, Pair, data, message
from tests.http2_peer import headers as opened

FINE = headers.fine(())
WINDOW = frames.INITIAL_WINDOW_SIZE
HUGE = bytes(range(256)) * 4096 * 3


def answer(heard: Heard, contents: bytes) -> None:
    heard.stream.respond(headers.OPENING, contents, FINE)


# Answers.


@pytest.mark.parametrize("window", [1, 5, 100, 2**14, 2**16 - 1, 2**24])
def test_a_huge_answer_takes_as_many_steps_as_the_caller_wants(window: int) -> None:
    """h2 fails when it is sent more than it has room for."""
    contents = HUGE if window > 1000 else HUGE[:1000]
    pair = Pair(settings={WINDOW: window})
    answer(pair.ask(b"q"), contents)
    pair.exchange()
    assert len(pair.body(1)) == min(window, 2**16 - 1, len(contents) + 5)
    assert pair.read_all(1) == message(contents)


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    window=st.integers(0, 50),
    steps=st.lists(st.integers(1, 200), max_size=30),
)
def test_messages_are_whole_however_room_is_given(sizes: list[int], window: int, steps: list[int]) -> None:
    pair = Pair(settings={WINDOW: window})
    heard = pair.ask(b"q")
    heard.stream.open(headers.OPENING)
    expected = b"".join(message(HUGE[:size]) for size in sizes)
    for size in sizes:
        heard.stream.send(HUGE[:size])
    heard.stream.finish(FINE)
    pair.exchange()
    room = window
    for step in [*steps, 2000]:
        assert pair.body(1) == expected[:room]
        if pair.trailers(1):
            break
        pair.client.increment_flow_control_window(step, 1)
        room += step
        pair.exchange()
    assert pair.body(1) == expected and pair.trailers(1) == {"grpc-status": "0"}


def test_the_connection_has_a_window_of_its_own() -> None:
    pair = Pair(settings={WINDOW: 2**24})
    calls = [pair.ask(b"q") for _ in range(3)]
    for heard in calls:
        answer(heard, HUGE[:50_000])
    pair.exchange()
    assert [len(pair.body(number)) for number in (1, 3, 5)] == [50_005, 2**16 - 1 - 50_005, 0]
    pair.client.increment_flow_control_window(50_000)
    pair.exchange()
    assert [len(pair.body(number)) for number in (1, 3, 5)] == [50_005, 50_005, 2**16 - 1 - 50_010]
    pair.client.increment_flow_control_window(50_000)
    pair.exchange()
    assert all(pair.body(number) == message(HUGE[:50_000]) for number in (1, 3, 5))


def test_a_stream_without_room_does_not_hold_up_others() -> None:
    pair = Pair(settings={WINDOW: 10})
    slow, quick = pair.ask(b"q"), pair.ask(b"q")
    answer(slow, b"a" * 100)
    answer(quick, b"b" * 5)
    pair.exchange()
    assert (pair.body(1), pair.body(3)) == (message(b"a" * 100)[:10], message(b"b" * 5))


def test_who_leaves_while_its_answer_waits_is_sent_nothing_more() -> None:
    pair = Pair(settings={WINDOW: 2**24})
    answer(pair.ask(b"q"), HUGE[:100_000])
    answer(pair.ask(b"q"), HUGE[:100_000])
    pair.exchange()
    pair.client.reset_stream(1)
    pair.client.increment_flow_control_window(200_000)
    pair.exchange()
    assert len(pair.body(1)) == 2**16 - 1 and pair.body(3) == message(HUGE[:100_000])


def test_the_first_ending_of_an_answer_counts() -> None:
    """A call that is over may still have a word on its way, and a method that goes on after it says nothing."""
    pair = Pair(settings={WINDOW: 10})
    stream = pair.ask(b"q").stream
    stream.open(headers.OPENING)
    stream.send(b"a" * 100)
    stream.fail(headers.OPENING, headers.fine((("x", "late"),)))
    stream.send(b"b" * 100)
    stream.finish(FINE)
    pair.client.increment_flow_control_window(1000, 1)
    pair.exchange()
    assert (pair.body(1), pair.trailers(1)) == (message(b"a" * 100), {"grpc-status": "0", "x": "late"})


# The first window changes.


@pytest.mark.parametrize(
    "first, second", [(100, 1000), (1000, 100), (100, 0), (0, 2**20), (500, 499), (100, 2**31 - 1)]
)
def test_a_changed_first_window_counts_for_streams_under_way(first: int, second: int) -> None:
    """Once the change is agreed; a window may be less than nothing for a while."""
    pair = Pair(settings={WINDOW: first})
    expected = message(HUGE[:2000])
    answer(pair.ask(b"q"), HUGE[:2000])
    pair.exchange()
    assert pair.body(1) == expected[:first]
    pair.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: second})
    pair.exchange()
    room = max(first, second)
    assert pair.body(1) == expected[:room]
    if room < len(expected):
        # What makes the window positive again, and one byte more.
        pair.client.increment_flow_control_window(first - min(first, second) + 1, 1)
        pair.exchange()
        assert pair.body(1) == expected[: room + 1]
        pair.client.increment_flow_control_window(3000, 1)
        pair.exchange()
    assert pair.body(1) == expected
    answer(pair.ask(b"q"), b"a" * 2000)
    pair.exchange()
    assert len(pair.body(3)) == min(second, 2005)


def test_settings_are_agreed_before_anything_is_sent_that_counts_on_them() -> None:
    """A peer may take what it did not have room for before its change was agreed as a breach."""
    node = Node()
    node.give(HELLO + frames.settings({WINDOW: 0}) + opened(1))
    answer(node.heard[1], b"a" * 20)
    node.take()
    node.give(frames.settings({WINDOW: 100}))
    assert kinds_of(node.take())[:2] == [frames.SETTINGS, frames.DATA]


def test_of_settings_said_twice_the_last_counts() -> None:
    node = Node()
    node.give(HELLO + frames.settings({WINDOW: 0}) + opened(1))
    answer(node.heard[1], b"a" * 20)
    node.take()
    node.give(frames.frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\0\x64\0\4\0\0\0\0"))
    assert kinds_of(node.take()) == [frames.SETTINGS], "there is no room in the end"


def kinds_of(sent: bytes) -> list[int]:
    found = []
    while sent:
        found.append(sent[3])
        sent = sent[frames.HEAD_BYTES + int.from_bytes(sent[:3], "big") :]
    return found


# Requests.


@pytest.mark.parametrize("window", [1, 10, 1000, 2**20])
def test_a_huge_request_comes_as_fast_as_it_is_taken_in(window: int) -> None:
    contents = HUGE if window > 100 else HUGE[:2000]
    pair = Pair(window_bytes=window)
    heard = pair.ask(contents)
    assert bytes(heard.body) == contents and heard.news == ["ended"]


def test_who_is_not_taken_in_can_send_no_more_than_a_window() -> None:
    pair = Pair(window_bytes=1000, credits=False)
    heard = pair.ask(bytes(400), end=False)
    for credit, room in [(300, 600), (1, 901), (50, 901), (49, 901)]:
        heard.stream.credit(credit)
        pair.exchange()
        assert pair.client.local_flow_control_window(1) == room, "in large steps"
    pair.send(1, bytes(901), end=False)
    assert pair.client.local_flow_control_window(1) == 0
    heard.stream.credit(1)
    pair.exchange()
    assert pair.client.local_flow_control_window(1) == 100, "who has no room at all is not kept waiting"


def test_room_that_was_lent_is_paid_back() -> None:
    """For one message that is larger than the window; afterwards the window is what it was."""
    pair = Pair(window_bytes=1000, credits=False)
    heard = pair.ask(bytes(1000), end=False)
    for _ in range(5):
        heard.stream.lend(3000)
        pair.exchange()
        assert pair.client.local_flow_control_window(1) == 3000
        pair.send(1, bytes(3000), end=False)
        heard.stream.credit(4000)
        pair.exchange()
        assert pair.client.local_flow_control_window(1) == 1000
        pair.send(1, bytes(1000), end=False)


def test_padding_takes_no_room_for_good() -> None:
    """Nobody takes it in, so nobody else would give its room back."""
    pair = Pair(window_bytes=10_000)
    heard = pair.ask(end=False)
    for _ in range(500):
        pair.client.send_data(1, b"abc", pad_length=250)
        pair.exchange()
    assert bytes(heard.body) == b"abc" * 500


def test_the_connection_gets_room_again_whoever_takes_it_in() -> None:
    """By number: 1 GiB and a half in frames of a megabyte, to a stream that is over."""
    pair = Pair(window_bytes=2**31 - 1)
    heard = pair.ask(end=False)
    assert pair.client.outbound_flow_control_window == 2**30
    heard.stream.reset(Code.CANCEL)
    pair.exchange()
    part = data(1, bytes(2**20))
    for _ in range(1536):
        pair.node.give(part)
    told = [frame for frame in window_updates(pair.node.take()) if frame[0] == 0]
    assert sum(size for _, size in told) >= 2**30 - 2**29


def window_updates(sent: bytes) -> list[tuple[int, int]]:
    """Stream and size of each."""
    assert {*kinds_of(sent)} == {frames.WINDOW_UPDATE}
    return [
        (int.from_bytes(sent[at + 5 : at + 9], "big"), int.from_bytes(sent[at + 9 : at + 13], "big"))
        for at in range(0, len(sent), 13)
    ]


@pytest.mark.parametrize("sizes", [[1001], [1000, 1], [0, 999, 2], [500, 500, 1]])
def test_more_than_there_is_room_for_ends_the_connection(sizes: list[int]) -> None:
    node = Node(window_bytes=1000, credits=False)
    node.give(HELLO + opened(1) + b"".join(data(1, bytes(size)) for size in sizes[:-1]))
    with pytest.raises(ConnectionFailed, match="more on stream 1") as caught:
        node.give(data(1, bytes(sizes[-1])))
    assert caught.value.code is Code.FLOW_CONTROL_ERROR


# Waiting for room.


async def turned(task: asyncio.Task[None]) -> bool:
    """Whether a task is done after the loop has come round to it."""
    for _ in range(3):
        await asyncio.sleep(0)
    return task.done()


async def test_who_sends_waits_until_it_has_left() -> None:
    pair = Pair(settings={WINDOW: 10})
    stream = pair.ask(b"q").stream
    stream.open(headers.OPENING)
    stream.send(b"a" * 5)
    await asyncio.wait_for(stream.room(), 1)
    stream.send(b"a" * 20)
    waiting = asyncio.create_task(stream.room())
    assert not await turned(waiting)
    pair.client.increment_flow_control_window(20, 1)
    pair.exchange()
    assert not await turned(waiting)
    pair.client.increment_flow_control_window(5, 1)
    pair.exchange()
    assert await turned(waiting)


@pytest.mark.parametrize("how", ["flushed", "gone", "lost"])
async def test_who_sends_waits_for_a_peer_that_does_not_read(how: str) -> None:
    pair = Pair()
    heard = pair.ask(b"q")
    link = pair.node.connection
    heard.stream.open(headers.OPENING)
    flushed = link.flushed = asyncio.get_running_loop().create_future()
    heard.stream.send(b"a")
    waiting = asyncio.create_task(heard.stream.room())
    assert not await turned(waiting)
    if how == "gone":
        pair.node.give(frames.reset(1, Code.CANCEL))
    elif how == "lost":
        link.lost()
    # The socket's end of it: it catches up, or is closed.
    link.flushed = None
    flushed.set_result(None)
    assert await turned(waiting)


LEAVING: dict[str, Callable[[Pair], None]] = {
    "reset": lambda pair: pair.node.give(frames.reset(1, Code.CANCEL)),
    "lost": lambda pair: pair.node.connection.lost(),
    "taken back": lambda pair: pair.node.heard[1].stream.reset(Code.CANCEL),
}


@pytest.mark.parametrize("how", LEAVING)
async def test_nobody_waits_for_room_of_a_caller_who_left(how: str) -> None:
    pair = Pair(settings={WINDOW: 10})
    stream = pair.ask(b"q").stream
    stream.send(b"a" * 20)
    waiting = asyncio.create_task(stream.room())
    assert not await turned(waiting)
    LEAVING[how](pair)
    assert await turned(waiting)
    await asyncio.wait_for(stream.room(), 1)


def test_an_answer_that_waits_is_told_from_one_that_is_over() -> None:
    pair = Pair(settings={WINDOW: 10})
    answer(pair.ask(b"q"), b"a" * 20)
    pair.exchange()
    assert not pair.of(h2.events.StreamEnded)
    pair.client.increment_flow_control_window(15, 1)
    pair.exchange()
    assert [event.stream_id for event in pair.of(h2.events.StreamEnded)] == [1]


def test_what_is_to_come_of_a_frame_is_known() -> None:
    """Its room is spent when it begins: whoever lends room for the rest of a message need not lend for that again."""
    pair = Pair(window_bytes=10_000)
    heard = pair.ask(end=False)
    frame = data(1, bytes(1000))
    for part, coming in ((frame[:509], 500), (frame[509:1008], 1), (frame[1008:], 0), (frame, 0)):
        pair.node.give(part)
        assert heard.stream.coming == coming
