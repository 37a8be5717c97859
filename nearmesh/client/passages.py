"""What a program writes into a collection: rows of plain values, and vectors as NumPy has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nearmesh.errors import InvalidInput
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.vector_values import Scalar, set_fields


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
