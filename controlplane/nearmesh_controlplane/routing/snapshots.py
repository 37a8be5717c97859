"""Makes the signed snapshots by which the mesh goes on without its control plane.

A new one is made soon after what it says has changed, and at a third of its life. Measurements drift all the time and
alone lead to one now and then. Making one for a large mesh is work, so that it never takes more than a small part of
the time, and never comes in the moment of the change, when everybody is told of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from nearmesh.ids import check_label
from nearmesh.routing import OBJECTIVES, Ranked, parse_objective
from nearmesh.snapshot import MAX_SNAPSHOT_BYTES, opened, sealed
from nearmesh.v1 import route_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.routing.residency import ResidencyRules
from nearmesh_controlplane.routing.router import Router

log = logging.getLogger(__name__)

# How many nodes a route names: enough to outlive most of a large mesh, few enough to travel.
MAX_CHOICES = 16
# Of all routes together; a larger mesh has fewer for each.
MAX_CHOICES_IN_ALL = 60_000
MIN_CHOICES = 2
# Clients say where they are; the region that was asked for longest ago gives way.
MAX_ASKED_REGIONS = 64

# After a change, what else changes with it is waited for.
SETTLE_S = 1.0
# At most one part in so many of the time goes into snapshots.
TIME_PARTS = 20
# When nothing but measurements has changed.
DRIFT_S = 30.0


class Snapshots:
    """The present snapshot, and those who wait for the next. `run` makes them."""

    def __init__(
        self,
        authority: Authority,
        registry: Registry,
        catalog: Catalog,
        router: Router,
        residency: ResidencyRules,
        changes: Generation,
        lifetime_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._registry = registry
        self._catalog = catalog
        self._router = router
        self._residency = residency
        self._changes = changes
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._asked: dict[str, None] = {}
        self._present = pb.Snapshot()
        self._gist = b""
        # Signed copies of the present one: whole, and for clients of one region.
        self._signed: dict[str, pb.SignedSnapshot] = {}
        self._made = Generation()
        # Whether this control plane decides at present; one that does not gives out what another one made.
        self.decides: Callable[[], bool] = lambda: True

    @property
    def present(self) -> pb.Snapshot:
        """The newest one; not to be changed."""
        return self._present

    async def run(self) -> None:
        """For ever."""
        while True:
            seen, began_s = self._changes.value, time.monotonic()
            if self.decides():
                await self.refresh()
            pause_s = max(SETTLE_S, TIME_PARTS * (time.monotonic() - began_s))
            if await self._changes.above(seen, self._lifetime_s / 3) > seen:
                await asyncio.sleep(min(pause_s, self._lifetime_s / 3))

    async def refresh(self) -> bool:
        """Makes a new one if it is time to; whether it did."""
        made = await self._build()
        if not self.decides():
            # Another one has begun to lead meanwhile, and its snapshot may be here already.
            return False
        gist, now_s = _gist(made), self._clock()
        age_s = now_s - self._present.issued_at_s
        if gist == self._gist and age_s < min(DRIFT_S, self._lifetime_s / 3):
            return False
        # Time itself counts, so that a restarted control plane goes on above what it said before.
        made.generation = max(self._present.generation + 1, int(now_s * 1000))
        made.issued_at_s, made.expires_at_s = now_s, now_s + self._lifetime_s
        self._present, self._gist = made, gist
        self._signed.clear()
        self._made.bump()
        return True

    def follow(self, signed: pb.SignedSnapshot) -> pb.Snapshot:
        """Takes over what another control plane of the mesh made. Raises SnapshotRefused, SnapshotExpired."""
        if self._signed.get("") != signed:
            mesh = self._authority.mesh
            self._present = opened(signed, self._authority.ca_pem, mesh=mesh, now_s=self._clock())
            self._signed, self._gist = {"": signed}, b""
            self._made.bump()
        return self._present

    async def watch(self, region: str) -> AsyncIterator[pb.SignedSnapshot]:
        """The present one and each that follows: whole, or what clients of `region` need. Raises InvalidInput."""
        if region:
            self._ask(check_label("region", region))
        sent = 0
        while True:
            seen = self._made.value
            # Who does not decide gives what there is: the one that does has never heard of this region.
            what = region if self._holds(region) or self.decides() else ""
            if self._present.generation > sent and self._holds(what):
                sent = self._present.generation
                yield self._message(what)
            await self._made.above(seen)

    def _ask(self, region: str) -> None:
        known = self._holds(region)
        self._asked.pop(region, None)
        self._asked[region] = None
        if len(self._asked) > MAX_ASKED_REGIONS:
            del self._asked[next(iter(self._asked))]
        if not known:
            self._changes.drift()

    def _holds(self, region: str) -> bool:
        return not region or any(table.region == region for table in self._present.tables)

    def _message(self, region: str) -> pb.SignedSnapshot:
        found = self._signed.get(region)
        if found is None:
            found = self._signed[region] = sealed(_only(self._present, region), self._authority.key)
        return found

    # What it says

    async def _build(self) -> pb.Snapshot:
        regions = self._regions()
        routes = max(1, len(regions) * len(self._catalog.models()) * len(OBJECTIVES))
        choices = max(MIN_CHOICES, min(MAX_CHOICES, MAX_CHOICES_IN_ALL // routes))
        while True:
            made = await self._with(regions, choices)
            size = made.ByteSize()
            if size < MAX_SNAPSHOT_BYTES or choices == 1:
                return made
            log.warning("a snapshot of %d bytes is too large; it gets fewer than %d nodes a route", size, choices)
            choices //= 2

    def _regions(self) -> list[str]:
        """Where machines are, where clients said they are, and every region whose clients are bound to others: for
        what stands here for no region by name, the nearest one's routes are used."""
        found = {node.region for node in self._registry.all() if not node.removed} | self._asked.keys()
        return sorted(found | {bound for bound, _ in self._residency.all()})

    async def _with(self, regions: Sequence[str], choices: int) -> pb.Snapshot:
        nodes = self._registry.serving_nodes()
        models = self._catalog.models()
        made = pb.Snapshot(
            mesh=self._authority.mesh,
            nodes=[_node(node) for node in nodes],
            models=[self._model(model) for model in models],
            removed_nodes=sorted(self._registry.removed_ids()),
            jwks_json=self._authority.jwks_json,
        )
        for region in regions:
            made.tables.append(self._table(region, nodes, models, choices))
            # Between regions others have their turn.
            await asyncio.sleep(0)
        return made

    def _model(self, model: str) -> pb.SnapshotModel:
        policy = self._catalog.policy(model)
        deployed = next(iter(self._catalog.deployments(model)), None)
        return pb.SnapshotModel(
            name=model,
            version=deployed.version if deployed else "",
            digest=deployed.digest if deployed else "",
            objective=policy.objective,
            deadline_ms=policy.deadline_ms,
        )

    def _table(self, region: str, nodes: Sequence[Node], models: Sequence[str], choices: int) -> pb.SnapshotTable:
        index = {node.id: i for i, node in enumerate(nodes)}
        nearest = self._router.table(region, "public").nearest
        return pb.SnapshotTable(
            region=region,
            addresses=list(filter(None, (self._address(region, i, node) for i, node in enumerate(nodes)))),
            routes=[
                self._route(region, number, model, objective, index, choices)
                for number, model in enumerate(models)
                for objective in OBJECTIVES
            ],
            nearest=[index[e.node] for e in nearest if e.node in index][:MAX_CHOICES],
        )

    def _address(self, region: str, index: int, node: Node) -> pb.SnapshotAddress | None:
        public, mesh = (self._router.address(region, node, "public"), self._router.address(region, node, "mesh"))
        if (public, mesh) == (node.public_address, node.mesh_address):
            return None
        return pb.SnapshotAddress(node=index, public_address=public, mesh_address=mesh)

    def _route(
        self, region: str, number: int, model: str, objective: str, index: Mapping[str, int], choices: int
    ) -> pb.SnapshotRoute:
        deadline_ms = self._catalog.policy(model).deadline_ms
        best = self._router.best(model, region, parse_objective(objective), choices)
        return pb.SnapshotRoute(
            model=number,
            objective=objective,
            choices=[_choice(r, index[r.candidate.node], deadline_ms) for r in best if r.candidate.node in index],
        )


