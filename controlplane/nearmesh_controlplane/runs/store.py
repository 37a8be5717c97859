"""What the database keeps of runs. Each function is part of a transaction."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from nearmesh.errors import AlreadyExists
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.runs.folder import Progress, RoundRecord
from nearmesh_controlplane.runs.run import Run, from_content

# Of those that do not go on by themselves, so many of the latest are known at once; the others are looked up.
KNOWN = 200
# Rounds whose parameters are kept: the newest, and the one before, should the newest prove damaged.
ARRAYS_KEPT = 2
# Runs whose parameters are kept so that they may be promoted later.
RUNS_KEPT = 20

_COLUMNS = ("id", "model", "state", "revision", "content")


def read_all(connection: sa.Connection) -> list[Run]:
    """Those that go on by themselves, and the latest of the others; in the order in which they were asked for."""
    table = tables.runs
    latest = _select().where(sa.not_(table.c.active)).order_by(table.c.created_at_s.desc()).limit(KNOWN)
    rows = [*connection.execute(_select().where(table.c.active)), *connection.execute(latest)]
    return sorted((_run(row) for row in rows), key=lambda run: (run.created_at_s, run.id))


def read(connection: sa.Connection, id: str) -> Run | None:
    row = connection.execute(_select().where(tables.runs.c.id == id)).one_or_none()
    return None if row is None else _run(row)


def newest(connection: sa.Connection, model: str, limit: int) -> list[Run]:
    """Of a model, or of all; newest first."""
    found = _select().order_by(tables.runs.c.created_at_s.desc(), tables.runs.c.id).limit(limit)
    if model:
        found = found.where(tables.runs.c.model == model)
    return [_run(row) for row in connection.execute(found)]


def insert(connection: sa.Connection, run: Run, app: bytes) -> Run:
    """The run, or the one that was asked for with the same key. Raises AlreadyExists where that was another request."""
    key = run.asked.idempotency_key
    if key:
        row = connection.execute(_select().where(tables.runs.c.idempotency_key == key)).one_or_none()
        if row is not None:
            return _same(_run(row), run)
    connection.execute(
        sa.insert(tables.runs).values(
            id=run.id,
            model=run.model,
            created_at_s=run.created_at_s,
            idempotency_key=key or None,
            app=app or None,
            **_values(run),
        )
    )
    return run


def _same(known: Run, asked: Run) -> Run:
    if known.asked.fingerprint != asked.asked.fingerprint:
        raise AlreadyExists(
            f"idempotency key {known.asked.idempotency_key!r} is of run {known.name}, which was asked for in other "
            "words; a new run needs a new key"
        )
    return known


def update(connection: sa.Connection, run: Run) -> Run | None:
    """The same with its next revision; None when somebody else changed it meanwhile, and then nothing was written."""
    table, after = tables.runs, dataclasses.replace(run, revision=run.revision + 1)
    row = sa.and_(table.c.id == run.id, table.c.revision == run.revision)
    changed = connection.execute(sa.update(table).where(row).values(**_values(after)))
    if not changed.rowcount:
        return None
    if not after.active:
        connection.execute(sa.delete(tables.run_progress).where(tables.run_progress.c.run == run.id))
        _forget(connection)
    return after


def _forget(connection: sa.Connection) -> None:
    """Parameters and apps of runs that nobody goes on with: all but those of the newest that may yet be promoted."""
    table, rounds = tables.runs, tables.run_rounds
    resting = sa.not_(table.c.active)
    promotable = sa.and_(resting, table.c.state.in_(("trained", "refused")))
    order = (table.c.created_at_s.desc(), table.c.id)
    kept = [
        row.id for row in connection.execute(sa.select(table.c.id).where(promotable).order_by(*order).limit(RUNS_KEPT))
    ]
    gone = sa.select(table.c.id).where(resting, table.c.id.not_in(kept))
    has = rounds.c.arrays.is_not(None)
    connection.execute(sa.update(rounds).where(has, rounds.c.run.in_(gone)).values(arrays=None))
    connection.execute(sa.update(table).where(resting, table.c.app.is_not(None)).values(app=None))


def app_of(connection: sa.Connection, id: str) -> bytes:
    return connection.execute(sa.select(tables.runs.c.app).where(tables.runs.c.id == id)).scalar_one() or b""


# Rounds


def add_round(connection: sa.Connection, id: str, record: RoundRecord, arrays: bytes | None) -> bool:
    """Whether it was new: a round counts once, whoever brings it again."""
    table = tables.run_rounds
    known = sa.select(table.c.number).where(table.c.run == id, table.c.number == record.number)
    if connection.execute(known).one_or_none() is not None:
        return False
    content = json.dumps(dataclasses.asdict(record))
    connection.execute(sa.insert(table).values(run=id, number=record.number, content=content, arrays=arrays))
    old = sa.and_(table.c.run == id, table.c.number <= record.number - ARRAYS_KEPT)
    connection.execute(sa.update(table).where(old).values(arrays=None))
    return True


def rounds(connection: sa.Connection, ids: Collection[str]) -> dict[str, list[RoundRecord]]:
    """By run, in order."""
    table = tables.run_rounds
    chosen = sa.select(table.c.run, table.c.content).where(table.c.run.in_(ids)).order_by(table.c.run, table.c.number)
    found: dict[str, list[RoundRecord]] = {id: [] for id in ids}
    for row in connection.execute(chosen):
        found[row.run].append(RoundRecord.of(json.loads(row.content)))
    return found


def arrays(connection: sa.Connection, id: str) -> dict[int, bytes]:
    """Those that are kept, by the number of the round."""
    table = tables.run_rounds
    kept = sa.select(table.c.number, table.c.arrays).where(table.c.run == id, table.c.arrays.is_not(None))
    return {row.number: row.arrays for row in connection.execute(kept)}


# The round under way


def write_progress(connection: sa.Connection, id: str, progress: Progress) -> None:
    table, content = tables.run_progress, json.dumps(dataclasses.asdict(progress))
    changed = connection.execute(sa.update(table).where(table.c.run == id).values(content=content))
    if not changed.rowcount:
        connection.execute(sa.insert(table).values(run=id, content=content))


def progress(connection: sa.Connection) -> dict[str, Progress]:
    """By run."""
    return {row.run: Progress(**json.loads(row.content)) for row in connection.execute(sa.select(tables.run_progress))}


def _select() -> sa.Select[Any]:
    return sa.select(*(tables.runs.c[name] for name in _COLUMNS))


def _values(run: Run) -> dict[str, Any]:
    return {
        "state": run.state,
        "active": run.active,
        "revision": run.revision,
        "content": json.dumps(run.content()),
    }


def _run(row: sa.Row[Any]) -> Run:
    return from_content(row.id, row.model, row.state, row.revision, json.loads(row.content))
