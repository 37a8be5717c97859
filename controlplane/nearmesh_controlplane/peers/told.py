"""What the leader tells the others through the shared database: its newest snapshot, and who was seen when.

Written in the leader's term: a leadership that is over writes nothing any more, so what stands there was decided by the
leader of its time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Any

import sqlalchemy as sa

from nearmesh.errors import ConfigError
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.postgresql import one_at_a_time
from nearmesh_controlplane.registry.nodes import Sighting

# To when a node was seen last, the others know it this well.
SEEN_GRAIN_S = 10.0

ROUTES, PRESENCE, AUTHORITY, MODEL_KEY = "routes", "presence", "authority", "authority/models"


def write(connection: sa.Connection, name: str, term: int, content: bytes) -> None:
    """Through `Database.run_as_leader`."""
    # Routes may be large: who only needs to hear of presence does not read them.
    connection.info.setdefault("written", set()).add(topic(name))
    row = tables.decisions.c.name == name
    changed = connection.execute(sa.update(tables.decisions).where(row).values(term=term, content=content))
    if not changed.rowcount:
        connection.execute(sa.insert(tables.decisions).values(name=name, term=term, content=content))


def topic(name: str) -> str:
    """Under which the others hear that it was written."""
    return f"decisions/{name}"


def read(connection: sa.Connection, name: str) -> bytes:
    """What was written last; empty before anything was."""
    found = connection.execute(sa.select(tables.decisions.c.content).where(tables.decisions.c.name == name))
    return bytes(found.scalar_one_or_none() or b"")


def presence_bytes(sightings: Mapping[str, Sighting]) -> bytes:
    """The same for a while, as long as nobody comes or goes: so that it need not be written each second."""
    found = {}
    for node, seen in sorted(sightings.items()):
        rounded = replace(seen, at_s=seen.at_s // SEEN_GRAIN_S * SEEN_GRAIN_S)
        # Of most nodes there is no more to say.
        found[node] = astuple(rounded)[: None if seen != Sighting(seen.presence, seen.at_s) else 2]
    return json.dumps(found).encode()


def presence_from(content: bytes) -> dict[str, Sighting]:
    found: dict[str, Any] = json.loads(content or b"{}")
    return {node: Sighting(*values) for node, values in found.items()}


def check_authority(connection: sa.Connection, authority: bytes, name: str = AUTHORITY) -> None:
    """The first control plane leaves its public keys; those of all others must be the same. Raises ConfigError."""
    one_at_a_time(connection)
    row = tables.decisions.c.name == name
    known = connection.execute(sa.select(tables.decisions.c.content).where(row)).scalar_one_or_none()
    if known is None:
        connection.execute(sa.insert(tables.decisions).values(name=name, term=0, content=authority))
    elif known != authority:
        raise ConfigError(
            "this control plane has other keys than those that its database was made with: every certificate, token "
            "and model version of the mesh is signed by them. Bring back the folder `authority` below `data`, from a "
            "backup or from another control plane of the mesh, and start it again"
        )
