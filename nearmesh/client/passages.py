"""What a program writes into a collection: rows of plain values, and vectors as NumPy has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nearmesh.errors import InvalidInput
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.vector_values import Scalar, set_fields

# Rows in one message: what a node embeds in a few seconds. Long vectors and texts are fewer: a node takes 64 MiB.
ROWS_AT_ONCE, BYTES_AT_ONCE = 500, 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One row to be written."""

    id: str
    # FP32, shape [dimension]. None: the collection's embedder makes it from the text.
    vector: ArrayLike | None = None
    text: str = ""
    fields: Mapping[str, Scalar] = field(default_factory=dict)
    # Where it is from: the source's name, the hash of its whole content, and which of how many parts this is.
    source: str = ""
    hash: str = ""
    part: int = 0
    parts: int = 0
    # For people: a page, a line, a heading.
    position: str = ""

    def message(self) -> pb.Row:
        """Raises InvalidInput."""
        row = pb.Row(id=self.id, text=self.text)
        if self.vector is not None:
            row.vector = vector_bytes(self.vector)
        set_fields(row, self.fields)
        if self.source:
            row.origin.source, row.origin.hash, row.origin.position = self.source, self.hash, self.position
            row.origin.part, row.origin.parts = self.part, self.parts
        return row


def messages(rows: Iterable[pb.Row]) -> Iterator[Sequence[pb.Row]]:
    """As many at a time as go with one call."""
    part: list[pb.Row] = []
    size = 0
    for row in rows:
        more = row.ByteSize()
        if part and (len(part) == ROWS_AT_ONCE or size + more > BYTES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(row)
        size += more
    if part:
        yield part


def vector_bytes(vector: ArrayLike) -> bytes:
    """As the contract has it, little-endian FP32. Raises InvalidInput for what is no list of numbers."""
    try:
        # What is too large for FP32 is infinite then, which the node refuses with its place.
        with np.errstate(over="ignore"):
            found = np.asarray(vector, "<f4")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"not a vector: {error}") from None
    if found.ndim != 1:
        raise InvalidInput(f"a vector has one axis, not the shape {list(found.shape)}")
    return found.tobytes()


def vector_of(row: pb.Row) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of a row that was fetched with its vector."""
    return np.frombuffer(row.vector, "<f4")
