"""The node registry: who belongs to the mesh, what each node said last, and who is alive.

Durable facts are written to the database before they are seen here; presence lives in memory alone. After a restart
every node counts as just lost, so that those who come back within the lease never leave the routes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from nearmesh.errors import InvalidInput, NotFound
from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database, whole
from nearmesh_controlplane.generation import Generation

# "live": its session is open. "suspect": it broke within the lease. "gone": longer ago, or it never had one.
Presence = Literal["live", "suspect", "gone"]

READY = pb.REPLICA_STATE_READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The durable facts about one node or gateway."""

    id: str
    kind: str
    site: str
    region: str
    joined_at_s: float
    public_address: str = ""
    mesh_address: str = ""
    metrics_address: str = ""
    hardware: str = ""
    agent_version: str = ""
    own_usd_per_hour: float = 0.0
    set_usd_per_hour: float | None = None
    draining: bool = False
    cordoned: bool = False
    removed: bool = False

    @property
    def usd_per_hour(self) -> float:
        """The operator's price, else the node's own."""
        return self.own_usd_per_hour if self.set_usd_per_hour is None else self.set_usd_per_hour


@dataclass(slots=True)
class _Seen:
    """A node's presence. Times are of the monotonic clock, `at_s` of the wall clock for people."""

    open_sessions: int = 0
    lost_at: float = -math.inf
    at_s: float = 0.0
    leaving: bool = False


class Registry:
    """All nodes and gateways of the mesh."""

    def __init__(self, db: Database, changes: Generation, lease_s: float, clock: Callable[[], float]) -> None:
        self._db = db
        self._changes = changes
        self._lease_s = lease_s
        self._clock = clock
        self._nodes: dict[str, Node] = {}
        self._seen: dict[str, _Seen] = {}
        self._replicas: dict[str, dict[str, pb.ReplicaStatus]] = {}
        self._presence: dict[str, Presence] = {}

    async def restore(self) -> None:
        """Reads the durable state; called once, before anyone is served."""
        for node, replicas in await self._db.run(_read_all):
            self._nodes[node.id] = node
            self._replicas[node.id] = replicas
            self._seen[node.id] = _Seen(lost_at=self._clock() if replicas else -math.inf)
        self.expire()

    # What is asked

    def get(self, node_id: str) -> Node:
        """Raises NotFound."""
        node = self._nodes.get(node_id)
        if node is None:
            raise NotFound(f"no node {node_id!r}; the mesh has {', '.join(sorted(self._nodes)) or 'none yet'}")
        return node

    def all(self) -> list[Node]:
        return sorted(self._nodes.values(), key=lambda node: node.id)

    def serving_nodes(self) -> list[Node]:
        """Nodes (not gateways) that have not been removed."""
        return [node for node in self.all() if node.kind == "node" and not node.removed]

    def removed_ids(self) -> frozenset[str]:
        return frozenset(node.id for node in self._nodes.values() if node.removed)

    def replicas(self, node_id: str) -> Mapping[str, pb.ReplicaStatus]:
        """What the node said last of each version, by digest."""
        return self._replicas.get(node_id, {})

    def presence(self, node_id: str) -> Presence:
        seen = self._seen.get(node_id)
        if seen is None:
            return "gone"
        if seen.open_sessions:
            return "live"
        return "suspect" if self._clock() - seen.lost_at < self._lease_s else "gone"

    def leaving(self, node_id: str) -> bool:
        """The operator drains the node, or the node itself said that it goes."""
        seen = self._seen.get(node_id)
        return self.get(node_id).draining or bool(seen and seen.leaving)

    def last_seen_s(self, node_id: str) -> float:
        """Seconds since the epoch; 0 when the node has not been seen since the control plane started."""
        seen = self._seen.get(node_id)
        return seen.at_s if seen else 0.0

    # What changes

    @whole
    async def register(self, connection_change: Callable[[Any], Node]) -> Node:
        """Runs a transaction that writes a node's row, then knows the node."""
        node = await self._db.run(connection_change)
        self._nodes[node.id] = node
        self._changes.bump()
        return node

    async def hello(self, node_id: str, hello: pb.NodeHello) -> None:
        """Takes over the addresses and the price that a node brings to its session."""
        price = hello.usd_per_hour if hello.usd_per_hour > 0 else 0.0
        await self._update(
            node_id,
            public_address=hello.public_address,
            mesh_address=hello.mesh_address,
            metrics_address=hello.metrics_address,
            hardware=hello.hardware,
            agent_version=hello.agent_version,
            own_usd_per_hour=check_price(price),
        )

    @whole
    async def status(self, node_id: str, status: pb.NodeStatus) -> None:
        """Takes over a report; writes to disk only what a restart must know."""
        new = {replica.digest: replica for replica in status.replicas}
        old = self._replicas.get(node_id, {})
        seen = self._seen[node_id]
        changed = _durable(new) != _durable(old)
        if changed:
            await self._db.run(_write_replicas, node_id, new)
        changed |= seen.leaving != status.draining
        self._replicas[node_id] = new
        seen.leaving, seen.at_s = status.draining, time.time()
        if changed:
            self._changes.bump()
        else:
            self._changes.drift()

    def session_opened(self, node_id: str) -> None:
        seen = self._seen.setdefault(node_id, _Seen())
        seen.open_sessions += 1
        seen.at_s, seen.leaving = time.time(), False
        self.expire()

    def session_closed(self, node_id: str) -> None:
        seen = self._seen[node_id]
        seen.open_sessions -= 1
        seen.lost_at = self._clock()
        self.expire()

    def heard(self, gateway_id: str) -> None:
        """A gateway has no session; it is there while its measurements arrive."""
        seen = self._seen.setdefault(gateway_id, _Seen())
        seen.lost_at, seen.at_s = self._clock(), time.time()

    def live(self, node: Node) -> bool:
        """For people: the node's session is open, or the gateway was heard of within the lease."""
        presence = self.presence(node.id)
        return presence == "live" or (node.kind == "gateway" and presence == "suspect")

    def expire(self) -> None:
        """Wakes those who route when some node's presence is no longer what it was."""
        present = {node_id: self.presence(node_id) for node_id in self._nodes}
        if present != self._presence:
            self._presence = present
            self._changes.bump()

    async def drain(self, node_id: str, *, undo: bool) -> Node:
        return await self._update(node_id, draining=not undo)

    async def cordon(self, node_id: str, *, undo: bool) -> Node:
        return await self._update(node_id, cordoned=not undo)

    async def remove(self, node_id: str) -> Node:
        return await self._update(node_id, removed=True)

    async def set_price(self, node_id: str, usd_per_hour: float) -> Node:
        return await self._update(node_id, set_usd_per_hour=check_price(usd_per_hour))

    @whole
    async def _update(self, node_id: str, **values: Any) -> Node:
        node = dataclasses.replace(self.get(node_id), **values)
        if node != self._nodes[node_id]:
            await self._db.run(_write_node, node_id, values)
            self._nodes[node_id] = dataclasses.replace(self._nodes[node_id], **values)
            self._changes.bump()
        return self._nodes[node_id]


