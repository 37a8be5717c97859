"""Which models may be given up when nobody asks for them, and which are asleep. Durable; read from memory.

A model that is *asleep* has replicas on the nodes that keep it and on no others, whatever it is deployed to. The routes
leave the other nodes first, and a moment later the replicas do: no request finds a node that has just let it go.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from nearmesh.errors import ConfigError, InvalidInput
from nearmesh.package import Idle
from nearmesh.whole import whole
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.idle import store
from nearmesh_controlplane.idle.store import Entry

# A replica stays for so long after the routes have left it: as long as it takes until every client has heard.
LEAVES_AFTER_S = 5.0

# The nodes that keep a model; None: it is awake, and all that it is deployed to have it.
Kept = frozenset[str] | None


class IdleBook:
    """Policies and states by model."""

    def __init__(
        self, db: Database, changes: Generation, catalog: Catalog, wall: Callable[[], float] = time.time
    ) -> None:
        self._db = db
        self._changes = changes
        self._catalog = catalog
        self._wall = wall
        self._entries: dict[str, Entry] = {}
        # Nodes that are to let it go: by model, whom it was kept by before, and until when they have it still.
        self._leaving: dict[str, tuple[Kept, float]] = {}

    async def restore(self) -> None:
        """Reads the durable state: at the start, and when another control plane wrote some of it."""
        self._entries = await self._db.run(store.read_all)
        self._changes.bump()

    # What is asked

    def policy(self, model: str) -> Idle:
        entry = self._entries.get(model)
        return entry.policy if entry else Idle()

    def entry(self, model: str) -> Entry:
        """Its policy and, where it is asleep by its present deployment, what has become of it."""
        entry = self._entries.get(model)
        if entry is None:
            return Entry(policy=Idle())
        newest = next(iter(self._catalog.deployments(model)), None)
        if entry.deployment and (newest is None or newest.id != entry.deployment):
            return dataclasses.replace(entry, deployment=0, nodes=())
        return entry

    def kept(self, model: str) -> Kept:
        """The nodes that routes may lead to; None where the model is awake: any that serve it."""
        known = self._entries.get(model)
        if known is None or not known.deployment:
            return None
        entry = self.entry(model)
        return frozenset(entry.nodes) if entry.deployment else None

    def wanted(self, model: str) -> Kept:
        """The nodes that are to have it; None for all that it is deployed to."""
        kept, leaving = self.kept(model), self._leaving.get(model)
        if kept is None or leaving is None or self._wall() >= leaving[1]:
            return kept
        return None if leaving[0] is None else kept | leaving[0]

    def models(self) -> list[str]:
        """Those of which something is to be decided."""
        entries = self._entries.items()
        return sorted(model for model, e in entries if e.policy.scale_to_zero_after_s or e.deployment)

    def tick(self) -> None:
        """Now and then: those that have left the routes for long enough are to let it go."""
        now_s = self._wall()
        over = [model for model, (_, until_s) in self._leaving.items() if now_s >= until_s]
        for model in over:
            del self._leaving[model]
        if over:
            self._changes.bump()

    # What changes

    @whole
    async def set_policy(self, model: str, **changes: Any) -> Idle:
        """An operator's word; what is not given stays as it is. Raises NotFound, InvalidInput."""
        self._catalog.versions(model)
        try:
            self._entries[model] = await self._db.run(store.change_policy, model, changes)
        except ConfigError as error:
            raise InvalidInput(error.message) from None
        self._changes.bump()
        return self._entries[model].policy

    @whole
    async def sleep(self, model: str, nodes: tuple[str, ...]) -> None:
        """From now on these nodes alone keep it. The leader's. Raises NotLeader."""
        newest = next(iter(self._catalog.deployments(model)), None)
        if newest is None:
            return
        before, entry = self.kept(model), self.entry(model)
        since_s = entry.since_s if entry.deployment else self._wall()
        await self._write(model, dataclasses.replace(entry, deployment=newest.id, nodes=nodes, since_s=since_s))
        self._leaving[model] = before, self._wall() + LEAVES_AFTER_S

    @whole
    async def wake(self, model: str) -> None:
        """All that it is deployed to have it again. The leader's. Raises NotLeader."""
        entry = dataclasses.replace(self.entry(model), deployment=0, nodes=(), since_s=self._wall())
        self._leaving.pop(model, None)
        await self._write(model, entry)

    async def _write(self, model: str, entry: Entry) -> None:
        self._entries[model] = await self._db.run_as_leader(store.change_state, model, entry)
        self._changes.bump()
