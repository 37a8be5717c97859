"""Which requests a package takes: every mistake is named with what was expected and what was given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nearmesh_agent.serving import inputs, wire
from nearmesh_agent.serving.inputs import Intake
from onnxruntime import InferenceSession
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.errors import InvalidInput, Unsupported
from nearmesh.package import Batching, Sequence, State, TensorSpec
from tests.tiny_models import SAMPLES, identity, package, spec

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


# A recurrent model: its state has rows along axis 1, and what has no rows at all is the same for all of them.
BATCHED_STATE = package(
    "batched-voice",
    [
        spec("sound", "FP32", -1, 4),
        TensorSpec(name="state", dtype="FP32", shape=(2, -1, 5), batch_axis=1),
        TensorSpec(name="rate", dtype="INT64", shape=(), batch_axis=-1),
    ],
    [spec("speech", "FP32", -1, 1), TensorSpec(name="state_out", dtype="FP32", shape=(2, -1, 5), batch_axis=1)],
    batching=Batching(max_batch=4),
    sequence=Sequence(state=(State(input="state", output="state_out", shape=(2, 1, 5)),)),
)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def request(outputs=(), **arrays):
    return tensors.encode_request("m", arrays, outputs=outputs)


def read(described, message, **more):
    return Intake(described).read(wire.received(message), **more)


def test_all_given():
    found = read(PACKAGE, request(scale=np.array(2), image=zeros(1, 3, 5), tag=np.array([b"t"], object)))
    assert list(found) == ["image", "scale", "tag"]
    assert found["scale"] == 2


def test_what_is_optional_is_zero():
    found = read(PACKAGE, request(image=zeros(1, 3, 5)))
    assert found["scale"].shape == () and found["scale"] == 0 and found["scale"].dtype == np.int64
    assert found["tag"].tolist() == [b""]


def test_optional_follows_the_rows():
    assert read(BATCHED, request(left=zeros(3, 2)))["right"].shape == (3, 2)


def test_state_starts_at_zero_and_is_fed():
    assert read(STATEFUL, request(sound=zeros(1, 8)))["state"].shape == (2, 1, 4)
    held = {"state": np.ones((2, 1, 4), np.float32)}
    assert read(STATEFUL, request(sound=zeros(1, 8)), held=held)["state"] is held["state"]


def test_state_starts_with_as_many_rows_as_the_request():
    found = read(BATCHED_STATE, request(sound=zeros(3, 4), rate=np.array(16000)))
    assert found["state"].shape == (2, 3, 5)
    held = {"state": np.ones((2, 1, 5), np.float32)}
    with pytest.raises(InvalidInput, match="'sound' has 3, 'state' has 1; expected the same number"):
        read(BATCHED_STATE, request(sound=zeros(3, 4), rate=np.array(16000)), held=held)


def test_nothing_is_made_for_rows_that_are_too_many():
    """2^20 rows of nothing would become as many rows of zeros."""
    described = package(
        "pair",
        [spec("left", "FP32", -1, -1), spec("right", "FP32", -1, 1 << 30, optional=True)],
        [spec("out", "FP32", -1)],
        batching=Batching(max_batch=4),
    )
    with pytest.raises(InvalidInput, match="1048576 rows given, expected 1 to 4"):
        read(described, request(left=zeros(1 << 20, 0)))


def test_state_may_be_kept_by_the_client():
    given = np.ones((2, 1, 4), np.float32)
    assert read(STATEFUL, request(sound=zeros(1, 8), state=given))["state"].sum() == 8


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
        (BATCHED, {"left": zeros(5, 2)}, "'left': 5 rows given, expected 1 to 4"),
        (BATCHED, {"left": zeros(0, 2)}, "'left': 0 rows given, expected 1 to 4"),
    ],
)
def test_refusals(described, arrays, said):
    with pytest.raises(InvalidInput) as caught:
        read(described, request(**arrays))
    assert said in caught.value.message


def test_twice():
    message = request(image=zeros(1, 3, 1))
    message.inputs.append(message.inputs[0])
    with pytest.raises(InvalidInput, match="'image' is given twice, expected once"):
        read(PACKAGE, message)


def test_the_node_keeps_what_a_sequence_holds():
    with pytest.raises(InvalidInput, match="'state' is given; within a sequence the node keeps it"):
        read(STATEFUL, request(sound=zeros(1, 8), state=zeros(2, 1, 4)), held={"state": zeros(2, 1, 4)})


def test_negative_and_many_dimensions():
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name="image", datatype="FP32", shape=[-1, 3, 1])
    with pytest.raises(InvalidInput, match="has the dimension -1, expected 0 or more"):
        read(PACKAGE, message)
    message.inputs[0].shape[:] = [1] * 100_000
    with pytest.raises(InvalidInput, match="shape of 100000 dimensions given"):
        read(PACKAGE, message)


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


# The quick way, which nearly all requests take, and the careful one.


def both(described, received):
    """What each way makes of a request: arrays, or an error's class and words. The quick way may also pass."""
    intake = Intake(described)
    quick = intake._quick(received)
    try:
        careful = intake._careful(received, inputs.NOTHING)
    except (InvalidInput, Unsupported) as error:
        careful = error
    return quick, careful


