"""Open Inference Protocol tensors into NumPy arrays and back.

Whatever is wrong with a message is an InvalidInput that names the tensor, what was expected and what was given. Sizes
that a message merely declares are never believed: nothing is allocated before the bytes at hand are found to fit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from tritonclient.grpc import service_pb2

from nearmesh.errors import InvalidInput, Unsupported

Array = np.ndarray[Any, np.dtype[Any]]

# NumPy holds no more dimensions than this.
MAX_RANK = 64

# An empty tensor fits any declared shape with a zero in it; beyond this extent of its other dimensions a model that
# sums the zero away would be made to allocate what nobody sent.
MAX_EMPTY_EXTENT = 1 << 20

# Requests name regions of shared memory with this parameter; a mesh's client shares none with the node.
_SHARED_MEMORY = "shared_memory_region"

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one OIP dtype lies in an array and in a message; `field` is "" where typed contents cannot carry it."""

    dtype: np.dtype[Any]
    field: str


# The wire is little-endian; on such machines these are the native types, so that nothing is swapped or copied.
_KINDS = {
    "BOOL": _Kind(np.dtype(np.bool_), "bool_contents"),
    "UINT8": _Kind(np.dtype("<u1"), "uint_contents"),
    "UINT16": _Kind(np.dtype("<u2"), "uint_contents"),
    "UINT32": _Kind(np.dtype("<u4"), "uint_contents"),
    "UINT64": _Kind(np.dtype("<u8"), "uint64_contents"),
    "INT8": _Kind(np.dtype("<i1"), "int_contents"),
    "INT16": _Kind(np.dtype("<i2"), "int_contents"),
    "INT32": _Kind(np.dtype("<i4"), "int_contents"),
    "INT64": _Kind(np.dtype("<i8"), "int64_contents"),
    "FP16": _Kind(np.dtype("<f2"), ""),
    "FP32": _Kind(np.dtype("<f4"), "fp32_contents"),
    "FP64": _Kind(np.dtype("<f8"), "fp64_contents"),
    "BYTES": _Kind(np.dtype(object), "bytes_contents"),
}
_NAMES = {kind.dtype: name for name, kind in _KINDS.items()}


class Declared(Protocol):
    """What an input or output of a message says about itself."""

    name: str
    datatype: str

    @property
    def shape(self) -> Iterable[int]: ...


def numpy_dtype(datatype: str, *, name: str = "") -> np.dtype[Any]:
    """The array dtype of an OIP dtype; `object` (of bytes) for BYTES. Raises InvalidInput."""
    return _kind(name, datatype).dtype


def datatype_of(array: Array, *, name: str = "") -> str:
    """The OIP dtype of an array; strings of any kind are BYTES. Raises InvalidInput."""
    found = _NAMES.get(array.dtype)
    if found:
        return found
    if array.dtype.kind in "SU":
        return "BYTES"
    found = _NAMES.get(array.dtype.newbyteorder("<"))
    if found is None:
        raise InvalidInput(f"{_tensor(name)}: NumPy's {array.dtype} has no counterpart; expected {_known()}")
    return found


def element_count(name: str, shape: Sequence[int]) -> int:
    """The number of elements that a shape declares, however large. Raises InvalidInput if no tensor can have it."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"{_tensor(name)}: {len(shape)} dimensions given, expected {MAX_RANK} at most")
    count = extent = 1
    for dim in shape:
        if dim < 0:
            raise InvalidInput(f"{_tensor(name)}: shape {list(shape)} has the dimension {dim}, expected 0 or more")
        count *= dim
        extent *= dim or 1
    if count == 0 and extent > MAX_EMPTY_EXTENT:
        raise InvalidInput(
            f"{_tensor(name)}: shape {list(shape)} is empty, but its other dimensions multiply to {extent}; "
            f"expected {MAX_EMPTY_EXTENT} at most"
        )
    return count


# Bytes and arrays.


def pack(array: Array, *, name: str = "") -> bytes:
    """The raw contents of an array. Elements of a BYTES array may be bytes or str. Raises InvalidInput."""
    if datatype_of(array, name=name) != "BYTES":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts: list[bytes] = []
    for item in array.flat:
        data = _as_bytes(name, item)
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def raw(array: Array) -> memoryview:
    """The raw contents of an array of numbers or bools, without a copy where its elements lie in the wire's order."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


def unpack(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """The array in raw contents: read-only, without a copy where the dtype has a fixed size. Raises InvalidInput."""
    kind, count = _kind(name, datatype), element_count(name, shape)
    if datatype == "BYTES":
        return _object_array(_split(name, shape, count, bytes(data)), shape)
    expected = count * kind.dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(
            f"{_tensor(name)}: {datatype} of shape {list(shape)} is {expected} bytes, given {len(data)} bytes"
        )
    if datatype == "BOOL":
        _check_bools(name, data)
    return np.frombuffer(data, kind.dtype).reshape(tuple(shape))


def _split(name: str, shape: Sequence[int], count: int, data: bytes) -> list[bytes]:
    # Each element is at least its length, so this bounds the loop before it starts.
    if count * _LENGTH.size > len(data):
        raise InvalidInput(
            f"{_tensor(name)}: BYTES of shape {list(shape)} needs at least {count * _LENGTH.size} bytes "
            f"({_LENGTH.size} of length for each of {count} elements), given {len(data)} bytes"
        )
    items: list[bytes] = []
    at = 0
    for index in range(count):
        left = len(data) - at - _LENGTH.size
        length = _LENGTH.unpack_from(data, at)[0] if left >= 0 else 0
        if left < length:
            raise InvalidInput(
                f"{_tensor(name)}: element {index} of {count} is truncated; expected a 4-byte length and {length} "
                f"bytes, given {len(data) - at} bytes"
            )
        at += _LENGTH.size
        items.append(data[at : at + length])
        at += length
    if at != len(data):
        raise InvalidInput(
            f"{_tensor(name)}: the {count} elements of shape {list(shape)} take {at} bytes, given {len(data)} bytes"
        )
    return items


def _check_bools(name: str, data: bytes | memoryview) -> None:
    values = np.frombuffer(data, np.uint8)
    wrong = np.flatnonzero(values > 1)
    if wrong.size:
        raise InvalidInput(f"{_tensor(name)}: element {wrong[0]} is {values[wrong[0]]}, expected 0 or 1 for BOOL")


def _object_array(items: Sequence[bytes], shape: Sequence[int]) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = list(items)
    return array.reshape(tuple(shape))


def _as_bytes(name: str, item: object) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes):
        return item
    raise InvalidInput(f"{_tensor(name)}: a BYTES element is {type(item).__name__}, expected bytes or str")


