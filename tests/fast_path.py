"""What a node answers from, put together as it is there: the journal, an index in memory or the engine's own with what
it does not see yet beside it, and Milvus Lite behind them.

With the face of a store, so that the suite for stores can be asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nearmesh_agent.vectors.engine import EngineIndex
from nearmesh_agent.vectors.index import MemoryIndex
from nearmesh_agent.vectors.model import Found, Row, Table, Vector, Where, Write
from nearmesh_agent.vectors.store.applier import Applier
from nearmesh_agent.vectors.store.journal import Journal
from nearmesh_agent.vectors.store.lite import LiteStore

from nearmesh.errors import NotFound


class FastPath:
    """`model.Store`, without what only an engine has."""

    def __init__(self, folder: Path, *, by_engine: bool = False) -> None:
        self._folder, self._by_engine = folder, by_engine
        self._journal, self._lite = Journal(folder / "journal"), LiteStore(folder / "milvus.db")
        self._indexes: dict[str, MemoryIndex | EngineIndex] = {}
        self._applier = Applier(
            self._journal, self._lite, known=self._indexes.__contains__, saved=lambda: 0, settle_s=self._lite.settle_s
        )

    def tables(self) -> Sequence[str]:
        return self._lite.tables()

    def create(self, table: Table) -> None:
        self._lite.create(table)
        if table.name not in self._indexes:
            self._indexes[table.name] = self._new(table)

    def drop(self, table: str) -> None:
        index = self._indexes.pop(table, None)
        if index is not None:
            index.close()
        self._lite.drop(table)

    def write(self, writes: Sequence[Write]) -> None:
        indexes = [self._index(write.table) for write in writes]
        last = self._journal.append_now(writes)
        for position, (index, write) in enumerate(zip(indexes, writes, strict=True), last - len(writes) + 1):
            index.apply(write, position)

    def flush(self) -> None:
        """Into the store, and into the lists of the indexes."""
        self._applier.flush()
        for index in self._indexes.values():
            index.maintain()

    def get(self, table: str, ids: Sequence[str]) -> Sequence[Row]:
        return self._index(table).rows(list(dict.fromkeys(ids)), vectors=True)

    def scan(self, table: str, *, after: str = "", batch: int = 1000) -> Iterator[Sequence[Row]]:
        index = self._index(table)
        while names := index.select(None, after=after, limit=batch):
            yield index.rows(names, vectors=True)
            after = names[-1]

    def count(self, table: str, where: Where | None = None) -> int:
        return self._index(table).count(where)

    def search(self, table: str, vector: Vector, k: int, where: Where | None = None) -> Sequence[Found]:
        return self._index(table).search(vector, k, where)[0]

    def close(self) -> None:
        for index in self._indexes.values():
            index.close()
        self._lite.close()
        self._journal.close()

    def _new(self, table: Table) -> MemoryIndex | EngineIndex:
        if self._by_engine:
            return EngineIndex(table, lambda: self._lite, lambda: self._applier.visible)
        return MemoryIndex.new(table, self._folder / "tables" / table.name)

    def _index(self, table: str) -> MemoryIndex | EngineIndex:
        found = self._indexes.get(table)
        if found is None:
            raise NotFound(f"no table {table!r}")
        return found
