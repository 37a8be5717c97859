"""What one control plane is among those of its mesh, for the parts that behave differently when it does not lead."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from google.protobuf.message import Message

from nearmesh.routing.table import Endpoint, Listener, ModelRoutes, RouteSource, RouteTable
from nearmesh.snapshot import SnapshotRoutes
from nearmesh.v1 import route_pb2
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database

# A control plane that was not seen for so long is not named to nodes any more.
FORGOTTEN_AFTER_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Self:
    """One control plane as the others know it."""

    id: str
    # What tells its process from the one before.
    incarnation: str
    # host:port of its three listeners, as others reach them.
    public: str
    mesh: str
    http: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A control plane of the mesh, this one too."""

    id: str
    public: str
    mesh: str
    http: str
    seen_at_s: float
    # In which it leads; 0 when it does not.
    term: int = 0


class Role(Protocol):
    """What others ask."""

    def check_leads(self) -> None:
        """Raises NotLeader, which says who does."""
        ...

    def decides(self) -> bool:
        """It leads, and goes by what it knows itself."""
        ...

    def followed(self) -> SnapshotRoutes | None:
        """The leader's routes, where they are to be given out; None where this control plane decides itself."""
        ...

    async def pass_on(self, request: route_pb2.ReportLatencyRequest, reporter: str) -> bool:
        """Gives a client's report to the leader, if that is another control plane; whether it was. Raises MeshError."""
        ...

    async def ask_leader(self, method: str, request: Message, asker: str) -> Any:
        """What the RouteService of the leader answers; None where that is this control plane. Raises MeshError."""
        ...

    def known(self) -> Sequence[Peer]:
        """Every control plane that was there lately, by id."""
        ...

    async def look(self) -> Sequence[Peer]:
        """The same, read anew."""
        ...

    async def run(self) -> None:
        """For ever."""
        ...


class Alone:
    """The only control plane of its mesh."""

    def __init__(self, me: Self, term: int) -> None:
        self._me = me
        self._term = term

    @classmethod
    async def open(cls, db: Database, me: Self) -> Alone:
        return cls(me, await db.run(_lead_alone, me.id, time.time()))

    def check_leads(self) -> None:
        return None

    def decides(self) -> bool:
        return True

    def followed(self) -> None:
        return None

    async def pass_on(self, request: route_pb2.ReportLatencyRequest, reporter: str) -> bool:
        return False

    async def ask_leader(self, method: str, request: Message, asker: str) -> Any:
        return None

    def known(self) -> Sequence[Peer]:
        return [peer_of(self._me, self._term)]

    async def look(self) -> Sequence[Peer]:
        return self.known()

    async def run(self) -> None:
        return None


class Rules(Protocol):
    """Where data may go, as operators have it now."""

    def may_answer(self, model: str, region: str) -> frozenset[str] | None:
        """The regions that may answer a client region's calls of a model; None: any."""
        ...

    def may_answer_at_all(self, region: str) -> frozenset[str] | None:
        """The same for calls that name no model."""
        ...


class GivenOut:
    """The routes that this control plane gives out: its own, or those of the leader. Implements `RouteSource`.

    What the leader decided may be older than a rule of residency, and such a rule never yields.
    """

    def __init__(self, own: RouteSource, role: Role, rules: Rules) -> None:
        self._own = own
        self._role = role
        self._rules = rules

    def table(self, region: str, listener: Listener) -> RouteTable:
        followed = self._role.followed()
        if followed is None:
            return self._own.table(region, listener)
        return self._bound(followed.table(region, listener), region)

    async def changed(self, after: int) -> int:
        # The leader's news count as changes as well.
        return await self._own.changed(after)

    def _bound(self, table: RouteTable, region: str) -> RouteTable:
        """The same object as long as no rule takes a node out: then it is known to be no news."""
        nearest = _within(table.nearest, self._rules.may_answer_at_all(region))
        models = {name: _routes_within(r, self._rules.may_answer(name, region)) for name, r in table.models.items()}
        same = nearest is table.nearest and all(models[name] is routes for name, routes in table.models.items())
        return table if same else dataclasses.replace(table, models=models, nearest=nearest)


def _routes_within(routes: ModelRoutes, rule: frozenset[str] | None) -> ModelRoutes:
    left = {objective: _within(nodes, rule) for objective, nodes in routes.by_objective.items()}
    if all(left[objective] is nodes for objective, nodes in routes.by_objective.items()):
        return routes
    return dataclasses.replace(routes, by_objective=left)


def _within(nodes: tuple[Endpoint, ...], rule: frozenset[str] | None) -> tuple[Endpoint, ...]:
    if rule is None or all(node.region in rule for node in nodes):
        return nodes
    return tuple(node for node in nodes if node.region in rule)


def peer_of(me: Self, term: int = 0) -> Peer:
    """This control plane as it lists itself."""
    return Peer(id=me.id, public=me.public, mesh=me.mesh, http=me.http, seen_at_s=time.time(), term=term)


def read_peers(connection: sa.Connection) -> list[Peer]:
    """Those that were there lately, by id."""
    held = connection.execute(sa.select(tables.leadership)).one()
    rows = connection.execute(sa.select(tables.control_planes).order_by(tables.control_planes.c.id)).all()
    newest_s = max((row.seen_at_s for row in rows), default=0.0)
    # By the database's own clock, which the newest of them stands for.
    return [_peer(row, held) for row in rows if row.seen_at_s > newest_s - FORGOTTEN_AFTER_S]


def _peer(row: sa.Row[tuple[str, str, str, str, float]], held: sa.Row[tuple[int, int, str, str, float]]) -> Peer:
    leads = held.holder == row.id and held.expires_at_s > row.seen_at_s
    return Peer(
        id=row.id,
        public=row.public_address,
        mesh=row.mesh_address,
        http=row.http_address,
        seen_at_s=row.seen_at_s,
        term=held.term if leads else 0,
    )


def _lead_alone(connection: sa.Connection, control_plane: str, now_s: float) -> int:
    """Where nobody shares the database: the next term, for whoever opened it."""
    term = connection.execute(sa.select(tables.leadership.c.term)).scalar_one() + 1
    connection.execute(sa.update(tables.leadership).values(term=term, holder=control_plane))
    connection.execute(sa.insert(tables.terms).values(term=term, holder=control_plane, since_s=now_s))
    return int(term)
