"""One of several control planes over one database: it leads, or it gives out what the leader decided.

A new leader goes on with the routes of the one before until the nodes have come back to it and what it measured speaks:
a change of the leader moves no traffic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message

from nearmesh.errors import MeshError, NotLeader
from nearmesh.snapshot import SnapshotRoutes
from nearmesh.v1 import route_pb2
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.peers import told
from nearmesh_controlplane.peers.changes import Changes
from nearmesh_controlplane.peers.election import Election, steady_clock
from nearmesh_controlplane.peers.leadership import Leadership
from nearmesh_controlplane.peers.relay import Relay
from nearmesh_controlplane.peers.role import Peer, Self, peer_of, read_peers
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.routing.snapshots import Snapshots

log = logging.getLogger(__name__)

# A new leader decides by itself as soon as every node that was live has come back, but not before the ways to them were
# measured a few times; and after the longer time in any case: who is not back then is lost.
SETTLED_WITHIN_S = 8.0
MEASURED_AFTER_S = 3.0
# How often the leader looks whether there is something to tell of presence.
LOOK_EVERY_S = 0.5

# Reads anew what stands in some tables.
Reader = Callable[[], Awaitable[None]]


class Together:
    """Implements `Role`."""

    def __init__(
        self,
        url: str,
        me: Self,
        db: Database,
        changes: Generation,
        registry: Registry,
        snapshots: Snapshots,
        relay: Relay,
        resume: Callable[[SnapshotRoutes], None],
        readers: Mapping[tuple[str, ...], Reader],
    ) -> None:
        """`resume` has the router go on from routes that another one decided; `readers` read what others may have
        written, by the names of the tables."""
        self._me = me
        self._db = db
        self._changes = changes
        self._registry = registry
        self._snapshots = snapshots
        self._relay = relay
        self._resume = resume
        self._leadership = Leadership(me.incarnation)
        self._election = Election(url, me, self._leadership, self._turned)
        self._heard = Changes(url, me.incarnation, self._read)
        self._readers: dict[tuple[str, ...], Reader] = {
            **readers,
            (told.topic(told.PRESENCE),): self._read_presence,
            (told.topic(told.ROUTES),): self._read_routes,
            ("control_planes", "leadership"): self._read_peers,
        }
        # The others become known with the first reading.
        self._peers: Sequence[Peer] = [peer_of(me)]
        # The newest routes that any leader decided.
        self._snapshot: route_pb2.Snapshot | None = None
        self._followed: SnapshotRoutes | None = None
        self._told_presence = b""
        self._turn = Generation()
        self._led_since_s = 0.0
        self._awaited: frozenset[str] = frozenset()
        # The term in which this control plane decides by itself.
        self._settled_term = 0
        db.author, db.term = me.incarnation, self.term
        snapshots.decides = self.decides
        registry.follow({})

    # What others ask

    def term(self) -> int:
        """In which this control plane leads; 0 when it does not."""
        return self._leadership.term(steady_clock())

    def check_leads(self) -> None:
        if not self.term():
            raise NotLeader(self._who_leads())

    def decides(self) -> bool:
        """It leads, and goes by what it knows itself."""
        term = self.term()
        return term != 0 and term == self._settled_term

    def followed(self) -> SnapshotRoutes | None:
        return None if self.decides() else self._followed

    async def pass_on(self, request: route_pb2.ReportLatencyRequest, reporter: str) -> bool:
        return await self.ask_leader("ReportLatency", request, reporter) is not None

    async def ask_leader(self, method: str, request: Message, asker: str) -> Any:
        if self.term():
            return None
        leader = self._leader()
        if leader is None:
            raise NotLeader(self._who_leads())
        return await self._relay.ask(leader.public, method, request, asker)

    def known(self) -> Sequence[Peer]:
        return self._peers

    async def look(self) -> Sequence[Peer]:
        try:
            await self._read_peers()
        except MeshError as error:
            log.warning("the control planes were not looked for: %s", error.message)
        return self._peers

    def _who_leads(self) -> str:
        leader = self._leader()
        if leader is None:
            return f"control plane {self._me.id!r} does not lead, and nobody else does yet; try again"
        return f"control plane {self._me.id!r} does not lead; {leader.id!r} does, at {leader.public} and {leader.mesh}"

    def _leader(self) -> Peer | None:
        """The other one that leads, as far as this one has heard."""
        holder = self._leadership.holder
        return next((p for p in self._peers if holder and p.id == holder.id and p.id != self._me.id), None)

    # What runs

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._election.run())
                tasks.create_task(self._heard.run())
                tasks.create_task(self._act())
                tasks.create_task(self._tell_routes())
        finally:
            await self._relay.close()

    def _turned(self) -> None:
        """It began or ceased to lead."""
        self._turn.bump()
        # Sessions end, and watchers hear of it.
        self._changes.bump()

    async def _act(self) -> None:
        """Takes over when the leadership comes, and tells the others of presence while it lasts."""
        led = 0
        while True:
            seen, term = self._turn.value, self.term()
            try:
                if term != led:
                    await (self._take_over(term) if term else self._let_go())
                    led = term
                if term:
                    self._settle(term)
                    await self._tell_presence(term)
            except MeshError as error:
                log.warning("interrupted in its leadership: %s", error.message)
            await self._turn.above(seen, LOOK_EVERY_S)

    async def _take_over(self, term: int) -> None:
        self._led_since_s = steady_clock()
        self._take_routes(await self._db.run(told.read, told.ROUTES))
        before = told.presence_from(await self._db.run(told.read, told.PRESENCE))
        self._awaited = frozenset(node for node, seen in before.items() if seen.presence == "live")
        await self._read_all()
        await self._registry.restore()
        self._told_presence = b""
        if self._followed is None:
            # The first leader that this mesh has had.
            self._decide(term)

    async def _let_go(self) -> None:
        await self._read_presence()
        await self._read_routes()

    def _settle(self, term: int) -> None:
        """Looks whether what this control plane knows by itself is as good as what the leader before it said."""
        for_s = steady_clock() - self._led_since_s
        back = for_s > MEASURED_AFTER_S and all(self._registry.presence(node) == "live" for node in self._awaited)
        if term != self._settled_term and (back or for_s > SETTLED_WITHIN_S):
            self._decide(term)

    def _decide(self, term: int) -> None:
        if self._followed:
            self._resume(self._followed)
        self._settled_term = term
        log.info("decides term=%d", term)
        self._changes.bump()

    async def _tell_presence(self, term: int) -> None:
        content = told.presence_bytes(self._registry.sightings())
        if content != self._told_presence:
            await self._db.run_as_leader(told.write, told.PRESENCE, term, content, term=term)
            self._told_presence = content

    async def _tell_routes(self) -> None:
        """Each new snapshot that this control plane decided."""
        async for signed in self._snapshots.watch(""):
            term = self.term()
            if not self.decides():
                continue
            self._go_by(self._snapshots.present)
            content = signed.SerializeToString()
            try:
                await self._db.run_as_leader(told.write, told.ROUTES, term, content, term=term)
            except MeshError as error:
                # The next ones follow within half a minute, whatever happens.
                log.warning("the newest routes were not told to other control planes: %s", error.message)

    # What is read

    async def _read(self, written: Collection[str] | None) -> None:
        if written is not None and "leadership" in written:
            self._election.look_now()
        try:
            if written is None:
                await self._read_all()
            else:
                for names, read in self._readers.items():
                    if not set(written).isdisjoint(names):
                        await read()
            self._changes.bump()
        except MeshError as error:
            log.warning("what others wrote was not read: %s", error.message)

    async def _read_all(self) -> None:
        for read in self._readers.values():
            await read()

    async def _read_peers(self) -> None:
        # This one is among them from its first claim on.
        self._peers = await self._db.run(read_peers) or self._peers

    async def _read_presence(self) -> None:
        content = await self._db.run(told.read, told.PRESENCE)
        if not self.term():
            self._registry.follow(told.presence_from(content))

    async def _read_routes(self) -> None:
        content = await self._db.run(told.read, told.ROUTES)
        if not self.decides():
            self._take_routes(content)

    def _take_routes(self, content: bytes) -> None:
        if not content:
            return
        try:
            signed = route_pb2.SignedSnapshot.FromString(content)
            self._go_by(self._snapshots.follow(signed))
        except (DecodeError, MeshError) as error:
            log.error("the leader's routes cannot be used: %s", error)

    def _go_by(self, snapshot: route_pb2.Snapshot) -> None:
        """The same routes stay the same object, which is known to be nothing new."""
        if snapshot is not self._snapshot:
            self._snapshot, self._followed = snapshot, SnapshotRoutes(snapshot)
            self._changes.bump()
