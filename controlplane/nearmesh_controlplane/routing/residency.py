"""The regions that may answer the clients of a region, as operators said. Durable; read from memory."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from nearmesh.errors import InvalidInput, NotFound
from nearmesh.ids import check_label
from nearmesh.routing.residency import check_regions
from nearmesh.whole import whole
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation

# Client regions with a rule.
MAX_RULES = 1000


class ResidencyRules:
    """A client region without a rule may be answered from anywhere."""

    def __init__(self, db: Database, changes: Generation) -> None:
        self._db = db
        self._changes = changes
        self._rules: dict[str, frozenset[str]] = {}

    async def restore(self) -> None:
        """Reads the durable state; called before anyone is served."""
        self._rules = await self._db.run(_read_all)

    def allowed(self, client_region: str) -> frozenset[str] | None:
        """The regions that may answer it; None for any."""
        return self._rules.get(client_region)

    def all(self) -> list[tuple[str, frozenset[str]]]:
        """Client regions with the regions that may answer them."""
        return sorted(self._rules.items())

    @whole
    async def set(self, client_region: str, regions: Iterable[str]) -> frozenset[str]:
        """Binds the region's clients to `regions`; to none takes the rule back. Raises InvalidInput, NotFound."""
        check_label("client_region", client_region)
        wanted = frozenset(check_regions("region", regions))
        if not wanted and client_region not in self._rules:
            known = ", ".join(sorted(self._rules)) or "none"
            raise NotFound(f"no rule binds the clients of {client_region!r}; those that are bound are {known}")
        if len(self._rules) >= MAX_RULES and client_region not in self._rules:
            raise InvalidInput(f"{MAX_RULES} client regions are bound already")
        # Where the database is shared, another control plane may have changed it a moment ago.
        if self._db.shared or wanted != self._rules.get(client_region, frozenset()):
            await self._db.run(_write, client_region, wanted)
            rules = {**self._rules, client_region: wanted}
            self._rules = {region: bound for region, bound in rules.items() if bound}
            self._changes.bump()
        return wanted


def _read_all(connection: sa.Connection) -> dict[str, frozenset[str]]:
    return {row.client_region: frozenset(row.regions) for row in connection.execute(sa.select(tables.residency))}


def _write(connection: sa.Connection, client_region: str, regions: frozenset[str]) -> None:
    row = tables.residency.c.client_region == client_region
    if not regions:
        connection.execute(sa.delete(tables.residency).where(row))
        return
    changed = connection.execute(sa.update(tables.residency).where(row).values(regions=sorted(regions)))
    if not changed.rowcount:
        connection.execute(sa.insert(tables.residency).values(client_region=client_region, regions=sorted(regions)))
