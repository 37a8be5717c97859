"""How the journal writes down a `Write`: a frame with a checksum around JSON and the vectors as they are in memory.

JSON keeps the kinds of scalars apart and is fast; vectors would be ten times as long in it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearmesh.errors import InvalidInput
from nearmesh_agent.vectors.model import Clock, Origin, Row, Write

# Names the kind of file and its version at the beginning of each frame.
MAGIC = b"NMJ1"
# Magic, length of what follows, position, up to which position was on disk before, checksum of all but itself.
_HEAD = struct.Struct("<4sIQQI")
HEAD_BYTES = _HEAD.size
_CHECKED = _HEAD.size - 4
# Of a frame: far above what a call may carry; a length above it is damage.
MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Head:
    """What a frame says of itself before its payload."""

    length: int
    position: int
    # Everything up to it was on disk when this frame was written.
    synced: int
    checksum: int
    raw: bytes

    def holds(self, payload: bytes) -> bool:
        """Whether the payload is the one that was written."""
        return zlib.crc32(payload, zlib.crc32(self.raw[:_CHECKED])) == self.checksum


def frame(position: int, synced: int, payload: bytes) -> tuple[bytes, bytes]:
    """Head and payload, to be written one after the other."""
    checked = _HEAD.pack(MAGIC, len(payload), position, synced, 0)[:_CHECKED]
    return checked + _LENGTH.pack(zlib.crc32(payload, zlib.crc32(checked))), payload


def head(data: bytes) -> Head | None:
    """None for what is no head of a frame."""
    if len(data) != HEAD_BYTES:
        return None
    magic, length, position, synced, checksum = _HEAD.unpack(data)
    if magic != MAGIC or length > MAX_FRAME_BYTES:
        return None
    return Head(length, position, synced, checksum, data)


def encoded(write: Write) -> bytes:
    """The payload of a frame. Raises InvalidInput for what no row may have."""
    dimension = write.rows[0].vector.size if write.rows else 0
    try:
        about = json.dumps(
            [write.table, dimension, [_listed(row) for row in write.rows], list(write.deleted), write.deleted_at],
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        ).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a row of {write.table!r} cannot be written down: {error}") from None
    vectors = [np.ascontiguousarray(row.vector, dtype="<f4") for row in write.rows]
    if any(vector.size != dimension for vector in vectors):
        raise InvalidInput(f"rows of {write.table!r} have vectors of different lengths")
    payload = b"".join([_LENGTH.pack(len(about)), about, *(vector.tobytes() for vector in vectors)])
    if len(payload) > MAX_FRAME_BYTES:
        raise InvalidInput(
            f"{len(write.rows)} rows of {write.table!r} take {len(payload)} bytes, above the {MAX_FRAME_BYTES} that "
            "can be written at once; send fewer at a time"
        )
    return payload


def decoded(payload: bytes) -> Write:
    """What `encoded` made the payload of; its vectors are views of it."""
    (length,) = _LENGTH.unpack_from(payload)
    begin = _LENGTH.size + length
    table, dimension, rows, deleted, deleted_at = json.loads(payload[_LENGTH.size : begin])
    # Copied where the vectors do not begin at a multiple of four, which some kernels ask for.
    flat = np.frombuffer(payload[begin:], dtype="<f4")
    vectors = flat.reshape(len(rows), dimension) if rows else flat
    return Write(
        table=table,
        rows=[_row(listed, vector) for listed, vector in zip(rows, vectors, strict=False)],
        deleted=deleted,
        deleted_at=deleted_at,
    )


def _listed(row: Row) -> list[Any]:
    """A row without its vector; what most rows lack takes little room."""
    origin, clock = row.origin, row.clock
    return [
        row.id,
        row.text,
        dict(row.fields),
        [origin.source, origin.hash, origin.part, origin.parts, origin.position] if origin != _NOWHERE else 0,
        [clock.written, clock.written_after, clock.deleted] if clock != _NEVER else 0,
        row.written_at_s,
    ]


def _row(listed: Sequence[Any], vector: Any) -> Row:
    row_id, text, fields, origin, clock, written_at_s = listed
    return Row(
        id=row_id,
        vector=vector,
        text=text,
        fields=fields,
        origin=_origin(*origin) if origin else _NOWHERE,
        clock=Clock(written=clock[0], written_after=clock[1], deleted=clock[2]) if clock else _NEVER,
        written_at_s=written_at_s,
    )


def _origin(source: str, digest: str, part: int, parts: int, position: str) -> Origin:
    return Origin(source=source, hash=digest, part=part, parts=parts, position=position)


_NOWHERE, _NEVER = Origin(), Clock()
