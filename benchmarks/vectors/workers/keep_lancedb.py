"""LanceDB: columns in files, and an index of inverted lists with graphs in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

NAME = "kept"


class Store:
    """Written in larger pieces than others: each write makes a file."""

    batch = 5000
    efforts = (1, 2, 4, 8, 16, 32, 64, 128, 256)

    def __init__(self, task: Any) -> None:
        self._folder, self._dimension = str(Path(task.folder) / "lance"), task.array("vectors").shape[1]

    def create(self) -> None:
        vector = pa.list_(pa.float32(), self._dimension)
        schema = pa.schema([("id", pa.int64()), ("share", pa.int64()), ("text", pa.string()), ("vector", vector)])
        self._table = lancedb.connect(self._folder).create_table(NAME, schema=schema)

    def open(self) -> None:
        self._table = lancedb.connect(self._folder).open_table(NAME)

    def insert(self, rows: Sequence[int], vectors: np.ndarray, texts: Sequence[str], shares: Sequence[int]) -> None:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self._dimension)
        columns = [pa.array(rows), pa.array(shares), pa.array(texts), flat]
        self._table.add(pa.Table.from_arrays(columns, schema=self._table.schema))

    def finish(self) -> None:
        self._table.create_index(metric="cosine", index_type="IVF_FLAT", num_partitions=316)
        self._table.create_scalar_index("share", index_type="BITMAP")
        self._table.optimize()

    def search(self, vector: np.ndarray, share: int | None, effort: int) -> Sequence[tuple[int, str]]:
        asked = self._table.search(vector).distance_type("cosine").limit(10).nprobes(effort)
        if share is not None:
            asked = asked.where(f"share = {share}", prefilter=True)
        found = asked.select(["id", "text", "_distance"]).to_arrow()
        return list(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))

    def close(self) -> None:
        """It has no process and nothing open that would have to be ended."""
