"""The node registry: who belongs to the mesh, what each node said last, and who is alive.

Durable facts are written to the database before they are seen here; presence lives in memory alone. After a restart
every node counts as just lost, so that those who come back within the lease never leave the routes.

A node's price is decided elsewhere (`prices`), by these facts and others, and kept here with them: whoever routes sees
the facts and the price of one moment.

Where several control planes share the database, nodes hold their sessions with the leader. The others read again what
changed, and know of presence what the leader tells them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nearmesh.errors import NotFound
from nearmesh.ids import check_machine_type
from nearmesh.v1 import node_pb2 as pb
from nearmesh.whole import whole
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.prices.currencies import USD, Money, check_price
from nearmesh_controlplane.prices.rules import Price, jumped
from nearmesh_controlplane.registry.node import Node, priced_without_a_feed
from nearmesh_controlplane.registry.reports import (
    alike,
    check_hello,
    durable,
    heard_of_leaving,
    held_of,
    own_price,
    replicas_of,
)
from nearmesh_controlplane.registry.rows import change_node, read_all, write_replicas

log = logging.getLogger(__name__)

# "live": its session is open. "suspect": it broke within the lease. "gone": longer ago, or it never had one.
Presence = Literal["live", "suspect", "gone"]

READY = pb.REPLICA_STATE_READY

# After a start, who served before counts as there for so long: else the first node to be back would get what all had.
RETURN_S = 8.0


@dataclass(slots=True)
class _Seen:
    """A node's presence. Times are of the monotonic clock, `at_s` of the wall clock for people."""

    open_sessions: int = 0
    lost_at: float = -math.inf
    at_s: float = 0.0
    leaving: bool = False
    # It served before this control plane began, and has not come back yet.
    awaited: bool = False
    # What it said last of its going, and when that was; `None` before its first report.
    report: pb.NodeStatus | None = None
    report_at: float = -math.inf
    # By digest, since when its replicas are ready.
    ready_since: dict[str, float] = dataclasses.field(default_factory=dict)
    # Digests of the versions that lie on its disk.
    held: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sighting:
    """A node's presence as the leader saw it, and what a node that leaves said of that. Seconds since the epoch."""

    presence: Presence
    at_s: float
    notice: str = ""
    gone_at_s: float = 0.0
    in_flight: int = 0
    sequences: int = 0
    drained: bool = False


UNSEEN = Sighting("gone", 0.0)


