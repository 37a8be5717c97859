"""OIP tensors: every dtype both ways, and every way in which a message can be wrong."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from nearmesh import tensors
from nearmesh.errors import InvalidInput, Unsupported
from tests.tiny_models import SAMPLES

FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def same(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype == object:
        return left.shape == right.shape and left.tolist() == right.tolist()
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def request(*inputs, raw=()) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=raw)
    for name, datatype, shape, contents in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents)
    return message


@pytest.mark.parametrize("datatype", SAMPLES)
def test_raw_there_and_back(datatype):
    message = tensors.encode_request("m", {"x": SAMPLES[datatype]}, version="2", request_id="7", outputs=["y"])
    parsed = service_pb2.ModelInferRequest.FromString(message.SerializeToString())

    assert (parsed.model_name, parsed.model_version, parsed.id) == ("m", "2", "7")
    assert [output.name for output in parsed.outputs] == ["y"]
    assert parsed.inputs[0].datatype == datatype
    assert same(tensors.decode_request(parsed)["x"], SAMPLES[datatype])


@pytest.mark.parametrize("datatype", FIELDS)
def test_typed_contents(datatype):
    sample = SAMPLES[datatype]
    contents = service_pb2.InferTensorContents(**{FIELDS[datatype]: sample.ravel().tolist()})
    assert same(tensors.decode_request(request(("x", datatype, sample.shape, contents)))["x"], sample)


@pytest.mark.parametrize("datatype", SAMPLES)
def test_response_there_and_back(datatype):
    response = service_pb2.ModelInferResponse()
    tensors.add_outputs(response, {"y": SAMPLES[datatype], "z": SAMPLES["FP32"]})
    found = tensors.decode_response(service_pb2.ModelInferResponse.FromString(response.SerializeToString()))
    assert list(found) == ["y", "z"]
    assert same(found["y"], SAMPLES[datatype])


@pytest.mark.parametrize("datatype", SAMPLES)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0, 2), (0,)])
def test_empty(datatype, shape):
    empty = np.empty(shape, SAMPLES[datatype].dtype)
    message = tensors.encode_request("m", {"x": empty})
    assert same(tensors.decode_request(message)["x"], empty)
    del message.raw_input_contents[:]
    assert same(tensors.decode_request(message)["x"], empty)


def test_scalar():
    assert tensors.decode_request(tensors.encode_request("m", {"x": np.array(3, np.int64)}))["x"] == 3


def test_fixed_size_contents_are_not_copied():
    data = np.arange(6, dtype=np.float32).tobytes()
    array = tensors.unpack("x", "FP32", [2, 3], data)
    assert not array.flags.writeable
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_bytes_are_as_triton_has_them():
    sample = SAMPLES["BYTES"]
    assert tensors.pack(sample) == serialize_byte_tensor(sample).item()


@pytest.mark.parametrize(
    "array", [np.array([["é", "b"]]), np.array([["é", "b"]], object), np.array([["é".encode(), b"b"]])]
)
def test_text_travels_as_utf_8(array):
    found = tensors.decode_request(tensors.encode_request("m", {"x": array}))["x"]
    assert found.tolist() == [["é".encode(), b"b"]]


@pytest.mark.parametrize("dtype", [">f4", ">i8", np.longlong, np.intc])
def test_other_spellings_of_a_dtype(dtype):
    array = np.array([[1, 2], [3, 4]], dtype)
    assert tensors.decode_request(tensors.encode_request("m", {"x": array}))["x"].tolist() == [[1, 2], [3, 4]]


def test_not_contiguous():
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T
    assert same(tensors.decode_request(tensors.encode_request("m", {"x": array}))["x"], array)


numeric = st.sampled_from([sample.dtype for name, sample in SAMPLES.items() if name != "BYTES"])


@given(st.data(), numeric)
def test_any_array_there_and_back(data, dtype):
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)))
    assert same(tensors.decode_request(tensors.encode_request("m", {"x": array}))["x"], array)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_there_and_back(items):
    array = np.empty(len(items), object)
    array[:] = items
    assert same(tensors.decode_request(tensors.encode_request("m", {"x": array}))["x"], array)


@given(
    st.sampled_from([*SAMPLES, "BF16", ""]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=6),
    st.binary(max_size=64),
)
def test_any_message_is_an_array_or_a_refusal(datatype, shape, data):
    try:
        array = tensors.unpack("x", datatype, shape, data)
    except InvalidInput as error:
        assert "'x'" in error.message
    else:
        assert list(array.shape) == shape
        assert tensors.pack(array) == data


HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "said"),
    [
        ("FP32", [2, 2], b"\0" * 15, "FP32 of shape [2, 2] is 16 bytes, given 15 bytes"),
        ("FP32", [2, 2], b"\0" * 17, "16 bytes, given 17 bytes"),
        ("FP32", [2], b"", "8 bytes, given 0 bytes"),
        ("FP32", [-1, 2], b"", "has the dimension -1, expected 0 or more"),
        ("UINT8", [HUGE, HUGE], b"\0", f"is {HUGE * HUGE} bytes, given 1 bytes"),
        ("UINT8", [2**32, 2**32], b"", f"is {2**64} bytes, given 0 bytes"),
        ("UINT8", [0, HUGE, HUGE], b"", "is empty, but its other dimensions multiply to"),
        ("UINT8", [1] * 65, b"\0", "65 dimensions given, expected 64 at most"),
        ("BF16", [1], b"\0\0", "'BF16' given, expected one of BOOL"),
        ("fp32", [1], b"\0\0\0\0", "'fp32' given"),
        ("", [1], b"", "'' given"),
        ("BOOL", [3], b"\0\1\2", "element 2 is 2, expected 0 or 1"),
        ("BYTES", [HUGE], b"\0" * 8, f"needs at least {4 * HUGE} bytes"),
        ("BYTES", [1], b"\0" * 3, "needs at least 4 bytes (4 of length for each of 1 elements), given 3 bytes"),
        ("BYTES", [1], struct.pack("<I", 5) + b"four", "element 0 of 1 is truncated"),
        ("BYTES", [2], struct.pack("<I", 5) + b"four", "element 0 of 2 is truncated"),
        ("BYTES", [2], struct.pack("<I", 4) + b"four", "element 1 of 2 is truncated"),
        ("BYTES", [1], b"\xff" * 8, f"a 4-byte length and {2**32 - 1} bytes, given 8 bytes"),
        ("BYTES", [1], struct.pack("<I", 4) + b"four+", "take 8 bytes, given 9 bytes"),
        ("BYTES", [0], b"\0", "take 0 bytes, given 1 bytes"),
    ],
)
def test_bad_raw_contents(datatype, shape, data, said):
    with pytest.raises(InvalidInput) as caught:
        tensors.unpack("x", datatype, shape, data)
    assert said in caught.value.message
    assert "'x'" in caught.value.message


Contents = service_pb2.InferTensorContents


@pytest.mark.parametrize(
    ("datatype", "shape", "contents", "said"),
    [
        ("FP32", [3], Contents(fp32_contents=[1, 2]), "is 3 elements, given 2 in fp32_contents"),
        ("FP32", [HUGE, HUGE], Contents(fp32_contents=[1, 2]), "given 2 in fp32_contents"),
        ("FP32", [2], Contents(), "is 2 elements, given 0"),
        ("FP32", [2], Contents(fp64_contents=[1, 2]), "fp64_contents given, expected fp32_contents for FP32"),
        ("FP32", [1], Contents(fp32_contents=[1], int_contents=[1]), "int_contents given, expected fp32_contents"),
        ("INT64", [1], Contents(int_contents=[1]), "int_contents given, expected int64_contents"),
        ("FP16", [1], Contents(fp32_contents=[1]), "expected raw contents, the only ones that can carry it"),
        ("FP16", [1], Contents(), "is 1 elements, given 0 in typed contents"),
        ("INT8", [2], Contents(int_contents=[1, 128]), "the value 128 is given, expected -128 to 127 for INT8"),
        ("UINT16", [1], Contents(uint_contents=[65536]), "expected 0 to 65535 for UINT16"),
        ("BYTES", [2], Contents(bytes_contents=[b"a"]), "is 2 elements, given 1 in bytes_contents"),
        ("INT32", [-4], Contents(int_contents=[1]), "has the dimension -4"),
    ],
)
def test_bad_typed_contents(datatype, shape, contents, said):
    with pytest.raises(InvalidInput) as caught:
        tensors.decode_request(request(("x", datatype, shape, contents)))
    assert said in caught.value.message


def test_raw_and_typed_together():
    message = request(("x", "FP32", [1], Contents(fp32_contents=[1])), raw=[b"\0" * 4])
    with pytest.raises(InvalidInput, match="raw and typed contents are both given"):
        tensors.decode_request(message)


@pytest.mark.parametrize("raw", [[b"\0" * 4], [b"\0" * 4] * 3])
def test_number_of_raw_contents(raw):
    message = request(("x", "FP32", [1], None), ("y", "FP32", [1], None), raw=raw)
    with pytest.raises(InvalidInput, match=f"{len(raw)} raw input contents given, expected 2"):
        tensors.decode_request(message)


def test_twice():
    message = request(("x", "FP32", [0], None), ("x", "FP32", [0], None))
    with pytest.raises(InvalidInput, match="'x' is given twice"):
        tensors.decode_request(message)


def test_shared_memory():
    message = request(("x", "FP32", [1], None))
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(Unsupported, match="'x' lies in shared memory"):
        tensors.decode_request(message)


@pytest.mark.parametrize("array", [np.zeros(1, np.complex64), np.zeros(1, "M8[s]"), np.zeros(1, np.longdouble)])
def test_arrays_without_a_counterpart(array):
    with pytest.raises(InvalidInput, match="has no counterpart; expected BOOL"):
        tensors.encode_request("m", {"x": array})


def test_objects_that_are_no_bytes():
    with pytest.raises(InvalidInput, match="a BYTES element is int, expected bytes or str"):
        tensors.encode_request("m", {"x": np.array([b"a", 1], object)})


def test_numpy_dtype():
    assert tensors.numpy_dtype("FP16") == np.float16
    with pytest.raises(InvalidInput, match="BF16 has no NumPy type: send FP32"):
        tensors.numpy_dtype("BF16")
