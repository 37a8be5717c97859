"""The contract's messages from and to what a site's vectors are made of. Pure; raises InvalidInput."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nearmesh.errors import InvalidInput
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors import limits
from nearmesh_agent.vectors.model import FieldType, Metric, Origin, Row, Scalar, Table

METRICS: dict[int, Metric] = {
    pb.METRIC_UNSPECIFIED: Metric.COSINE,
    pb.METRIC_COSINE: Metric.COSINE,
    pb.METRIC_IP: Metric.INNER_PRODUCT,
    pb.METRIC_L2: Metric.L2,
}
_OF_METRIC: dict[Metric, Any] = {metric: number for number, metric in METRICS.items() if number}
FIELD_TYPES = {
    pb.FIELD_TYPE_STRING: FieldType.STRING,
    pb.FIELD_TYPE_INT: FieldType.INT,
    pb.FIELD_TYPE_FLOAT: FieldType.FLOAT,
    pb.FIELD_TYPE_BOOL: FieldType.BOOL,
}
_OF_FIELD_TYPE = {kind: number for number, kind in FIELD_TYPES.items()}


def metric(number: int) -> Metric:
    found = METRICS.get(number)
    if found is None:
        raise InvalidInput(f"metric {number} is none of cosine, ip and l2")
    return found


def metric_number(found: Metric) -> Any:
    return _OF_METRIC[found]


def fields(messages: Iterable[pb.Field]) -> dict[str, FieldType]:
    """Raises InvalidInput."""
    found = []
    for message in messages:
        kind = FIELD_TYPES.get(message.type)
        if kind is None:
            raise InvalidInput(f"field {message.name[:64]!r} has no type: string, int, float or bool")
        found.append((message.name, kind))
    return limits.check_fields(found)


def field_messages(found: Mapping[str, FieldType]) -> list[pb.Field]:
    return [pb.Field(name=name, type=_OF_FIELD_TYPE[kind]) for name, kind in found.items()]


def row(message: pb.Row, table: Table) -> Row:
    """Checked against the table. Raises InvalidInput."""
    origin = message.origin
    found = Row(
        id=message.id,
        vector=limits.check_vector(message.vector, table, f"row {message.id[:64]!r}: its vector"),
        text=message.text,
        fields={name: _scalar(message.id, name, value, table.fields) for name, value in message.fields.items()},
        origin=Origin(
            source=origin.source,
            hash=origin.hash,
            part=origin.part,
            parts=origin.parts,
            position=origin.position,
        ),
    )
    limits.check_row(found, table.fields)
    return found


def _scalar(of: str, name: str, value: pb.Value, kinds: Mapping[str, FieldType]) -> Scalar:
    kind = value.WhichOneof("kind")
    if kind is None:
        raise InvalidInput(f"row {of[:64]!r}: field {name[:64]!r} has no value; leave it out instead")
    found: Scalar = getattr(value, kind)
    # Programs write 3 for 3.0.
    return float(found) if kind == "int" and kinds.get(name) is FieldType.FLOAT else found


def row_message(found: Row, *, vector: bool = False) -> pb.Row:
    message = pb.Row(id=found.id, text=found.text)
    if vector:
        message.vector = np.asarray(found.vector, "<f4").tobytes()
    for name, value in found.fields.items():
        put(message.fields[name], value)
    origin = found.origin
    # Its hash and part are filtered by, whether it names a source or not.
    if origin != Origin():
        message.origin.source, message.origin.hash = origin.source, origin.hash
        message.origin.part, message.origin.parts = origin.part, origin.parts
        message.origin.position = origin.position
    return message


def put(message: pb.Value, value: Scalar) -> None:
    """Sets the one that the value's type names; bool first, since it is an int as well."""
    if isinstance(value, bool):
        message.bool = value
    elif isinstance(value, int):
        message.int = value
    elif isinstance(value, float):
        message.float = value
    else:
        message.string = value


def hits(rows: Sequence[pb.Row], scores: Mapping[str, float], *, node: str, site: str) -> list[pb.Hit]:
    """In the order of `rows`."""
    return [pb.Hit(row=row, score=scores[row.id], node=node, site=site) for row in rows]
