"""The control plane's registry, catalog and router over a database of their own, without servers and with a clock
that a test turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.config import EndpointOverride
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.idle.book import IdleBook
from nearmesh_controlplane.peers.role import Alone, Self
from nearmesh_controlplane.prices.book import Prices
from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.feed import FeedState
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY, Registry
from nearmesh_controlplane.registry.rows import node_from_row
from nearmesh_controlplane.routing.gather import Gatherer
from nearmesh_controlplane.routing.latency import LatencyBook
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.residency import ResidencyRules
from nearmesh_controlplane.routing.router import Router

from nearmesh.oci import CONFIG_TYPE, WEIGHT_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.package import RoutePolicy
from nearmesh.v1 import node_pb2

LEASE_S = 10.0


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(slots=True)
class State:
    """Everything that the control plane decides by."""

    db: Database
    clock: Clock
    changes: Generation
    registry: Registry
    catalog: Catalog
    measurements: Measurements
    router: Router
    prices: Prices
    residency: ResidencyRules
    idle: IdleBook
    # Seconds since the epoch, by which prices end.
    wall: Clock

    @property
    def latencies(self) -> LatencyBook:
        return self.measurements.latencies

    async def join(self, name: str, region: str = "europe-west1", *, kind: str = "node", site: str = "") -> Node:
        """A machine that has joined and was never seen."""

        def insert(connection: sa.Connection) -> Node:
            row = {"id": name, "kind": kind, "site": site or f"site-{name}", "region": region, "joined_at_s": 1.0}
            connection.execute(sa.insert(tables.nodes).values(**row))
            return node_from_row(connection.execute(sa.select(tables.nodes).where(tables.nodes.c.id == name)).one())

        return await self.registry.register(insert)

    async def node(
        self,
        name: str,
        region: str = "europe-west1",
        *,
        usd: float = 1.0,
        hardware: str = "",
        site: str = "",
        keeps_vectors: bool = False,
    ) -> None:
        """A node with an open session."""
        await self.join(name, region, site=site)
        hello = node_pb2.NodeHello(
            public_address=f"{name}:8001",
            mesh_address=f"{name}:8003",
            usd_per_hour=usd,
            hardware=hardware,
            keeps_vectors=keeps_vectors,
        )
        await self.registry.hello(name, hello)
        self.registry.session_opened(name)

    async def reports(self, name: str, *replicas: node_pb2.ReplicaStatus, draining: bool = False) -> None:
        await self.registry.status(name, node_pb2.NodeStatus(replicas=replicas, draining=draining))

    async def publish(self, model: str, version: str = "1", policy: RoutePolicy | None = None) -> str:
        """A version's digest."""
        made = manifest(model, version)
        await self.catalog.add(made, digest_of(model, version), policy or RoutePolicy(), stored)
        return digest_of(model, version)


def alone() -> Alone:
    """A control plane without others."""
    return Alone(Self(id="only", incarnation="1", public="only:7400", mesh="only:7401", http="only:7480"), 1)


async def stored() -> None:
    """Where there is no layout."""


def manifest(model: str, version: str) -> Manifest:
    blobs = [
        Descriptor(kind, digest_bytes(f"{model}{version}{kind}".encode()), 10, "a")
        for kind in (CONFIG_TYPE, WEIGHT_TYPE)
    ]
    return Manifest(model, version, blobs[0], (blobs[1],))


def digest_of(model: str, version: str) -> str:
    return digest_bytes(manifest(model, version).to_bytes())


def replica(
    model: str = "m",
    version: str = "1",
    *,
    state: node_pb2.ReplicaState = READY,
    detail: str = "",
    per_second: float = 10.0,
    service_ms: float = 5.0,
    variant: str = "fp32",
) -> node_pb2.ReplicaStatus:
    """What a node says of one version."""
    return node_pb2.ReplicaStatus(
        model=model,
        digest=digest_of(model, version),
        state=state,
        detail=detail,
        variant=variant,
        service_ms_p50=service_ms,
        service_ms_p95=service_ms,
        inferences_per_second=per_second,
    )


@asynccontextmanager
async def state(folder: Path, overrides: Iterable[EndpointOverride] = ()) -> AsyncIterator[State]:
    """What lies in `folder`, as a control plane finds it when it starts."""
    db, clock, changes = Database.open(folder / "state.db"), Clock(), Generation()
    try:
        wall = Clock()
        prices, residency = Prices(db, changes, Currencies({"EUR": 2.0}), FeedState()), ResidencyRules(db, changes)
        registry = Registry(db, changes, LEASE_S, clock, lambda node: prices.usd_per_hour(node, wall.now_s))
        catalog = Catalog(db, changes)
        await prices.restore()
        await residency.restore()
        await registry.restore()
        await catalog.restore()
        measurements = Measurements(registry, catalog, clock)
        idle = IdleBook(db, changes, catalog, wall)
        await idle.restore()
        gatherer = Gatherer(registry, catalog, measurements, residency, prices, clock, idle.kept)
        router = Router("mesh", registry, catalog, gatherer, changes, overrides, clock=clock)
        yield State(db, clock, changes, registry, catalog, measurements, router, prices, residency, idle, wall)
    finally:
        db.close()


class CallContext:
    """As much of a call's context as our servicers ask for."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


def context(*metadata: tuple[str, str]) -> CallContext:
    """Of a call with that metadata."""
    return CallContext(metadata)