class Registry:
    """All nodes and gateways of the mesh."""

    def __init__(
        self,
        db: Database,
        changes: Generation,
        lease_s: float,
        clock: Callable[[], float],
        price_of: Callable[[Node], Price] = priced_without_a_feed,
    ) -> None:
        self._db = db
        self._changes = changes
        self._lease_s = lease_s
        self._clock = clock
        self._price_of = price_of
        self._nodes: dict[str, Node] = {}
        self._removed: frozenset[str] = frozenset()
        self._seen: dict[str, _Seen] = {}
        self._replicas: dict[str, dict[str, pb.ReplicaStatus]] = {}
        self._presence: dict[str, tuple[Presence, Presence]] = {}
        self._restored_s = -math.inf
        # What the leader says of presence, where that is another control plane; None where it is this one.
        self._told: Mapping[str, Sighting] | None = None

    async def restore(self) -> None:
        """Reads the durable state: at the start, and when this control plane becomes the leader.

        Whoever serves something counts as just lost.
        """
        self._told = None
        self._restored_s = self._clock()
        for node, replicas in await self._db.run(read_all):
            self._know(self._at_its_price(node))
            self._replicas[node.id] = replicas
            seen = self._seen.setdefault(node.id, _Seen())
            seen.lost_at = self._clock() if replicas else -math.inf
            seen.awaited = bool(replicas) and not seen.open_sessions
            # Whoever served before is no newcomer.
            seen.ready_since = {digest: -math.inf for digest, replica in replicas.items() if replica.state == READY}
        self.expire()
        self._changes.bump()

    async def refresh(self) -> None:
        """Reads what other control planes wrote, and of replicas what the leader wrote, if that is another one."""
        found = await self._db.run(read_all)
        for node, replicas in found:
            self._know(self._at_its_price(node))
            if self._told is not None:
                self._replicas[node.id] = replicas
        self.expire()
        self._changes.bump()

    def follow(self, told: Mapping[str, Sighting]) -> None:
        """Takes over what the leader, another control plane, says of presence."""
        self._told = told
        self.expire()

    def sightings(self) -> dict[str, Sighting]:
        """What a leader tells the others."""
        return {node_id: self._sighting(node_id) for node_id in self._nodes}

    def _sighting(self, node_id: str) -> Sighting:
        presence, at_s = self.presence(node_id), self.last_seen_s(node_id)
        if not self.leaving(node_id):
            return Sighting(presence, at_s)
        notice, left_s = self.notice(node_id)
        gone_at_s = round(time.time() + left_s) if notice else 0.0
        return Sighting(presence, at_s, notice, gone_at_s, *self.under_way(node_id))

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
        """Asked at every message of every session."""
        return self._removed

    def replicas(self, node_id: str) -> Mapping[str, pb.ReplicaStatus]:
        """What the node said last of each version, by digest."""
        return self._replicas.get(node_id, {})

    def held(self, node_id: str) -> frozenset[str]:
        """Digests of the versions that lie on the node's disk, as it said last."""
        seen = self._seen.get(node_id)
        return seen.held if seen else frozenset()

    def presence(self, node_id: str) -> Presence:
        if self._told is not None:
            return self._told.get(node_id, UNSEEN).presence
        seen = self._seen.get(node_id)
        if seen is None:
            return "gone"
        if seen.open_sessions:
            return "live"
        return "suspect" if self._clock() - seen.lost_at < self._lease_s else "gone"

    def standing(self, node_id: str) -> Presence:
        """Presence as routes go by it."""
        found, seen = self.presence(node_id), self._seen.get(node_id)
        awaited = found == "suspect" and seen is not None and seen.awaited
        return "live" if awaited and self._clock() - self._restored_s < RETURN_S else found

    def leaving(self, node_id: str) -> bool:
        """The operator drains the node, or the node itself said that it goes."""
        seen = self._seen.get(node_id)
        return self.get(node_id).draining or bool(seen and seen.leaving)

    def notice(self, node_id: str) -> tuple[str, float]:
        """Why a node that is there leaves, and in how many seconds it is gone; ("", 0) when it has not said so."""
        if self._told is not None:
            told = self._told.get(node_id, UNSEEN)
            return told.notice, max(0.0, told.gone_at_s - time.time())
        seen = self._seen.get(node_id)
        if seen is None or not seen.open_sessions or seen.report is None or not seen.report.notice:
            return "", 0.0
        return seen.report.notice, max(0.0, seen.report.notice_s - (self._clock() - seen.report_at))

    def under_way(self, node_id: str) -> tuple[int, int, bool]:
        """Requests and sequences on a node, as it said last, and whether its drain has come to an end."""
        if self._told is not None:
            told = self._told.get(node_id, UNSEEN)
            return told.in_flight, told.sequences, told.drained
        seen = self._seen.get(node_id)
        if seen is None or seen.report is None:
            return 0, 0, False
        return seen.report.in_flight, seen.report.sequences, seen.report.drained

    def ready_since(self, node_id: str) -> Mapping[str, float]:
        """When the node's replicas became ready, by digest and the monotonic clock; those that are not are left out.

        A node that comes back from a short silence with the same replica is as it was; one that was ready before the
        control plane started is so since for ever.
        """
        seen = self._seen.get(node_id)
        return seen.ready_since if seen else {}

    def last_seen_s(self, node_id: str) -> float:
        """Seconds since the epoch; 0 when the node has not been seen since the control plane started."""
        if self._told is not None:
            return self._told.get(node_id, UNSEEN).at_s
        seen = self._seen.get(node_id)
        return seen.at_s if seen else 0.0

    # What changes

    @whole
    async def register(self, connection_change: Callable[[Any], Node]) -> Node:
        """Runs a transaction that writes a node's row, then knows the node."""
        node = self._at_its_price(await self._db.run(connection_change))
        self._know(node)
        self._changes.bump()
        return node

    async def hello(self, node_id: str, hello: pb.NodeHello) -> None:
        """Takes over the addresses, and what a node says of its machine and its price. Raises InvalidInput."""
        check_hello(hello)
        price = own_price(hello)
        if price is None:
            price = self.get(node_id).own_usd_per_hour
            log.warning(
                "node=%s says that it costs %g US dollars per hour, which counts as not said: %g counts, as before",
                node_id,
                hello.usd_per_hour,
                price,
            )
        await self._update(
            node_id,
            by_leader=True,
            public_address=hello.public_address,
            mesh_address=hello.mesh_address,
            metrics_address=hello.metrics_address,
            hardware=hello.hardware,
            agent_version=hello.agent_version,
            own_usd_per_hour=price,
            spot=hello.spot,
            machine_type=check_machine_type(hello.machine_type),
            keeps_vectors=hello.keeps_vectors,
        )

    @whole
    async def status(self, node_id: str, status: pb.NodeStatus) -> None:
        """Takes over a report; writes to disk only what a restart must know. Raises InvalidInput."""
        new = replicas_of(status)
        old = self._replicas.get(node_id, {})
        seen = self._seen[node_id]
        if alike(new, old):
            # The same object as long as it says the same: what was worked out from it holds.
            new = old
        changed = new is not old and durable(new) != durable(old)
        if changed:
            await self._db.run_as_leader(write_replicas, node_id, new)
        held = held_of(status)
        changed |= seen.leaving != status.draining or seen.held != held
        self._replicas[node_id] = new
        seen.leaving, seen.at_s = status.draining, time.time()
        seen.held = held
        seen.report, seen.report_at = heard_of_leaving(status), self._clock()
        ready = [replica.digest for replica in status.replicas if replica.state == READY]
        seen.ready_since = {digest: seen.ready_since.get(digest, self._clock()) for digest in ready}
        if changed:
            self._changes.bump()
        else:
            self._changes.drift()

    def session_opened(self, node_id: str) -> None:
        seen = self._seen.setdefault(node_id, _Seen())
        seen.open_sessions += 1
        seen.at_s, seen.leaving, seen.awaited, seen.report = time.time(), False, False, None
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
        present = {node_id: (self.presence(node_id), self.standing(node_id)) for node_id in self._nodes}
        if present != self._presence:
            self._presence = present
            self._changes.bump()

    async def drain(self, node_id: str, *, undo: bool) -> Node:
        return await self._update(node_id, draining=not undo)

    async def cordon(self, node_id: str, *, undo: bool) -> Node:
        return await self._update(node_id, cordoned=not undo)

    async def remove(self, node_id: str) -> Node:
        return await self._update(node_id, removed=True)

    async def set_price(self, node_id: str, price: Money | float, until_s: float = 0.0) -> Node:
        """The operator's price, US dollars where it is a number alone; until then, or with 0 until it is changed."""
        money = price if isinstance(price, Money) else Money(price, price, USD)
        foreign = money.currency != USD
        return await self._update(
            node_id,
            set_usd_per_hour=check_price(money.usd),
            set_amount=money.amount if foreign else None,
            set_currency=money.currency if foreign else None,
            set_until_s=until_s or None,
        )

    async def unset_price(self, node_id: str) -> Node:
        """Takes the operator's price back."""
        return await self._update(node_id, set_usd_per_hour=None, set_amount=None, set_currency=None, set_until_s=None)

    def end_prices(self, now_s: float) -> None:
        """As time goes by, seconds since the epoch: decides anew when a price that counts has ended."""
        if any(0 < node.price.valid_until_s <= now_s for node in self._nodes.values()):
            self.reprice()

    def reprice(self) -> None:
        """Decides every price anew, and wakes those who route by them if one is another."""
        changed = [(node, after) for node in self._nodes.values() if (after := self._price_of(node)) != node.price]
        for node, after in changed:
            self._know(dataclasses.replace(node, price=after))
        moved = [(node, after) for node, after in changed if after.usd_per_hour != node.usd_per_hour]
        for node, after in moved:
            level = logging.WARNING if jumped(node.price, after) else logging.DEBUG
            log.log(
                level,
                "price node=%s usd_per_hour=%g before=%g by=%s",
                node.id,
                after.usd_per_hour,
                node.usd_per_hour,
                after.source,
            )
        if moved:
            log.info("prices moved nodes=%d", len(moved))
            self._changes.bump()

    @whole
    async def _update(self, node_id: str, *, by_leader: bool = False, **values: Any) -> Node:
        """Against what is on disk, not in memory: another control plane may have written in between."""
        self.get(node_id)
        run = self._db.run_as_leader if by_leader else self._db.run
        node = self._at_its_price(await run(change_node, node_id, values))
        if node != self._nodes[node_id]:
            self._know(node)
            self._changes.bump()
        return node

    def _know(self, node: Node) -> None:
        self._nodes[node.id] = node
        if node.removed != (node.id in self._removed):
            self._removed = self._removed ^ {node.id}

    def _at_its_price(self, node: Node) -> Node:
        return dataclasses.replace(node, price=self._price_of(node))
