"""Messages between bytes and tensors: cutting and putting together mean what parsing and serializing mean."""

from __future__ import annotations

import time

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from nearmesh_agent.serving import wire
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.errors import InvalidInput
from tests.tiny_models import SAMPLES

Request = service_pb2.ModelInferRequest
FILLER = b"\x42" * wire.LARGE_BYTES


def large(**arrays):
    """A request that is cut, with every other field of the message before and after its contents."""
    request = tensors.encode_request("m", {"x": np.zeros(wire.LARGE_BYTES, np.uint8), **arrays}, outputs=["y"])
    request.id = "r-1"
    request.parameters["sequence_id"].int64_param = 7
    return request


def means(found):
    """What a request says, however it was read."""
    message = Request()
    message.CopyFrom(found.message)
    assert not message.raw_input_contents or [*message.raw_input_contents] == [*found.raw]
    del message.raw_input_contents[:]
    return message, [bytes(part) for part in found.raw]


def outcome(read, data):
    """The request that bytes stand for, as a message; None where they stand for none."""
    try:
        return read(data)
    except DecodeError:
        return None


def check(data):
    whole = outcome(Request.FromString, data)
    found = outcome(wire.read, data)
    if whole is None:
        assert found is None
    else:
        assert found is not None
        assert means(found) == means(wire.received(whole))
        assert found.size_bytes == len(data)


@given(st.integers(0, 400))
def test_the_beginning_of_a_request_says_all_but_its_contents(taken):
    """As soon as the first contents have begun, and nothing before."""
    request = large(z=np.ones(3))
    data = request.SerializeToString()
    begins = data.index(bytes(wire.LARGE_BYTES))
    begun = memoryview(data)[: begins - 10 + taken]
    found = wire.head(begun)
    if len(begun) < begins:
        assert found is None and wire.contents_at(begun) == 0
    else:
        del request.raw_input_contents[:]
        assert found == request and wire.contents_at(begun) == begins


@given(st.binary(max_size=100))
def test_the_beginning_of_something_else_says_nothing(data):
    begun = memoryview(data)
    assert wire.contents_at(begun) <= len(data)
    assert wire.head(begun) is None or isinstance(wire.head(begun), Request)


@pytest.mark.parametrize("size", [0, 1, wire.LARGE_BYTES - 200, wire.LARGE_BYTES, 5 * wire.LARGE_BYTES])
def test_read_means_what_parsing_means(size):
    request = tensors.encode_request("m", {"x": np.arange(size) % 7, "y": np.ones((2, 3))}, request_id="a")
    check(request.SerializeToString())


def test_large_contents_are_not_copied():
    data = large(z=np.arange(6, dtype=np.int32)).SerializeToString()
    found = wire.read(data)
    assert all(isinstance(part, memoryview) and part.obj is data for part in found.raw)
    assert found.message.id == "r-1" and not found.message.raw_input_contents
    decoded = tensors.decode("input", found.message.inputs, found.raw)
    assert decoded["z"].tolist() == [*range(6)]


def test_typed_contents_stay_in_the_message():
    request = Request(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[8000]).contents.fp32_contents.extend([1.5] * 8000)
    found = wire.read(request.SerializeToString())
    assert len(found.raw) == 0
    assert len(found.message.inputs[0].contents.fp32_contents) == 8000


LARGE = large().SerializeToString()
HEAD = LARGE[: LARGE.index(b"\x3a\x80\x80\x01")]


@given(st.integers(0, len(LARGE)))
@example(len(LARGE) - 1)
@example(len(HEAD) + 1)
def test_truncated(length):
    check(LARGE[:length] + b"")
    # Long enough to be cut, and broken behind its contents.
    check(LARGE + LARGE[:length])


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated(changes):
    # The head of the message, its contents' tag and length, and what follows them.
    data = bytearray(LARGE[-40:] + LARGE + LARGE[:200])
    for at, value in changes:
        data[at if at < 200 else len(data) - at + 199] = value
    check(bytes(data))


