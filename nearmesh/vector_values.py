"""Fields of a row as plain values, and what collections call their types and metrics; as the contract has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from nearmesh.errors import InvalidInput
from nearmesh.v1 import vector_pb2 as pb

Scalar = str | int | float | bool
FieldKind = Literal["string", "int", "float", "bool"]
Metric = Literal["cosine", "ip", "l2"]

METRICS: Mapping[Metric, pb.Metric] = {"cosine": pb.METRIC_COSINE, "ip": pb.METRIC_IP, "l2": pb.METRIC_L2}
FIELD_KINDS: Mapping[FieldKind, pb.FieldType] = {
    "string": pb.FIELD_TYPE_STRING,
    "int": pb.FIELD_TYPE_INT,
    "float": pb.FIELD_TYPE_FLOAT,
    "bool": pb.FIELD_TYPE_BOOL,
}
METRIC_NAMES: Mapping[pb.Metric, Metric] = {number: name for name, number in METRICS.items()}
FIELD_KIND_NAMES: Mapping[pb.FieldType, FieldKind] = {number: name for name, number in FIELD_KINDS.items()}


def set_fields(row: pb.Row, fields: Mapping[str, Scalar]) -> None:
    """Raises InvalidInput for a value that no field takes."""
    for name, value in fields.items():
        _put(row.fields[name], name, value)


def value_of(value: pb.Value) -> Scalar:
    """Of one field."""
    kind = value.WhichOneof("kind")
    found: Scalar = getattr(value, kind) if kind else ""
    return found


def _put(message: pb.Value, name: str, value: Scalar) -> None:
    # bool first: it is an int as well.
    for kind, attribute in ((bool, "bool"), (int, "int"), (float, "float"), (str, "string")):
        if isinstance(value, kind):
            try:
                setattr(message, attribute, value)
            except ValueError as error:
                # A whole number of more than 64 bits, or half a character.
                raise InvalidInput(f"field {name!r} is {str(value)[:60]!r}: {error}") from None
            return
    raise InvalidInput(f"field {name!r} is {value!r}; expected a bool, int, float or str")
