"""What the database keeps of models that nobody asks for. Each function is part of a transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from nearmesh.package import Idle
from nearmesh_controlplane import database as tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model's policy, and what has become of it."""

    policy: Idle
    # By which deployment it was the wanted one when it fell asleep; 0: it is awake.
    deployment: int = 0
    # Asleep: the nodes that keep it.
    nodes: tuple[str, ...] = ()
    # When it fell asleep or woke, seconds since the epoch.
    since_s: float = 0.0


def read_all(connection: sa.Connection) -> dict[str, Entry]:
    """By model."""
    return {row.model: _entry(row) for row in connection.execute(sa.select(tables.idle))}


def take_package(connection: sa.Connection, model: str, policy: Idle) -> None:
    """A published package's word, which counts where no operator has spoken."""
    row = _row(connection, model)
    if row is None and policy == Idle():
        return
    if row is None or not row.by_operator:
        _write(connection, model, _of(policy), {"by_operator": False})


def change_policy(connection: sa.Connection, model: str, changes: Mapping[str, Any]) -> Entry:
    """An operator's word. Raises ConfigError for a value that cannot be."""
    row = _row(connection, model)
    entry = Entry(policy=Idle()) if row is None else _entry(row)
    found = replace(entry, policy=replace(entry.policy, **changes))
    _write(connection, model, _of(found.policy), {"by_operator": True})
    return found


def change_state(connection: sa.Connection, model: str, entry: Entry) -> Entry:
    """Falls asleep, wakes, or is kept elsewhere; the policy stays as it is on disk."""
    state = {"deployment": entry.deployment, "nodes": list(entry.nodes), "since_s": entry.since_s}
    _write(connection, model, state, {})
    row = _row(connection, model)
    return entry if row is None else _entry(row)


def _row(connection: sa.Connection, model: str) -> sa.Row[Any] | None:
    row = tables.idle.c.model == model
    return connection.execute(sa.select(tables.idle).where(row).with_for_update()).one_or_none()


def _write(connection: sa.Connection, model: str, values: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    table = tables.idle
    changed = connection.execute(sa.update(table).where(table.c.model == model).values(**values, **more))
    if not changed.rowcount:
        whole = {**_of(Idle()), "by_operator": False, "deployment": 0, "nodes": [], "since_s": 0.0, **values, **more}
        connection.execute(sa.insert(table).values(model=model, **whole))


def _of(policy: Idle) -> dict[str, Any]:
    return {name: getattr(policy, name) for name in ("unload_after_s", "scale_to_zero_after_s", "keep")}


def _entry(row: sa.Row[Any]) -> Entry:
    policy = Idle(unload_after_s=row.unload_after_s, scale_to_zero_after_s=row.scale_to_zero_after_s, keep=row.keep)
    return Entry(policy=policy, deployment=row.deployment, nodes=tuple(row.nodes), since_s=row.since_s)
