"""Which requests a package takes: every mistake is named with what was expected and what was given."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_agent.serving import inputs
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.errors import InvalidInput, Unsupported
from nearmesh.package import Batching, Sequence, State
from tests.tiny_models import package, spec

PACKAGE = package(
    "reader",
    [spec("image", "FP32", -1, 3, -1), spec("scale", "INT64", optional=True), spec("tag", "BYTES", -1, optional=True)],
    [spec("text", "BYTES", -1), spec("score", "FP32", -1)],
)
BATCHED = package(
    "pair",
    [spec("left", "FP32", -1, 2), spec("right", "FP32", -1, 2, optional=True)],
    [spec("out", "FP32", -1)],
    batching=Batching(max_batch=4),
)
STATEFUL = package(
    "voice",
    [spec("sound", "FP32", 1, -1), spec("state", "FP32", 2, 1, -1)],
    [spec("speech", "FP32", 1, 1), spec("state_out", "FP32", 2, 1, -1)],
    sequence=Sequence(state=(State(input="state", output="state_out", shape=(2, 1, 4)),)),
)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def request(outputs=(), **arrays):
    return tensors.encode_request("m", arrays, outputs=outputs)


def test_all_given():
    found = inputs.read(PACKAGE, request(scale=np.array(2), image=zeros(1, 3, 5), tag=np.array([b"t"], object)))
    assert list(found) == ["image", "scale", "tag"]
    assert found["scale"] == 2


def test_what_is_optional_is_zero():
    found = inputs.read(PACKAGE, request(image=zeros(1, 3, 5)))
    assert found["scale"].shape == () and found["scale"] == 0 and found["scale"].dtype == np.int64
    assert found["tag"].tolist() == [b""]


def test_optional_follows_the_rows():
    assert inputs.read(BATCHED, request(left=zeros(3, 2)))["right"].shape == (3, 2)


def test_state_starts_at_zero_and_is_fed():
    assert inputs.read(STATEFUL, request(sound=zeros(1, 8)))["state"].shape == (2, 1, 4)
    held = {"state": np.ones((2, 1, 4), np.float32)}
    assert inputs.read(STATEFUL, request(sound=zeros(1, 8)), held=held)["state"] is held["state"]


def test_state_may_be_kept_by_the_client():
    given = np.ones((2, 1, 4), np.float32)
    assert inputs.read(STATEFUL, request(sound=zeros(1, 8), state=given))["state"].sum() == 8


@pytest.mark.parametrize(
    ("described", "arrays", "said"),
    [
        (PACKAGE, {}, "input 'image' is missing; 'reader' expects 'image'"),
        (PACKAGE, {"picture": zeros(1, 3, 1)}, "input 'picture' is given; 'reader' expects 'image', 'scale', 'tag'"),
        (PACKAGE, {"image": zeros(1, 3, 1, dtype=np.float64)}, "datatype 'FP64' given, expected FP32"),
        (PACKAGE, {"image": zeros(1, 4, 1)}, "shape [1, 4, 1] given, expected [-1, 3, -1] (-1 is any size)"),
        (PACKAGE, {"image": zeros(1, 3)}, "shape [1, 3] given, expected [-1, 3, -1]"),
        (PACKAGE, {"image": zeros(1, 3, 1), "scale": zeros(1, dtype=np.int64)}, "shape [1] given, expected []"),
        (BATCHED, {"left": zeros(2, 2), "right": zeros(3, 2)}, "'left' has 2, 'right' has 3; expected the same"),
        (BATCHED, {"left": zeros(5, 2)}, "'left': 5 rows (axis 0) given, expected 1 to 4"),
        (BATCHED, {"left": zeros(0, 2)}, "'left': 0 rows (axis 0) given, expected 1 to 4"),
    ],
)
def test_refusals(described, arrays, said):
    with pytest.raises(InvalidInput) as caught:
        inputs.read(described, request(**arrays))
    assert said in caught.value.message


def test_twice():
    message = request(image=zeros(1, 3, 1))
    message.inputs.append(message.inputs[0])
    with pytest.raises(InvalidInput, match="'image' is given twice, expected once"):
        inputs.read(PACKAGE, message)


def test_the_node_keeps_what_a_sequence_holds():
    with pytest.raises(InvalidInput, match="'state' is given; within a sequence the node keeps it"):
        inputs.read(STATEFUL, request(sound=zeros(1, 8), state=zeros(2, 1, 4)), held={"state": zeros(2, 1, 4)})


def test_negative_and_many_dimensions():
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name="image", datatype="FP32", shape=[-1, 3, 1])
    with pytest.raises(InvalidInput, match="has the dimension -1, expected 0 or more"):
        inputs.read(PACKAGE, message)
    message.inputs[0].shape[:] = [1] * 100_000
    with pytest.raises(InvalidInput, match="shape of 100000 dimensions given"):
        inputs.read(PACKAGE, message)


def test_rows():
    assert inputs.rows(BATCHED, {"left": zeros(3, 2)}) == 3
    assert inputs.rows(PACKAGE, {"image": zeros(3, 3, 1)}) == 1


def test_outputs():
    assert inputs.requested_outputs(PACKAGE, request()) == ["text", "score"]
    assert inputs.requested_outputs(PACKAGE, request(outputs=["score"])) == ["score"]
    assert inputs.requested_outputs(STATEFUL, request(), hidden=["state_out"]) == ["speech"]
    assert inputs.requested_outputs(STATEFUL, request(outputs=["state_out"]), hidden=["state_out"]) == ["state_out"]


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (["text", "words"], "output 'words' is asked for; 'reader' has 'text', 'score'"),
        (["text", "text"], "output 'text' is asked for twice"),
    ],
)
def test_wrong_outputs(outputs, said):
    with pytest.raises(InvalidInput, match=said):
        inputs.requested_outputs(PACKAGE, request(outputs=outputs))


@pytest.mark.parametrize(
    ("parameter", "said"), [("classification", "classification is not"), ("shared_memory_region", "shared memory is")]
)
def test_output_parameters(parameter, said):
    message = request(outputs=["text"])
    message.outputs[0].parameters[parameter].int64_param = 1
    with pytest.raises(Unsupported, match=said):
        inputs.requested_outputs(PACKAGE, message)
