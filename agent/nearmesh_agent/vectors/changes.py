"""What a call that writes does to a collection, planned against the rows as they are when its turn comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np

from nearmesh.errors import MeshError, Superseded
from nearmesh_agent.vectors.collections import CollectionSpec
from nearmesh_agent.vectors.ledger import Ledger
from nearmesh_agent.vectors.model import Clock, Metric, Row, Vector, Where, Write
from nearmesh_agent.vectors.table import OpenTable

# Two vectors of one direction are the same to cosine; an index may keep them at length 1.
_TOLERANCE = 1e-6


class Kept(Protocol):
    """The collection, as its changes see it."""

    @property
    def identity(self) -> str: ...

    @property
    def replicated(self) -> bool:
        """Whether other sites have it too."""
        ...

    @property
    def spec(self) -> CollectionSpec: ...

    @property
    def serving(self) -> OpenTable: ...

    @property
    def filling(self) -> OpenTable | None:
        """The next generation, while it is being filled."""
        ...

    @property
    def ledger(self) -> Ledger: ...


@dataclass(slots=True, kw_only=True)
class Change:
    """One call. `plan` runs in a thread, and none beside it that touches the same ids."""

    # That it touches; None: nobody knows before it is planned.
    ids: Collection[str] | None = None
    # What it does, and the rows that it replaces or deletes.
    writes: list[Write] = field(default_factory=list)
    old: list[Row] = field(default_factory=list)
    # The node that told of it, and that node's site; empty: a caller did.
    source: str = ""
    site: str = ""
    refused: MeshError | None = None
    # It fills the next generation or ends that: it goes on while other writes are held.
    fills: ClassVar[bool] = False

    def plan(self, kept: Kept) -> None:
        """Raises MeshError to refuse it."""

    def refuse(self, why: MeshError) -> None:
        self.writes, self.old, self.refused = [], [], why

    @property
    def written(self) -> list[Row]:
        return [row for write in self.writes for row in write.rows]


@dataclass(slots=True, kw_only=True)
class Upsert(Change):
    """Rows with new contents; those that are there just so are left alone."""

    rows: Sequence[Row]
    # That the rows were checked against.
    table: str
    # Asked when it is planned, with how many rows and bytes there will be more; raises to refuse.
    check: Callable[[int, int], None] = lambda rows, size: None
    unchanged: int = 0

    def plan(self, kept: Kept) -> None:
        table = kept.serving
        check_table(self.table, kept)
        old = {row.id: row for row in table.index.rows([row.id for row in self.rows], vectors=True)}
        changed = [row for row in self.rows if not _there(old.get(row.id), row, table.table.metric)]
        self.unchanged = len(self.rows) - len(changed)
        self.old = [old[row.id] for row in changed if row.id in old]
        self.check(len(changed) - len(self.old), sum(map(size_of, changed)) - sum(map(size_of, self.old)))
        if changed:
            now_s = time.time()
            rows = [
                replace(row, clock=_over(row.clock, old.get(row.id)), written_at_s=now_s)
                for row in kept.ledger.stamped(kept.identity, changed)
            ]
            self.writes = [Write(table=table.table.name, rows=rows)]


@dataclass(slots=True, kw_only=True)
class Delete(Change):
    """By `ids`, by `where`, or those of the ids that `where` takes."""

    where: Where | None = None
    # Ids of rows that go.
    gone: Sequence[str] = ()

    def plan(self, kept: Kept) -> None:
        index = kept.serving.index
        if self.ids is None:
            self.old = list(index.rows(index.select(self.where)))
        else:
            found = index.rows(self.ids)
            self.old = [row for row in found if self.where is None or self.where.matches(row)]
        self.gone = [row.id for row in self.old]
        # One that is not here may be elsewhere, or on its way.
        late = self.ids is not None and self.where is None and kept.replicated
        deleted = list(self.ids or ()) if late else self.gone
        if deleted:
            self.writes = [Write(table=kept.serving.table.name, deleted=deleted, deleted_at=kept.ledger.now())]


def check_table(name: str, kept: Kept) -> None:
    """Raises Superseded for vectors that were read for another generation: of another dimension, or embedder."""
    if kept.serving.table.name != name:
        raise Superseded(f"another generation of {kept.spec.name!r} has taken over meanwhile; bring its vectors")


def _over(clock: Clock, before: Row | None) -> Clock:
    """A write knows of every delete that the row before it knew of, although its tombstone may be forgotten by now."""
    if before is None or before.clock.written_after <= clock.written_after:
        return clock
    return Clock(
        written=clock.written,
        written_after=before.clock.written_after,
        deleted=max(clock.deleted, before.clock.deleted),
    )


def _there(before: Row | None, after: Row, metric: Metric) -> bool:
    """Whether writing `after` would change nothing that anybody can see."""
    if before is None or before.text != after.text or before.origin != after.origin:
        return False
    if dict(before.fields) != dict(after.fields):
        return False
    if metric is not Metric.COSINE:
        return bool(np.array_equal(before.vector, after.vector))
    return bool(np.allclose(_unit(before.vector), _unit(after.vector), rtol=0, atol=_TOLERANCE))


def _unit(vector: Vector) -> Vector:
    found: Vector = vector / np.linalg.norm(vector)
    return found


def size_of(row: Row) -> int:
    """About what it takes in memory, bytes, as quotas count."""
    strings = sum(len(value) for value in row.fields.values() if isinstance(value, str))
    return row.vector.nbytes + len(row.text.encode("utf-8", "surrogatepass")) + strings + 8 * len(row.fields)
