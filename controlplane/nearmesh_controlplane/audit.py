"""The audit log: who changed what, in the database and in the process's log.

An entry is written right after its change, in a transaction of its own: a control plane that is killed between the two
keeps the change and has no entry for it. A caller who goes away in between changes nothing about that (`whole`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import sqlalchemy as sa

from nearmesh.rpc import Identity
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change."""

    at_s: float
    actor: str
    action: str
    subject: str
    detail: str


class Audit:
    """Records changes that people made."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, actor: Identity, action: str, subject: str, detail: str = "") -> None:
        """On disk when this returns."""
        entry = Entry(at_s=time.time(), actor=str(actor), action=action, subject=subject, detail=detail)
        log.info("audit actor=%s action=%s subject=%s detail=%s", entry.actor, action, subject, detail)
        await self._db.run(_insert, entry)

    async def latest(self, limit: int) -> list[Entry]:
        """Newest first."""
        return await self._db.run(_latest, limit)


def _insert(connection: sa.Connection, entry: Entry) -> None:
    row = {name: getattr(entry, name) for name in ("at_s", "actor", "action", "subject", "detail")}
    connection.execute(sa.insert(tables.audit).values(**row))


def _latest(connection: sa.Connection, limit: int) -> list[Entry]:
    rows = connection.execute(sa.select(tables.audit).order_by(tables.audit.c.id.desc()).limit(limit))
    return [
        Entry(at_s=row.at_s, actor=row.actor, action=row.action, subject=row.subject, detail=row.detail) for row in rows
    ]
