"""Rows of vectors for tests, and a table of them in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from nearmesh_agent.vectors.index.slots import Slots, View
from nearmesh_agent.vectors.model import FieldType, Metric, Origin, Row, Scalar, Table, Vector

FIELDS = {
    "lang": FieldType.STRING,
    "author": FieldType.STRING,
    "year": FieldType.INT,
    "score": FieldType.FLOAT,
    "open": FieldType.BOOL,
}


def table(dimension: int = 4, metric: Metric = Metric.COSINE) -> Table:
    return Table(name="notes", dimension=dimension, metric=metric, fields=FIELDS)


def row(
    id_: str,
    fields: Mapping[str, Scalar] | None = None,
    *,
    vector: Vector | Sequence[float] = (1, 0, 0, 0),
    source: str = "",
    hash_: str = "",
    part: int = 0,
    parts: int = 0,
    text: str = "",
    written_at_s: float = 0.0,
) -> Row:
    return Row(
        id=id_,
        vector=np.asarray(vector, np.float32),
        text=text or f"text of {id_}",
        fields=fields or {},
        origin=Origin(source=source, hash=hash_, part=part, parts=parts),
        written_at_s=written_at_s,
    )


@contextmanager
def rows_of(rows: Sequence[Row]) -> Iterator[View]:
    """A view of a table that holds them."""
    with tempfile.TemporaryDirectory() as folder:
        slots = Slots(table(), Path(folder), 1)
        empty = View(slots, 0, np.empty(0, np.bool_), 0, 0, 0)
        slots.append(rows)
        yield empty.after([], 1)
        slots.close()
