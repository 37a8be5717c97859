"""sqlite-vec: a table of vectors in SQLite, every row of which is compared."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlite_vec


class Store:
    """A connection for each thread, as SQLite wants it; write-ahead log, fsynced at each commit."""

    batch = 500
    efforts = (0,)

    def __init__(self, task: Any) -> None:
        self._path = Path(task.folder) / "vectors.sqlite"
        self._dimension = task.array("vectors").shape[1]
        self._own = threading.local()

    @property
    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._own, "connection"):
            made = self._own.connection = sqlite3.connect(self._path, isolation_level=None)
            made.enable_load_extension(True)
            sqlite_vec.load(made)
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("PRAGMA synchronous = FULL")
            # The file is read through the page cache, not copied.
            made.execute(f"PRAGMA mmap_size = {4 << 30}")
        return self._own.connection

    def create(self) -> None:
        self._connection.execute(
            f"CREATE VIRTUAL TABLE kept USING vec0(id INTEGER PRIMARY KEY, share INTEGER, "
            f"vector FLOAT[{self._dimension}] distance_metric=cosine, +text TEXT)"
        )

    def open(self) -> None:
        self._connection.execute("SELECT 1")

    def insert(self, rows: Sequence[int], vectors: np.ndarray, texts: Sequence[str], shares: Sequence[int]) -> None:
        # Committed at its end, or undone.
        with self._connection as connection:
            connection.execute("BEGIN")
            connection.executemany(
                "INSERT INTO kept (id, share, vector, text) VALUES (?, ?, ?, ?)",
                [
                    (row, share, vector.tobytes(), text)
                    for row, share, vector, text in zip(rows, shares, vectors, texts, strict=True)
                ],
            )

    def finish(self) -> None:
        """It has no index."""

    def search(self, vector: np.ndarray, share: int | None, effort: int) -> Sequence[tuple[int, str]]:
        where, more = ("", ()) if share is None else (" AND share = ?", (share,))
        return self._connection.execute(
            f"SELECT id, text FROM kept WHERE vector MATCH ? AND k = 10{where} ORDER BY distance",
            (vector.tobytes(), *more),
        ).fetchall()

    def close(self) -> None:
        self._connection.close()
