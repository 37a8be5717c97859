"""State of sequences on one stream: who has it, how long, how many."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_agent.serving.replica import Replica, ReplicaConfig
from nearmesh_agent.serving.sequences import Step, StreamSequences, step_of
from tritonclient.grpc import service_pb2

from nearmesh.errors import InvalidInput, SequenceLost
from nearmesh.package import Sequence, State
from tests.gated_engine import Gate
from tests.tiny_models import package, spec

PACKAGE = package(
    "voice",
    [spec("x", "FP32", 1), spec("before", "FP32", 1)],
    [spec("y", "FP32", 1), spec("after", "FP32", 1)],
    sequence=Sequence(state=(State(input="before", output="after", shape=(1,)),), idle_s=10),
)


VOICE = Replica(PACKAGE, "sha256:1", Gate(), config=ReplicaConfig())


def outputs(value):
    return {"y": np.zeros(1, np.float32), "after": np.full(1, value, np.float32)}


def start(name):
    return Step(name, start=True, end=False)


def go_on(name):
    return Step(name, start=False, end=False)


def end(name):
    return Step(name, start=False, end=True)


@pytest.fixture
def sequences():
    found = StreamSequences(most=2)
    yield found
    found.close()
    assert len(VOICE.holds) == 0


def advance(sequences, step, value, now_s=0.0):
    sequences.advance(VOICE, step, outputs(value), now_s=now_s)
    assert len(VOICE.holds) == len(sequences)


def test_state_is_handed_on(sequences):
    assert sequences.begin("voice", start(1), now_s=0) is None
    advance(sequences, start(1), 5)
    kept = sequences.begin("voice", go_on(1), now_s=1)
    assert kept.replica is VOICE
    assert kept.state["before"].tolist() == [5]


def test_interleaved(sequences):
    for name, value in ((1, 10), ("one", 20)):
        sequences.begin("voice", start(name), now_s=0)
        advance(sequences, start(name), value)
    assert sequences.begin("voice", go_on(1), now_s=0).state["before"] == 10
    assert sequences.begin("voice", go_on("one"), now_s=0).state["before"] == 20


def test_models_share_no_sequences(sequences):
    advance(sequences, start(1), 5)
    with pytest.raises(SequenceLost):
        sequences.begin("other", go_on(1), now_s=0)


def test_end_forgets(sequences):
    advance(sequences, start(1), 5)
    advance(sequences, end(1), 6)
    assert len(sequences) == 0
    with pytest.raises(SequenceLost, match=r"has no state on this stream.*start it again with sequence_start"):
        sequences.begin("voice", go_on(1), now_s=0)


def test_one_request_may_be_a_whole_sequence(sequences):
    step = Step(1, start=True, end=True)
    assert sequences.begin("voice", step, now_s=0) is None
    advance(sequences, step, 5)
    assert len(sequences) == 0


def test_a_failed_request_leaves_the_state(sequences):
    advance(sequences, start(1), 5)
    sequences.begin("voice", go_on(1), now_s=1)
    assert sequences.begin("voice", go_on(1), now_s=2).state["before"] == 5


def test_a_failed_start_leaves_nothing(sequences):
    advance(sequences, start(1), 5)
    sequences.begin("voice", start(1), now_s=1)
    with pytest.raises(SequenceLost):
        sequences.begin("voice", go_on(1), now_s=2)


def test_idle_sequences_are_forgotten(sequences):
    advance(sequences, start(1), 5, now_s=0)
    advance(sequences, start(2), 5, now_s=6)
    assert sequences.begin("voice", go_on(1), now_s=10)
    with pytest.raises(SequenceLost):
        sequences.begin("voice", go_on(1), now_s=10.5)
    assert len(sequences) == 1


def test_bounded_in_number(sequences):
    for name in (1, 2):
        sequences.begin("voice", start(name), now_s=0)
        advance(sequences, start(name), 0)
    with pytest.raises(InvalidInput, match="would be number 3 on this stream, expected 2 at most"):
        sequences.begin("voice", start(3), now_s=0)
    assert sequences.begin("voice", start(2), now_s=0) is None


def test_who_holds_a_sequence(sequences):
    going_on = {"sequence_id": ("int64_param", 1)}
    assert sequences.holder(request(**going_on)) is None
    advance(sequences, start(1), 5)
    assert sequences.holder(request(**going_on)) is VOICE
    assert sequences.holder(request(**going_on, sequence_start=("bool_param", True))) is None
    assert sequences.holder(request(sequence_id=("int64_param", 2))) is None
    assert sequences.holder(request()) is None
    sequences.begin("voice", start(2), now_s=100)
    # The first was silent for too long.
    assert len(VOICE.holds) == 0


def request(**parameters):
    message = service_pb2.ModelInferRequest(model_name="voice")
    for name, (kind, value) in parameters.items():
        setattr(message.parameters[name], kind, value)
    return message


@pytest.mark.parametrize(
    ("parameters", "step"),
    [
        ({}, None),
        ({"sequence_id": ("int64_param", 0)}, None),
        ({"sequence_id": ("string_param", "")}, None),
        ({"sequence_id": ("int64_param", 7)}, Step(7, False, False)),
        ({"sequence_id": ("uint64_param", 2**63)}, Step(2**63, False, False)),
        ({"sequence_id": ("string_param", "a"), "sequence_start": ("bool_param", True)}, Step("a", True, False)),
        ({"sequence_id": ("int64_param", 7), "sequence_end": ("bool_param", True)}, Step(7, False, True)),
    ],
)
def test_parameters(parameters, step):
    assert step_of(request(**parameters)) == step


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"sequence_id": ("bool_param", True)}, "'sequence_id' is bool_param; expected an integer or a string"),
        (
            {"sequence_id": ("int64_param", 1), "sequence_start": ("int64_param", 1)},
            "'sequence_start' is int64_param; expected a bool",
        ),
    ],
)
def test_wrong_parameters(parameters, said):
    with pytest.raises(InvalidInput, match=said):
        step_of(request(**parameters))
