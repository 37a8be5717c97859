"""From one Milvus to another: what differs is copied, then all of it is compared, and only then is the new one used.

Both are read in the order of their keys, side by side. So a copy that was broken off goes on where it was by beginning
again: what is there already, just so, is passed over. The old store is only read, and stays as it was.

Nothing may be written to the old one meanwhile (`Applier.paused`): what is acknowledged waits in the journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nearmesh.errors import EngineFailure
from nearmesh_agent.vectors.model import Row, Store, Table, Write

# Written at once, and how often is told how far it is.
_BATCH_ROWS = 1_000


class Phase(StrEnum):
    COPYING = "copying"
    VERIFYING = "verifying"
    SWITCHING = "switching"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one table is."""

    table: str
    done: int
    total: int
    phase: Phase


def migrate(source: Store, target: Store, tables: Sequence[Table]) -> Iterator[Progress]:
    """All tables; at the end the target has on its disk just what the source has. Blocking.

    Raises what the stores raise, Unsupported for an index type that the target lacks, and EngineFailure when it does
    not give back what it was given.
    """
    # First of all, so that what it refuses is known at once.
    for table in tables:
        target.create(table)
    for table in tables:
        yield from copy(source, target, table)
    for table in tables:
        yield from verify(source, target, table)
    # Searches are to see what was written to it a moment ago.
    for table in tables:
        target.create(table)


def copy(source: Store, target: Store, table: Table) -> Iterator[Progress]:
    """Makes the target's table like the source's."""
    total, done = source.count(table.name), 0
    yield Progress(table.name, done, total, Phase.COPYING)
    rows: list[Row] = []
    gone: list[str] = []
    for here, there in side_by_side(source, target, table.name):
        if here is None:
            assert there is not None
            gone.append(there.id)
        elif there is None or not same(here, there):
            rows.append(here)
        done += here is not None
        if len(rows) + len(gone) >= _BATCH_ROWS:
            target.write([Write(table=table.name, rows=rows, deleted=gone)])
            rows, gone = [], []
        if here is not None and done % _BATCH_ROWS == 0:
            yield Progress(table.name, done, total, Phase.COPYING)
    target.write([Write(table=table.name, rows=rows, deleted=gone)])
    target.flush()
    yield Progress(table.name, done, total, Phase.COPYING)


def verify(source: Store, target: Store, table: Table) -> Iterator[Progress]:
    """Compares every row. Raises EngineFailure for the first that differs."""
    total, done = source.count(table.name), 0
    for here, there in side_by_side(source, target, table.name):
        if here is None or there is None or not same(here, there):
            raise EngineFailure(
                f"row {(here or there).id!r} of {table.name!r} differs after it was copied "  # type: ignore[union-attr]
                f"({_difference(here, there)}); the old store stays in use, migrate again"
            )
        done += 1
        if done % _BATCH_ROWS == 0:
            yield Progress(table.name, done, total, Phase.VERIFYING)
    yield Progress(table.name, done, total, Phase.VERIFYING)


def side_by_side(source: Store, target: Store, table: str) -> Iterator[tuple[Row | None, Row | None]]:
    """Rows of both by their ids, in order; None where one has no such row."""
    ours, theirs = _rows(source, table), _rows(target, table)
    here, there = next(ours, None), next(theirs, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here.id < there.id):
            yield here, None
            here = next(ours, None)
        elif here is None or there.id < here.id:
            yield None, there
            there = next(theirs, None)
        else:
            yield here, there
            here, there = next(ours, None), next(theirs, None)


def same(one: Row, other: Row) -> bool:
    return _difference(one, other) == ""


def _difference(one: Row | None, other: Row | None) -> str:
    """What differs, without saying what it is: rows are nobody's business."""
    if one is None or other is None:
        return "one store has it and the other has not"
    # By bytes: a vector that is not quite the same is another one.
    if one.vector.tobytes() != other.vector.tobytes():
        return "its vector"
    for name in ("id", "text", "fields", "origin", "clock", "written_at_s"):
        if getattr(one, name) != getattr(other, name):
            return f"its {name}"
    return ""


def _rows(store: Store, table: str) -> Iterator[Row]:
    """One by one. Raises EngineFailure where they do not come in order: half of them would be taken for missing."""
    before = ""
    for page in store.scan(table):
        for row in page:
            if row.id <= before:
                raise EngineFailure(f"Milvus gives row {row.id!r} of {table!r} after {before!r}: its order is wrong")
            before = row.id
            yield row
