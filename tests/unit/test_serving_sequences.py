"""State of sequences, of one stream or of the node: whose turn it is, who has it, how long, how many."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearmesh_agent.serving.holds import Holds
from nearmesh_agent.serving.sequences import Sequences, Step

from nearmesh.errors import InvalidInput, Overloaded, SequenceLost
from nearmesh.package import Sequence, State
from tests.tiny_models import package, spec

PACKAGE = package(
    "voice",
    [spec("x", "FP32", 1), spec("before", "FP32", 1)],
    [spec("y", "FP32", 1), spec("after", "FP32", 1)],
    sequence=Sequence(state=(State(input="before", output="after", shape=(1,)),), idle_s=10, most=3),
)


@pytest.fixture
def voice():
    """What sequences need of a replica."""
    return SimpleNamespace(package=PACKAGE, name="voice", holds=Holds(lambda: 0.0))


@pytest.fixture
def sequences(voice):
    found = Sequences(most=2)
    yield found
    found.close()
    assert len(voice.holds) == 0


@pytest.fixture
def of_node(voice):
    found = Sequences(most=None)
    yield found
    found.close()
    assert len(voice.holds) == 0


def key(name, *, scope="", model="voice"):
    return (scope, model, name)


def start(name):
    return Step(name, start=True, end=False)


def go_on(name):
    return Step(name, start=False, end=False)


def end(name):
    return Step(name, start=False, end=True)


def begin(sequences, voice, step, now_s=0.0, **whose):
    return sequences.begin(key(step.id, **whose), step, voice, now_s=now_s)


def advance(sequences, voice, step, value=0.0, now_s=0.0, **whose):
    outputs = {"y": np.zeros(1, np.float32), "after": np.full(1, value, np.float32)}
    sequences.advance(key(step.id, **whose), step, voice, outputs, now_s=now_s)
    assert len(voice.holds) == len(sequences)


def test_state_is_handed_on(sequences, voice):
    assert begin(sequences, voice, start(1)) is None
    advance(sequences, voice, start(1), 5)
    kept = begin(sequences, voice, go_on(1), now_s=1)
    assert kept.replica is voice
    assert kept.state["before"].tolist() == [5]


def test_state_is_no_part_of_a_larger_array(sequences, voice):
    batch = np.zeros((2, 64, 128), np.float32)
    sequences.advance(key(1), start(1), voice, {"after": batch[:, 3:4]}, now_s=0)
    state = begin(sequences, voice, go_on(1)).state["before"]
    assert state.base is None and state.nbytes == batch.nbytes // 64


def test_interleaved(sequences, voice):
    for name, value in ((1, 10), ("1", 20)):
        begin(sequences, voice, start(name))
        advance(sequences, voice, start(name), value)
    assert begin(sequences, voice, go_on(1)).state["before"] == 10
    assert begin(sequences, voice, go_on("1")).state["before"] == 20


@pytest.mark.parametrize("other", [{"model": "other"}, {"scope": "bob"}])
def test_neither_models_nor_callers_share_sequences(sequences, voice, other):
    advance(sequences, voice, start(1), 5)
    with pytest.raises(SequenceLost):
        begin(sequences, voice, go_on(1), **other)


def test_end_forgets(sequences, voice):
    advance(sequences, voice, start(1), 5)
    advance(sequences, voice, end(1), 6)
    assert len(sequences) == 0
    with pytest.raises(SequenceLost, match=r"sequence 1 of 'voice' has no state here.*again with sequence_start"):
        begin(sequences, voice, go_on(1))


def test_one_request_may_be_a_whole_sequence(sequences, voice):
    step = Step(1, start=True, end=True)
    assert begin(sequences, voice, step) is None
    advance(sequences, voice, step, 5)
    assert len(sequences) == 0


def test_a_failed_request_leaves_the_state(sequences, voice):
    advance(sequences, voice, start(1), 5)
    begin(sequences, voice, go_on(1), now_s=1)
    assert begin(sequences, voice, go_on(1), now_s=2).state["before"] == 5


def test_a_failed_start_leaves_nothing(sequences, voice):
    advance(sequences, voice, start(1), 5)
    begin(sequences, voice, start(1), now_s=1)
    with pytest.raises(SequenceLost):
        begin(sequences, voice, go_on(1), now_s=2)


def test_idle_sequences_are_forgotten(sequences, voice):
    advance(sequences, voice, start(1), 5, now_s=0)
    advance(sequences, voice, start(2), 5, now_s=6)
    assert begin(sequences, voice, go_on(1), now_s=10)
    with pytest.raises(SequenceLost):
        begin(sequences, voice, go_on(1), now_s=20.5)
    assert len(sequences) == len(voice.holds) == 1
    sequences.expire(16)
    assert len(voice.holds) == 1
    sequences.expire(16.5)
    assert len(voice.holds) == 0


def test_a_request_that_fails_is_no_silence(sequences, voice):
    advance(sequences, voice, start(1), 5, now_s=0)
    begin(sequences, voice, go_on(1), now_s=9)
    assert begin(sequences, voice, go_on(1), now_s=18).state["before"] == 5


async def test_a_sequence_is_not_idle_while_it_is_computed(sequences, voice):
    advance(sequences, voice, start(1), 5, now_s=0)
    async with sequences.turn(key(1)):
        begin(sequences, voice, go_on(1), now_s=1)
        sequences.expire(100)
        assert len(voice.holds) == 1
    sequences.expire(100)
    assert len(voice.holds) == 0


async def test_a_request_that_came_too_late_is_told_so_in_its_turn(sequences, voice):
    advance(sequences, voice, start(1), 5, now_s=0)
    async with sequences.turn(key(1)):
        with pytest.raises(SequenceLost):
            begin(sequences, voice, go_on(1), now_s=11)


def test_bounded_on_a_stream(sequences, voice):
    for name in (1, 2):
        begin(sequences, voice, start(name))
        advance(sequences, voice, start(name))
    with pytest.raises(InvalidInput, match="sequence 3 would be number 3 on this stream, expected 2 at most"):
        begin(sequences, voice, start(3))
    assert begin(sequences, voice, start(2)) is None
    advance(sequences, voice, start(2))
    # Those that nobody has gone on with make room.
    assert begin(sequences, voice, start(3), now_s=11) is None


def test_bounded_on_the_node(of_node, sequences, voice):
    """By the package, whether on streams or in unary calls."""
    advance_all = [(of_node, 1), (of_node, 2)]
    for whose, name in advance_all:
        begin(whose, voice, start(name))
        advance(whose, voice, start(name))
    with voice.holds.during():
        assert begin(sequences, voice, start(1)) is None
        sequences.advance(key(1), start(1), voice, {"after": np.zeros(1)}, now_s=0)
    with voice.holds.during(), pytest.raises(Overloaded, match="3 sequences of 'voice' are on this node") as caught:
        begin(of_node, voice, start(3))
    assert caught.value.retry_after_ms == 10_000
    # One that begins anew takes its own place.
    with voice.holds.during():
        assert begin(of_node, voice, start(2)) is None
    with voice.holds.during():
        assert begin(of_node, voice, start(3), now_s=11) is None


def test_who_holds_a_sequence(sequences, voice):
    assert sequences.holder(key(1), go_on(1)) is None
    advance(sequences, voice, start(1), 5)
    assert sequences.holder(key(1), go_on(1)) is voice
    assert sequences.holder(key(1), start(1)) is None
    assert sequences.holder(key(2), go_on(2)) is None
    assert sequences.holder(key(1, scope="bob"), go_on(1)) is None


async def test_turns_are_taken_in_order(sequences):
    order = []
    first = asyncio.Event()

    async def step(number):
        async with sequences.turn(key(1)):
            order.append(f"{number} begins")
            await first.wait()
            order.append(f"{number} ends")

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(step(number))
        await asyncio.sleep(0)
        # Another sequence waits for none of them.
        async with sequences.turn(key(2)), sequences.turn(key(1, scope="bob")):
            assert order == ["0 begins"]
        first.set()
    assert order == [f"{number} {what}" for number in range(3) for what in ("begins", "ends")]


@given(st.lists(st.integers(0, 4), unique=True, max_size=5), st.booleans())
def test_who_leaves_the_line_holds_nobody_up(leaving, fails):
    async def run():
        sequences, done, gate = Sequences(), [], asyncio.Event()

        async def step(number):
            async with sequences.turn(key(1)):
                await gate.wait()
                if fails and number == 2:
                    raise InvalidInput("no")
                done.append(number)

        tasks = [asyncio.create_task(step(number)) for number in range(5)]
        await asyncio.sleep(0)
        for number in leaving:
            tasks[number].cancel()
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert done == [n for n in range(5) if n not in leaving and not (fails and n == 2)]
        assert not sequences._turns

    asyncio.run(run())


def test_another_version_may_keep_up_with_a_sequence_and_holds_nothing(sequences, voice):
    other = SimpleNamespace(package=PACKAGE, name="voice", holds=Holds(lambda: 0.0))
    outputs = {"y": np.zeros(1, np.float32), "after": np.full(1, 7.0, np.float32)}
    begin(sequences, voice, start(1))
    # Before there is a sequence there is nothing to keep up with.
    sequences.keep_spare(key(1), other, outputs)
    assert sequences.spare(key(1), now_s=0.0) is None
    advance(sequences, voice, start(1), 5.0)
    sequences.keep_spare(key(1), other, outputs)
    spare = sequences.spare(key(1), now_s=0.0)
    assert spare.replica is other and spare.state["before"].tolist() == [7.0]
    outputs["after"][0] = 9.0
    assert spare.state["before"].tolist() == [7.0]
    assert len(other.holds) == 0
    # Its own state is still that of the version that began it.
    assert begin(sequences, voice, go_on(1)).state["before"].tolist() == [5.0]
    assert sequences.spare(key(1), now_s=5.0) is spare
    assert sequences.spare(key(1), now_s=10.1) is None
    sequences.hand_over(key(1))
    assert (len(voice.holds), len(other.holds)) == (0, 1)
    assert sequences.begin(key(1), go_on(1), other, now_s=0.0).state["before"].tolist() == [7.0]
    advance(sequences, voice, go_on(1), 5.0)
    sequences.keep_spare(key(1), other, outputs)
    # One that failed a step cannot go on.
    sequences.keep_spare(key(1), other, None)
    assert sequences.spare(key(1), now_s=0.0) is None
    advance(sequences, voice, end(1))
    sequences.keep_spare(key(1), other, outputs)
    assert len(sequences) == 0
