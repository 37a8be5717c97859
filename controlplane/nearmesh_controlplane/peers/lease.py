"""The lease on the leadership as the shared database keeps it, in single statements: each is a decision of its own."""

from __future__ import annotations

from typing import Any

from nearmesh_controlplane.peers.leadership import Holder
from nearmesh_controlplane.peers.role import Self
from nearmesh_controlplane.postgresql import CHANNEL, notice

# What `claim` renews keeps its term; what it takes over gets the next one, and stands in the history.
_CLAIM = """
WITH moment AS (SELECT extract(epoch FROM clock_timestamp())::float8 AS now_s),
claimed AS (
    UPDATE leadership SET
        term = CASE WHEN incarnation = %(me)s THEN term ELSE term + 1 END,
        holder = %(id)s,
        incarnation = %(me)s,
        expires_at_s = extract(epoch FROM clock_timestamp())::float8 + %(lease_s)s
    WHERE incarnation = %(me)s OR expires_at_s <= extract(epoch FROM clock_timestamp())::float8
    RETURNING term, holder, incarnation, expires_at_s
),
history AS (
    INSERT INTO terms (term, holder, since_s)
    SELECT term, holder, now_s FROM claimed, moment ON CONFLICT (term) DO NOTHING
)
SELECT holder, incarnation, term, expires_at_s - now_s FROM claimed, moment
UNION ALL
SELECT holder, incarnation, term, expires_at_s - now_s FROM leadership, moment WHERE NOT EXISTS (SELECT FROM claimed)
"""

_GIVE_BACK = "UPDATE leadership SET expires_at_s = 0 WHERE incarnation = %(me)s"

_SHOW = """
INSERT INTO control_planes (id, public_address, mesh_address, http_address, seen_at_s)
VALUES (%(id)s, %(public)s, %(mesh)s, %(http)s, extract(epoch FROM clock_timestamp())::float8)
ON CONFLICT (id) DO UPDATE SET
    public_address = excluded.public_address,
    mesh_address = excluded.mesh_address,
    http_address = excluded.http_address,
    seen_at_s = excluded.seen_at_s
"""


async def claim(connection: Any, me: Self, lease_s: float) -> Holder:
    """Renews the own lease or takes over an expired one; who holds it then."""
    cursor = await connection.execute(_CLAIM, {"me": me.incarnation, "id": me.id, "lease_s": lease_s})
    holder, incarnation, term, left_s = await cursor.fetchone()
    return Holder(id=holder, incarnation=incarnation, term=term, left_s=left_s)


async def give_back(connection: Any, me: Self) -> None:
    """Ends the own lease, if it is held, and wakes the others."""
    await connection.execute(_GIVE_BACK, {"me": me.incarnation})
    await tell(connection, me.incarnation, "leadership")


async def show(connection: Any, me: Self) -> None:
    """Says that this control plane is there, and where."""
    await connection.execute(_SHOW, {"id": me.id, "public": me.public, "mesh": me.mesh, "http": me.http})


async def tell(connection: Any, author: str, table: str) -> None:
    """Has all others read a table."""
    await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, notice(author, [table])))