def _node(node: Node) -> pb.SnapshotNode:
    return pb.SnapshotNode(
        id=node.id,
        site=node.site,
        region=node.region,
        spot=node.spot,
        public_address=node.public_address,
        mesh_address=node.mesh_address,
        usd_per_hour=node.usd_per_hour,
    )


def _choice(ranked: Ranked, index: int, deadline_ms: float) -> pb.SnapshotChoice:
    c = ranked.candidate
    return pb.SnapshotChoice(
        node=index,
        share=c.share,
        network_ms_quantiles=c.network.ms,
        service_ms_quantiles=c.service.ms,
        usd_per_1000=c.usd_per_1000,
        p_in_time=c.p_in_time(deadline_ms),
        why=ranked.why,
    )


def _only(snapshot: pb.Snapshot, region: str) -> pb.Snapshot:
    """The part that clients of one region need; all of it for ""."""
    if not region:
        return snapshot
    part = pb.Snapshot()
    part.CopyFrom(snapshot)
    part.only_region = region
    del part.tables[:]
    part.tables.extend(table for table in snapshot.tables if table.region == region)
    return part


def _gist(snapshot: pb.Snapshot) -> bytes:
    """What a new snapshot is made for: who is there, where, and who gets how much of what; no measurements.

    The order of those who only stand by changes with each measurement, and does not count.
    """
    rest = pb.Snapshot()
    rest.CopyFrom(snapshot)
    for table in rest.tables:
        table.nearest[1:] = sorted(table.nearest[1:])
        for route in table.routes:
            placed = [(choice.node, round(choice.share, 1)) for choice in route.choices]
            placed[1:] = sorted(placed[1:])
            del route.choices[:]
            route.choices.extend(pb.SnapshotChoice(node=node, share=share) for node, share in placed)
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).digest()
