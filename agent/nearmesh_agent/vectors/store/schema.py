"""A table as Milvus keeps it: which columns it has, and rows as columns and back.

Filters name `id`, `source`, `source_hash`, `part` and the declared fields, so columns are called so; all others begin
with an underscore, which no field may. Older servers have no column that may be empty: whether a row has a field stands
in a column beside it, and a filter asks for both (`presence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearmesh_agent.vectors.model import Clock, FieldType, Metric, Origin, Row, Scalar, Table, presence

# In bytes; what Milvus takes at most in a column of text.
MAX_TEXT_BYTES = 65_535
# Milvus counts columns up to 64: a field takes two, and what every row has the others.
MAX_FIELDS = 24
_ID_BYTES = 256
ID, VECTOR = "id", "vector"

METRICS = {Metric.COSINE: "COSINE", Metric.INNER_PRODUCT: "IP", Metric.L2: "L2"}
_TYPES = {FieldType.STRING: "VARCHAR", FieldType.INT: "INT64", FieldType.FLOAT: "DOUBLE", FieldType.BOOL: "BOOL"}
_NOTHING: Mapping[FieldType, Scalar] = {
    FieldType.STRING: "",
    FieldType.INT: 0,
    FieldType.FLOAT: 0.0,
    FieldType.BOOL: False,
}
_STANDING = {
    "text": "VARCHAR",
    "source": "VARCHAR",
    "source_hash": "VARCHAR",
    "part": "INT64",
    "_parts": "INT64",
    "_position": "VARCHAR",
    # Of 64 bits as the clock counts them, which stay below the sign for some hundred thousand years.
    "_written": "INT64",
    "_written_after": "INT64",
    "_deleted": "INT64",
    "_written_at_s": "DOUBLE",
}
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


@dataclass(frozen=True, slots=True)
class Column:
    """One that Milvus is to have."""

    name: str
    # As pymilvus calls it.
    type: str
    primary: bool = False
    # Bytes of a string, numbers of a vector.
    size: int = 0


def columns(table: Table) -> Sequence[Column]:
    """All of a table's, the key first."""
    found = [Column(ID, "VARCHAR", primary=True, size=_ID_BYTES), Column(VECTOR, "FLOAT_VECTOR", size=table.dimension)]
    found += [_scalar(name, kind) for name, kind in _STANDING.items()]
    for name, kind in table.fields.items():
        found += [_scalar(name, _TYPES[kind]), Column(presence(name), "BOOL")]
    return found


def _scalar(name: str, kind: str) -> Column:
    return Column(name, kind, size=MAX_TEXT_BYTES if kind == "VARCHAR" else 0)


def values(rows: Sequence[Row], table: Table) -> Mapping[str, Sequence[Any]]:
    """Rows as columns by name, all but the vectors."""
    found: dict[str, list[Any]] = {
        ID: [row.id for row in rows],
        "text": [row.text for row in rows],
        "source": [row.origin.source for row in rows],
        "source_hash": [row.origin.hash for row in rows],
        "part": [row.origin.part for row in rows],
        "_parts": [row.origin.parts for row in rows],
        "_position": [row.origin.position for row in rows],
        "_written": [row.clock.written for row in rows],
        "_written_after": [row.clock.written_after for row in rows],
        "_deleted": [row.clock.deleted for row in rows],
        "_written_at_s": [row.written_at_s for row in rows],
    }
    for name, kind in table.fields.items():
        nothing = _NOTHING[kind]
        found[name] = [row.fields.get(name, nothing) for row in rows]
        found[presence(name)] = [name in row.fields for row in rows]
    return found


def row(record: Mapping[str, Any], table: Table) -> Row:
    """A row as Milvus gave it back."""
    return Row(
        id=record[ID],
        vector=np.asarray(record[VECTOR], dtype=np.float32),
        text=record["text"],
        fields={name: record[name] for name in table.fields if record[presence(name)]},
        origin=Origin(
            source=record["source"],
            hash=record["source_hash"],
            part=record["part"],
            parts=record["_parts"],
            position=record["_position"],
        ),
        clock=Clock(written=record["_written"], written_after=record["_written_after"], deleted=record["_deleted"]),
        written_at_s=record["_written_at_s"],
    )


def quoted(text: str) -> str:
    """A string in an expression; Lite and the servers know these escapes alike, and take all else as it is."""
    return f'"{text.translate(_ESCAPES)}"'


def one_of(ids: Iterable[str]) -> str:
    """The expression that takes these rows."""
    return f"{ID} in [{', '.join(map(quoted, ids))}]"