# Messages and arrays.


def decode_request(request: service_pb2.ModelInferRequest) -> dict[str, Array]:
    """The inputs of a request by name, in order. Raises InvalidInput, Unsupported for shared memory."""
    return decode("input", request.inputs, request.raw_input_contents)


def decode_response(response: service_pb2.ModelInferResponse) -> dict[str, Array]:
    """The outputs of a response by name, in order. Raises InvalidInput."""
    return decode("output", response.outputs, response.raw_output_contents)


def encode_request(
    model: str,
    inputs: Mapping[str, Array],
    *,
    version: str = "",
    request_id: str = "",
    outputs: Iterable[str] = (),
) -> service_pb2.ModelInferRequest:
    """A request with raw contents; without `outputs` the model answers all of its own. Raises InvalidInput."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array, name=name), shape=array.shape)
        request.raw_input_contents.append(pack(array, name=name))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def add_outputs(response: service_pb2.ModelInferResponse, outputs: Mapping[str, Array]) -> None:
    """Writes arrays into a response as raw contents. Raises InvalidInput."""
    for name, array in outputs.items():
        response.outputs.add(name=name, datatype=datatype_of(array, name=name), shape=array.shape)
        response.raw_output_contents.append(pack(array, name=name))


def decode(what: str, tensors: Sequence[Any], raw: Sequence[bytes | memoryview]) -> dict[str, Array]:
    """The tensors of a message by name, in order; `what` they are, errors say. Raises InvalidInput, Unsupported."""
    if raw and len(raw) != len(tensors):
        raise InvalidInput(f"{len(raw)} raw {what} contents given, expected {len(tensors)}, one for each {what}")
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(tensors):
        if tensor.name in arrays:
            raise InvalidInput(f"{what} {tensor.name!r} is given twice, expected once")
        if _SHARED_MEMORY in tensor.parameters:
            raise Unsupported(f"{what} {tensor.name!r} lies in shared memory; expected its contents in the message")
        arrays[tensor.name] = _unpack_raw(tensor, raw[index]) if raw else _from_typed(tensor)
    return arrays


def _unpack_raw(tensor: Any, data: bytes | memoryview) -> Array:
    if tensor.HasField("contents") and tensor.contents.ListFields():
        raise InvalidInput(f"{_tensor(tensor.name)}: raw and typed contents are both given, expected one of them")
    return unpack(tensor.name, tensor.datatype, tensor.shape, data)


def _from_typed(tensor: Any) -> Array:
    name, datatype, shape = tensor.name, tensor.datatype, tensor.shape
    kind, count = _kind(name, datatype), element_count(name, shape)
    for field, _ in tensor.contents.ListFields():
        if field.name != kind.field:
            expected = kind.field or "raw contents, the only ones that can carry it"
            raise InvalidInput(f"{_tensor(name)}: {field.name} given, expected {expected} for {datatype}")
    values = getattr(tensor.contents, kind.field) if kind.field else ()
    if len(values) != count:
        raise InvalidInput(
            f"{_tensor(name)}: {datatype} of shape {list(shape)} is {count} elements, given {len(values)} "
            f"in {kind.field or 'typed contents'}"
        )
    if datatype == "BYTES":
        return _object_array(values, shape)
    return _narrow(name, datatype, values, kind.dtype).reshape(tuple(shape))


def _narrow(name: str, datatype: str, values: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    """Typed contents hold small integers in fields of 32 bits, so a value may be out of its dtype's range."""
    if dtype.kind not in "iu" or dtype.itemsize >= 4:
        return np.fromiter(values, dtype, count=len(values))
    wide = np.fromiter(values, np.int64, count=len(values))
    limits = np.iinfo(dtype)
    wrong = wide[(wide < limits.min) | (wide > limits.max)]
    if wrong.size:
        raise InvalidInput(
            f"{_tensor(name)}: the value {wrong[0]} is given, expected {limits.min} to {limits.max} for {datatype}"
        )
    return cast(Array, wide.astype(dtype))


def _kind(name: str, datatype: str) -> _Kind:
    kind = _KINDS.get(datatype)
    if kind is None:
        hint = "; BF16 has no NumPy type: send FP32" if datatype == "BF16" else ""
        raise InvalidInput(f"{_tensor(name)}: datatype {datatype!r} given, expected one of {_known()}{hint}")
    return kind


def _known() -> str:
    return ", ".join(_KINDS)


def _tensor(name: str) -> str:
    return f"tensor {name!r}"