def agree(described, received):
    quick, careful = both(described, received)
    if quick is None:
        return False
    assert isinstance(careful, dict), careful
    assert quick.keys() == careful.keys()
    for name, array in quick.items():
        assert (array.shape, array.dtype) == (careful[name].shape, careful[name].dtype)
        assert array.tobytes() == careful[name].tobytes()
    return True


@pytest.mark.parametrize(
    ("described", "arrays"),
    [
        (BATCHED, {"left": zeros(3, 2), "right": zeros(3, 2)}),
        (BATCHED, {"right": zeros(4, 2), "left": zeros(4, 2)}),
        (BATCHED_STATE, {"sound": zeros(2, 4), "state": zeros(2, 2, 5), "rate": np.array(16000)}),
        (BATCHED_STATE, {"rate": np.array(16000), "state": zeros(2, 2, 5), "sound": zeros(2, 4)}),
        (STATEFUL, {"sound": zeros(1, 8), "state": zeros(2, 1, 4)}),
    ],
)
def test_whole_requests_take_the_quick_way(described, arrays):
    assert agree(described, wire.received(request(**arrays)))


def test_what_the_quick_way_leaves_to_the_careful_one():
    typed = service_pb2.ModelInferRequest()
    typed.inputs.add(name="left", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    shared = request(left=zeros(1, 2), right=zeros(1, 2))
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    for message in (typed, shared, request(left=zeros(1, 2)), request(image=zeros(1, 3, 1))):
        assert both(BATCHED, wire.received(message))[0] is None


KINDS = ["FP32", "INT8", "FP16", "BOOL", "BYTES"]
DIMS = st.lists(st.sampled_from([-1, 0, 1, 2, 3]), max_size=3).map(tuple)
SPECS = st.builds(
    lambda dtype, shape, axis, optional: (dtype, shape, min(axis, len(shape) - 1), optional),
    st.sampled_from(KINDS),
    DIMS,
    st.integers(-1, 2),
    st.booleans(),
)
# How a right request is made wrong, or merely unusual.
SPOILT = st.sampled_from(["", "", "name", "twice", "dtype", "shape", "negative", "huge", "short", "long", "contents"])


def spoil(message, how, at):
    tensor = message.inputs[at]
    if how == "name":
        tensor.name = "stranger"
    elif how == "twice":
        message.inputs.append(tensor)
        message.raw_input_contents.append(message.raw_input_contents[at])
    elif how == "dtype":
        tensor.datatype = "INT64" if tensor.datatype != "INT64" else "UINT64"
    elif how in ("shape", "negative", "huge"):
        tensor.shape.append({"shape": 1, "negative": -1, "huge": 1 << 40}[how])
    elif how == "short":
        message.raw_input_contents[at] = message.raw_input_contents[at][:-1]
    elif how == "long":
        message.raw_input_contents[at] += b"\0"
    elif how == "contents":
        tensor.contents.SetInParent()


@given(
    st.lists(SPECS, min_size=1, max_size=3),
    st.integers(0, 4),
    st.lists(st.integers(0, 3), min_size=9, max_size=9),
    SPOILT,
    st.randoms(use_true_random=False),
)
@example([("FP32", (0, -1), 0, False)], 0, [0, 3] + [1] * 7, "", None)
@example([("FP32", (-1, 2), 0, False), ("INT8", (), -1, False)], 4, [2] * 9, "", None)
def test_both_ways_agree(made, max_batch, sizes, how, random):
    specs = [
        TensorSpec(name=f"i{n}", dtype=dtype, shape=shape, batch_axis=axis, optional=optional)
        for n, (dtype, shape, axis, optional) in enumerate(made)
    ]
    described = package("any", specs, [spec("out", "FP32", -1)], batching=Batching(max_batch=max_batch))
    sizes = iter(sizes)
    arrays = {
        each.name: np.resize(SAMPLES[each.dtype], [next(sizes) if dim == -1 else dim for dim in each.shape])
        for each in specs
    }
    message = request(**arrays)
    if how:
        spoil(message, how, random.randrange(len(specs)))
    agree(described, wire.received(message))


@given(st.lists(st.integers(-1, 3), max_size=3), st.integers(0, 80))
def test_sizes_that_are_merely_declared(shape, size):
    message = service_pb2.ModelInferRequest(raw_input_contents=[bytes(size)])
    message.inputs.add(name="x", datatype="FP32", shape=shape)
    for dims in ((-1, -1), (-1, 2), (0, -1), ()):
        agree(package("any", [spec("x", "FP32", *dims)], [spec("y", "FP32", -1)]), wire.received(message))


def test_an_empty_tensor_is_not_believed_either_way():
    """Its other dimensions could multiply to what nobody can allocate."""
    message = service_pb2.ModelInferRequest(raw_input_contents=[b""])
    message.inputs.add(name="x", datatype="FP32", shape=[0, 1 << 40])
    described = package("any", [spec("x", "FP32", 0, -1)], [spec("y", "FP32", -1)])
    with pytest.raises(InvalidInput, match="is empty, but its other dimensions multiply to"):
        read(described, message)


@pytest.mark.parametrize("dtype", [dtype for dtype in SAMPLES if dtype != "BYTES"])
@pytest.mark.parametrize("held", [inputs.NOTHING, {"state": zeros(1)}])
def test_tensors_that_begin_anywhere_are_whole_for_the_engine(tmp_path, dtype, held):
    """Cut out of a message, contents begin at any address; on both ways."""
    sample = np.resize(SAMPLES[dtype], (101, 3))
    described = identity(tmp_path, dtype)
    shifted = memoryview(b"?" + sample.tobytes())[1:]
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name="x", datatype=dtype, shape=sample.shape)
    found = Intake(described).read(wire.Received(message, [shifted]), held=held)["x"]
    assert found.flags.aligned and found.tobytes() == sample.tobytes()
    session = InferenceSession(str(tmp_path / "fp32.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": found})[0].tobytes() == sample.tobytes()


def test_what_is_aligned_is_not_copied():
    data = zeros(101, 3).tobytes()
    message = service_pb2.ModelInferRequest()
    message.inputs.add(name="x", datatype="FP32", shape=[101, 3])
    described = package("one", [spec("x", "FP32", -1, 3)], [spec("y", "FP32", -1, 3)])
    found = Intake(described).read(wire.Received(message, [data]))["x"]
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