def check_price(usd_per_hour: float) -> float:
    """Raises InvalidInput for anything that cannot be a price."""
    if not (0 <= usd_per_hour < 1e6):
        raise InvalidInput(f"a price of {usd_per_hour} US dollars per hour is not between 0 and 1,000,000")
    return usd_per_hour


def node_from_row(row: sa.Row[Any]) -> Node:
    return Node(**row._mapping)


def _durable(replicas: Mapping[str, pb.ReplicaStatus]) -> dict[str, tuple[int, str]]:
    return {digest: (replica.state, replica.detail) for digest, replica in replicas.items()}


def _read_all(connection: sa.Connection) -> list[tuple[Node, dict[str, pb.ReplicaStatus]]]:
    replicas: dict[str, dict[str, pb.ReplicaStatus]] = {}
    for row in connection.execute(sa.select(tables.replicas)):
        replicas.setdefault(row.node, {})[row.digest] = pb.ReplicaStatus.FromString(row.status)
    return [(node_from_row(row), replicas.get(row.id, {})) for row in connection.execute(sa.select(tables.nodes))]


def _write_node(connection: sa.Connection, node_id: str, values: dict[str, Any]) -> None:
    connection.execute(sa.update(tables.nodes).where(tables.nodes.c.id == node_id).values(**values))


def _write_replicas(connection: sa.Connection, node_id: str, replicas: dict[str, pb.ReplicaStatus]) -> None:
    connection.execute(sa.delete(tables.replicas).where(tables.replicas.c.node == node_id))
    rows = [{"node": node_id, "digest": d, "status": r.SerializeToString()} for d, r in replicas.items()]
    if rows:
        connection.execute(sa.insert(tables.replicas), rows)
