"""Rows as a request to Milvus, made column by column: pymilvus goes value by value, and takes five times as long for it
of the processor that searches wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nearmesh_agent.vectors.model import Row, Table
from nearmesh_agent.vectors.store import schema
from nearmesh_agent.vectors.store.schema import VECTOR

# Where protobuf keeps the values of a type of column: the field of `ScalarField`.
_SLOTS = {"VARCHAR": "string_data", "INT64": "long_data", "DOUBLE": "double_data", "BOOL": "bool_data"}
# Of the first field of `FloatArray`: its number, and that bytes follow.
_PACKED = b"\x0a"


def insert(name: str, table: Table, rows: Sequence[Row]) -> Any:
    """An `InsertRequest`."""
    from pymilvus.grpc_gen import milvus_pb2

    return milvus_pb2.InsertRequest(collection_name=name, num_rows=len(rows), fields_data=_columns(table, rows))


def upsert(name: str, table: Table, rows: Sequence[Row]) -> Any:
    """An `UpsertRequest`."""
    from pymilvus.grpc_gen import milvus_pb2

    return milvus_pb2.UpsertRequest(collection_name=name, num_rows=len(rows), fields_data=_columns(table, rows))


def _columns(table: Table, rows: Sequence[Row]) -> Sequence[Any]:
    from pymilvus import DataType
    from pymilvus.grpc_gen import schema_pb2

    values = schema.values(rows, table)
    found = [schema_pb2.FieldData(type=DataType.FLOAT_VECTOR, field_name=VECTOR, vectors=_vectors(table, rows))]
    for column in schema.columns(table):
        if column.name != VECTOR:
            scalars = schema_pb2.ScalarField(**{_SLOTS[column.type]: {"data": values[column.name]}})
            found.append(schema_pb2.FieldData(type=DataType[column.type], field_name=column.name, scalars=scalars))
    return found


def _vectors(table: Table, rows: Sequence[Row]) -> Any:
    """From the bytes as protobuf would write them: the numbers are copied, and none is looked at."""
    from pymilvus.grpc_gen import schema_pb2

    data = b"".join(np.ascontiguousarray(row.vector, "<f4").tobytes() for row in rows)
    numbers = schema_pb2.FloatArray.FromString(_PACKED + _varint(len(data)) + data)
    return schema_pb2.VectorField(dim=table.dimension, float_vector=numbers)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
