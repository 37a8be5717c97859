"""All rows of a table straight from Milvus Lite's files: Lite itself takes a quarter of a millisecond for each.

A file of data has rows, and one of deletes has ids, each with a number that counts up: of an id, the highest is true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nearmesh_agent.vectors.model import Row, Table
from nearmesh_agent.vectors.store import disk, schema
from nearmesh_agent.vectors.store.schema import ID, VECTOR

_NUMBER = "_seq"


def rows(collection: Path, table: Table, batch: int) -> Iterator[Sequence[Row]]:
    """In no order, what was flushed. Raises OSError where Lite merges files meanwhile."""
    from pyarrow import parquet

    data, deletes = disk.files(collection)
    newest: dict[str, int] = {}
    for path in (*data, *deletes):
        found = parquet.read_table(path, columns=[ID, _NUMBER])
        for row_id, number in zip(found[ID].to_pylist(), found[_NUMBER].to_pylist(), strict=True):
            newest[row_id] = max(number, newest.get(row_id, 0))
    for path in data:
        with parquet.ParquetFile(path) as file:
            for part in file.iter_batches(batch):
                yield _rows(part, newest, table)


def _rows(part: Any, newest: dict[str, int], table: Table) -> list[Row]:
    """Those of a batch that are true."""
    vectors = part.column(VECTOR).flatten().to_numpy().reshape(-1, table.dimension)
    records = part.drop_columns([VECTOR]).to_pylist()
    return [
        schema.row({**record, VECTOR: vector}, table)
        for record, vector in zip(records, vectors, strict=True)
        if newest[record[ID]] == record[_NUMBER]
    ]