@given(st.binary(max_size=60), st.binary(max_size=60))
# Tags and lengths that are longer than they need be, groups, tags of a known field with another type, field 0.
@example(b"\xba\x00\x01a", b"\xba\x80\x80\x80\x80\x00\x01a")
@example(b"\xba\x80\x80\x80\x10\x01a", b"\x3a\x81\x80\x80\x80\x80\x00a")
@example(b"\x38\x05\x3d\x00\x00\x00\x00\x39\x00\x00\x00\x00\x00\x00\x00\x00", b"\x3b\x3c")
@example(b"\x00\x01", b"")
@example(b"", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"", b"\x3a\x81\x80\x80\x80\x80\x80\x80\x80\x80\x02a")
@example(b"", b"\x0a\x02\xff\xfe")
def test_anything_around_contents(before, after):
    check(before + HEAD + b"\x3a\x80\x80\x01" + FILLER + after)


FIELD = st.tuples(
    st.sampled_from([1, 2, 3, 4, 5, 6, 7, 15]), st.sampled_from([0, 1, 2, 3, 4, 5, 7]), st.binary(max_size=12)
)


@given(st.lists(FIELD, max_size=12), st.randoms(use_true_random=False))
def test_fields_in_any_order(fields, random):
    parts = [b"\x3a\x80\x80\x01" + FILLER]
    for number, kind, content in fields:
        length = bytes([len(content)]) if kind == 2 else b""
        parts.append(bytes([number << 3 | kind]) + length + content)
    random.shuffle(parts)
    check(b"".join(parts))


@pytest.mark.parametrize("piece", [b"\x3a\x00", b"\x78\x01", b"\x2a\x00"])
def test_a_message_of_very_many_fields_is_left_to_the_whole_parser(piece):
    data = piece * 2_000_000
    cpu_s = time.thread_time()
    assert wire._cut(data) is None
    # Walked through here, they would hold the event loop up for seconds.
    assert time.thread_time() - cpu_s < 0.5


# Answers.


def responses(arrays):
    """The same answer, both ways."""
    plain = service_pb2.ModelInferResponse(model_name="m", model_version="1", id="r-1")
    plain.parameters["nearmesh_node"].string_param = "node-1"
    other = service_pb2.ModelInferResponse()
    other.CopyFrom(plain)
    tensors.add_outputs(plain, arrays)
    return plain, wire.respond(other, arrays)


def sized(sample):
    return np.ascontiguousarray(np.resize(sample, (wire.LARGE_BYTES // 8, 3, 8)))


@pytest.mark.parametrize("dtype", SAMPLES)
@pytest.mark.parametrize(
    "lay",
    [
        lambda array: array,
        lambda array: array[::2],
        lambda array: array[:, ::-1, 1:7],
        lambda array: array.T,
        lambda array: np.asfortranarray(array),
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        lambda array: np.broadcast_to(array[:1], array.shape),
    ],
    ids=["plain", "strided", "reversed", "transposed", "fortran", "big-endian", "broadcast"],
)
def test_answers_of_every_kind(dtype, lay):
    array = lay(sized(SAMPLES[dtype]))
    plain, found = responses({"y": array, "few": SAMPLES[dtype]})
    assert wire.write(found) == found if isinstance(found, bytes) else dtype == "BYTES"
    assert wire.parsed(found) == plain
    assert service_pb2.ModelInferResponse.FromString(wire.write(found)) == plain
    assert wire.size_bytes(found) == len(wire.write(found))


@pytest.mark.parametrize(
    "odd", [np.zeros((0, 4), np.float32), np.zeros((3, 0)), np.array(7, np.int64), np.array(True), np.array(1.5, ">f4")]
)
def test_odd_shapes_beside_large_ones(odd):
    plain, found = responses({"odd": odd, "y": np.zeros(wire.LARGE_BYTES), "last": odd})
    assert isinstance(found, bytes)
    assert wire.parsed(found) == plain
    assert wire.parsed(found).outputs[0].shape == list(odd.shape)


def test_small_answers_and_strings_are_messages():
    for arrays in ({}, {"y": np.zeros(3)}, {"y": np.zeros(wire.LARGE_BYTES), "text": np.array(["a"])}):
        plain, found = responses(arrays)
        assert found == plain
        assert wire.write(found) == plain.SerializeToString()


@pytest.mark.parametrize("dtype", [np.complex64, "datetime64[s]", np.longdouble])
def test_what_the_protocol_cannot_carry(dtype):
    with pytest.raises(InvalidInput, match="has no counterpart"):
        wire.respond(service_pb2.ModelInferResponse(), {"y": np.zeros(wire.LARGE_BYTES, dtype)})


@given(st.integers(0, 2**35))
def test_lengths(value):
    assert wire._varint(wire._encoded(value) + b"\x01", 0)[0] == value
