"""What the database keeps of rollouts. Each function is part of a transaction."""

from __future__ import annotations

import dataclasses
from typing import Any

import sqlalchemy as sa

from nearmesh.errors import AlreadyExists
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.rollouts.rollout import Rollout, from_content

# Of those that have ended, so many of the latest are read; the audit log has all.
KNOWN = 200


def read_all(connection: sa.Connection) -> list[Rollout]:
    """Those that run, and the latest of the others; by number."""
    table = tables.rollouts
    running = connection.execute(sa.select(table).where(sa.not_(table.c.ended))).all()
    latest = connection.execute(sa.select(table).where(table.c.ended).order_by(table.c.id.desc()).limit(KNOWN)).all()
    return sorted((_rollout(row) for row in (*running, *latest)), key=lambda rollout: rollout.id)


def insert(connection: sa.Connection, rollout: Rollout) -> Rollout:
    """The same with its number. Raises AlreadyExists while another one of its model runs."""
    table = tables.rollouts
    runs = sa.select(table).where(table.c.model == rollout.model, sa.not_(table.c.ended))
    other = connection.execute(runs).one_or_none()
    if other is not None:
        found = _rollout(other)
        raise AlreadyExists(
            f"a rollout of {found.name} is {found.state}; wait for its end, or end it: "
            f"`nearmesh model rollout abort {found.model}`"
        )
    values = {"model": rollout.model, **_values(rollout)}
    id = connection.execute(sa.insert(table).values(**values).returning(table.c.id)).scalar_one()
    return dataclasses.replace(rollout, id=id)


def update(connection: sa.Connection, rollout: Rollout) -> Rollout | None:
    """The same with its next revision; None when somebody else changed it meanwhile, and then nothing was written."""
    table, after = tables.rollouts, dataclasses.replace(rollout, revision=rollout.revision + 1)
    row = sa.and_(table.c.id == rollout.id, table.c.revision == rollout.revision)
    changed = connection.execute(sa.update(table).where(row).values(**_values(after)))
    return after if changed.rowcount else None


def _values(rollout: Rollout) -> dict[str, Any]:
    return {
        "state": rollout.state,
        "ended": rollout.ended,
        "revision": rollout.revision,
        "content": rollout.content(),
    }


def _rollout(row: sa.Row[Any]) -> Rollout:
    return from_content(row.id, row.model, row.state, row.revision, row.content)
