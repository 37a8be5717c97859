"""Inference messages between bytes and tensors without needless copies.

A parsed message owns a copy of every tensor, and reading a field copies once more. For large messages the tensors are
therefore cut out of the received bytes, and only the rest is parsed; large answers are put together from the arrays
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh_agent.engines.base import Array

# Below this, parsing the whole costs less than cutting.
LARGE_BYTES = 16 * 1024
# Fields of a message that are looked at one by one; honest requests have a few dozen at most. Of one with more, the
# whole parser, which is not written in Python, is a hundred times faster.
_MOST_FIELDS = 1024

# Protobuf's wire format: the low three bits of a tag are the type of what follows, the rest is the field's number.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_RAW_INPUT = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | _BYTES
_RAW_OUTPUT = bytes([service_pb2.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | _BYTES])


@dataclass(frozen=True, slots=True)
class Received:
    """A ModelInferRequest; its raw contents may have been cut out of it."""

    message: Any
    raw: Sequence[bytes | memoryview]
    # Of the whole request, as it came.
    size_bytes: int = 0


def received(message: Any, size_bytes: int | None = None) -> Received:
    """A request that was parsed as a whole."""
    size_bytes = message.ByteSize() if size_bytes is None else size_bytes
    return Received(message, message.raw_input_contents, size_bytes)


def read(data: bytes) -> Received:
    """A request from its bytes. Raises DecodeError."""
    if len(data) >= LARGE_BYTES and (cut := _cut(data)) is not None:
        rest, raw = cut
        message = service_pb2.ModelInferRequest.FromString(rest)
        if raw:
            return Received(message, raw, len(data))
        return received(message, len(data))
    return received(service_pb2.ModelInferRequest.FromString(data), len(data))


def _cut(data: bytes) -> tuple[bytes, list[memoryview]] | None:
    """What is not raw contents, and those; None for bytes that only a whole parser should judge."""
    view = memoryview(data)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at, end = 0, len(data)
    try:
        for _ in range(_MOST_FIELDS):
            start = at
            tag, at = _varint(data, at)
            # Parsers do not agree on numbers that are longer than they need be.
            if tag == _RAW_INPUT and at > start + 1:
                return None
            at, content = _skip(data, tag & 7, at)
            if at > end:
                return None
            if tag == _RAW_INPUT:
                raw.append(view[content:at])
            else:
                rest.append(view[start:at])
            if at == end:
                return b"".join(rest), raw
    except (IndexError, DecodeError):
        pass
    return None


def head(begun: memoryview) -> Any:
    """The request whose first bytes these are, without its raw contents; None if those have not begun yet."""
    found = _raw_begins(begun)
    try:
        return service_pb2.ModelInferRequest.FromString(begun[: found[0]]) if found else None
    except DecodeError:
        return None


def contents_at(begun: memoryview) -> int:
    """Where the first tensor's bytes begin in the request whose first bytes these are; 0 if they have not begun yet."""
    found = _raw_begins(begun)
    return found[1] if found else 0


def _raw_begins(begun: memoryview) -> tuple[int, int] | None:
    """Where the field of the first raw contents begins, and where those do.

    Every client of the protocol writes its fields in order, so everything else stands before them.
    """
    at, end = 0, len(begun)
    try:
        for _ in range(_MOST_FIELDS):
            tag, content = _varint(begun, at)
            if tag == _RAW_INPUT:
                return at, _varint(begun, content)[1]
            at, _ = _skip(begun, tag & 7, content)
            if at >= end:
                break
    except (IndexError, DecodeError):
        pass
    return None


def _skip(data: bytes | memoryview, kind: int, at: int) -> tuple[int, int]:
    """Where a field ends, and where its contents begin."""
    if kind == _BYTES:
        length, content = _varint(data, at)
        return content + length, content
    if kind == _VARINT:
        return _varint(data, at)[1], at
    if kind in (_FIXED64, _FIXED32):
        return at + (8 if kind == _FIXED64 else 4), at
    raise DecodeError(f"a field of type {kind}")


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise DecodeError("a number of more than 64 bits")


def respond(response: Any, outputs: Mapping[str, Array]) -> Any:
    """`response` with `outputs`: a message, or the bytes of one where the tensors are large. Raises InvalidInput."""
    arrays = outputs.values()
    if sum(array.nbytes for array in arrays) < LARGE_BYTES or any(array.dtype.kind in "OSU" for array in arrays):
        tensors.add_outputs(response, outputs)
        return response
    parts: list[bytes | memoryview] = [b""]
    for name, array in outputs.items():
        response.outputs.add(name=name, datatype=tensors.datatype_of(array, name=name), shape=array.shape)
        data = tensors.raw(array)
        parts += (_RAW_OUTPUT, _encoded(len(data)), data)
    parts[0] = response.SerializeToString()
    return b"".join(parts)


def write(response: Any) -> bytes:
    """What `respond` gave, as bytes."""
    return response if isinstance(response, bytes) else bytes(response.SerializeToString())


def size_bytes(response: Any) -> int:
    """Of what `respond` gave, as it will be sent."""
    return len(response) if isinstance(response, bytes) else int(response.ByteSize())


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def parsed(response: Any) -> Any:
    """What `respond` gave, as a message: answers on a stream are part of another one."""
    return service_pb2.ModelInferResponse.FromString(response) if isinstance(response, bytes) else response
