"""A table that is searched by the store's own engine, for sites whose vectors do not fit into memory: `model.Index`.

What the engine does not see yet lies here, as it stands in the journal, and is searched exactly beside it. So a row is
found, or is not any more, as soon as it is acknowledged, as with an index of our own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import merge, nsmallest
from itertools import islice

import numpy as np

from nearmesh_agent.vectors.model import Found, Metric, Row, Store, Table, Vector, Where, Write

_NOTHING: Vector = np.empty(0, np.float32)
# Of one search of the engine; what is hidden by fresh rows is asked for in addition.
_MOST = 16_384
_PAGE = 1_000


class EngineIndex:
    """One writer, and any number of threads that search."""

    def __init__(self, table: Table, store: Callable[[], Store], visible: Callable[[], int], position: int = 0) -> None:
        """`store` raises NotReady while there is none; it sees all up to `visible`."""
        self._table = table
        self._store = store
        self._visible = visible
        self._gate = threading.Lock()
        # By id, the newest write that the engine may not see, None for a delete; with its position.
        self._fresh: dict[str, tuple[int, Row | None]] = {}
        # Rows in the store, when they were counted last.
        self._counted = -1
        self.position = position

    # Writing.

    def reserve(self, rows: Sequence[Row]) -> None:
        """It has no files."""

    def apply(self, write: Write, position: int) -> None:
        with self._gate:
            for row in write.rows:
                self._fresh[row.id] = (position, row)
            for name in write.deleted:
                self._fresh[name] = (position, None)
            self.position = position

    def maintain(self) -> None:
        """Lets go of what the engine sees by now."""
        seen = self._visible()
        with self._gate:
            self._fresh = {name: one for name, one in self._fresh.items() if one[0] > seen}
        self._counted = self._store().count(self._table.name)

    def save(self) -> int:
        """The store has it, or the journal."""
        return self.position

    def close(self) -> None: ...

    # Reading.

    def search(
        self, vector: Vector, k: int, where: Where | None = None, *, exact: bool = False
    ) -> tuple[Sequence[Found], str]:
        """Whether it is exact is for the engine to know."""
        fresh = self._now()
        found = self._store().search(self._table.name, vector, min(_MOST, k + len(fresh)), where)
        beside = [row for row in fresh.values() if row is not None and (where is None or where.matches(row))]
        mine = [Found(row.id, score(self._table.metric, vector, row.vector)) for row in beside]
        far = self._table.metric is Metric.L2
        every = [*(one for one in found if one.id not in fresh), *mine]
        return nsmallest(k, every, key=lambda one: one.score if far else -one.score), "engine"

    def rows(self, ids: Iterable[str], *, vectors: bool = False) -> Sequence[Row]:
        asked, fresh = list(ids), self._now()
        found: dict[str, Row | None] = {name: fresh[name] for name in asked if name in fresh}
        rest = [name for name in dict.fromkeys(asked) if name not in found]
        found |= {row.id: row for row in self._store().get(self._table.name, rest)} if rest else {}
        rows = (found.get(name) for name in asked)
        return [row if vectors else replace(row, vector=_NOTHING) for row in rows if row is not None]

    def select(self, where: Where | None, *, after: str = "", limit: int | None = None) -> Sequence[str]:
        fresh = self._now()
        mine = sorted(
            row.id
            for row in fresh.values()
            if row is not None and row.id > after and (where is None or where.matches(row))
        )
        pages = self._store().scan(self._table.name, after=after, batch=_PAGE, where=where)
        kept = (row.id for page in pages for row in page if row.id not in fresh)
        return list(islice(merge(kept, mine), limit))

    def count(self, where: Where | None = None) -> int:
        fresh, store = self._now(), self._store()
        hidden = store.get(self._table.name, list(fresh)) if fresh else ()
        more = sum(row is not None and (where is None or where.matches(row)) for row in fresh.values())
        less = sum(where is None or where.matches(row) for row in hidden)
        return store.count(self._table.name, where) - less + more

    def _now(self) -> Mapping[str, Row | None]:
        seen = self._visible()
        with self._gate:
            return {name: row for name, (position, row) in self._fresh.items() if position > seen}

    # What it has.

    @property
    def size(self) -> int:
        """As it was counted last, and what has come since; about so many where rows were replaced."""
        return max(0, self._counted) + sum(row is not None for _, row in list(self._fresh.values()))

    @property
    def bytes(self) -> int:
        """Of the vectors."""
        return 4 * self._table.dimension * self.size

    @property
    def fresh(self) -> int:
        return len(self._fresh)


def score(metric: Metric, one: Vector, other: Vector) -> float:
    """As the engine has it."""
    if metric is Metric.L2:
        return float(np.square(one - other).sum())
    product = float(one @ other)
    if metric is Metric.INNER_PRODUCT:
        return product
    return product / float(np.linalg.norm(one) * np.linalg.norm(other))
