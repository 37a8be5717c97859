"""What the mesh's own decisions and conversions cost, without a network: in this process, one at a time."""

from __future__ import annotations

import tempfile
import time
import timeit
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.prices.book import Prices
from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.feed import FeedState
from nearmesh_controlplane.registry.nodes import READY, Registry
from nearmesh_controlplane.routing.gather import Gatherer
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.residency import ResidencyRules
from nearmesh_controlplane.routing.router import Router
from tritonclient.grpc import service_pb2

from benchmarks.figures import Spread
from nearmesh import tensors
from nearmesh.devmesh.load import unary_sample
from nearmesh.regions import COORDINATES
from nearmesh.routing import Candidate, rank
from nearmesh.v1 import node_pb2

# Each figure comes from this many batches, each of so many calls that it lasts at least so long.
BATCHES, BATCH_S = 7, 0.01

CANDIDATES = (3, 30, 300)
# Nodes and models of the route tables that are computed.
MESHES = ((3, 4), (30, 10), (300, 10))
CLIENT_REGION = "europe-west1"
DEADLINE_MS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The time of one call, microseconds: the median over the batches, the lowest and the highest."""

    what: str
    median_us: float
    low_us: float
    high_us: float


def timed(what: str, call: Callable[[], Any]) -> Decision:
    """How long `call` takes."""
    timer = timeit.Timer(call)
    number = 1
    while timer.timeit(number) < BATCH_S:
        number *= 2
    spread = Spread.of([seconds / number * 1e6 for seconds in timer.repeat(BATCHES, number)])
    return Decision(what=what, median_us=spread.median, low_us=spread.low, high_us=spread.high)


async def decisions() -> list[Decision]:
    """All of them."""
    found = [*_rankings(), *_conversions()]
    for nodes, models in MESHES:
        async with _mesh(nodes, models) as (router, changes):
            found += _tables(router, changes, f"{nodes} nodes x {models} models")
    return found


def _rankings() -> Iterator[Decision]:
    for count in CANDIDATES:
        pool = [candidate(number) for number in range(count)]
        yield timed(
            f"rank {count} candidates, with the reason for each",
            lambda pool=pool: rank(pool, "cheapest-in-time", DEADLINE_MS, current="node-1"),  # type: ignore[misc]
        )


def candidate(number: int) -> Candidate:
    """One of many that differ in distance, speed and price."""
    network_ms, service_ms = 1.0 + number * 7 % 290, 5.0 + number % 11
    return Candidate(
        node=f"node-{number}",
        site=f"site-{number}",
        region="europe-west1",
        ready=True,
        network_ms_p50=network_ms,
        network_ms_p95=network_ms * 1.2,
        network_measured=True,
        service_ms_p50=service_ms,
        service_ms_p95=service_ms * 1.5,
        usd_per_hour=0.5 + number % 7 / 10,
        usd_per_1000=0.001 + number % 13 / 10_000,
    )


def _conversions() -> Iterator[Decision]:
    """Arrays to bytes and back, for the largest request; the checks of a message from a stranger included."""
    sample = unary_sample("text-detector")
    encoded = tensors.encode_request(sample.model, sample.inputs).SerializeToString()
    size = f"{len(encoded) / 1e6:.1f} MB"
    yield timed(
        f"encode a request of {size}", lambda: tensors.encode_request(sample.model, sample.inputs).SerializeToString()
    )
    yield timed(
        f"decode a request of {size}",
        lambda: tensors.decode_request(service_pb2.ModelInferRequest.FromString(encoded)),
    )


def _tables(router: Router, changes: Generation, size: str) -> Iterator[Decision]:
    def fresh() -> None:
        changes.bump()
        router.table(CLIENT_REGION, "public")

    yield timed(f"route table after a change, {size}", fresh)
    yield timed(f"route table without one, {size}", lambda: router.table(CLIENT_REGION, "public"))


# A control plane's own classes with that many nodes.


@asynccontextmanager
async def _mesh(nodes: int, models: int) -> AsyncIterator[tuple[Router, Generation]]:
    with tempfile.TemporaryDirectory() as folder:
        database = Database.open(Path(folder) / "state.db")
        try:
            await database.run(_fill, nodes, models)
            yield await _router(database)
        finally:
            database.close()


async def _router(database: Database) -> tuple[Router, Generation]:
    changes = Generation()
    registry, catalog = Registry(database, changes, 5.0, time.monotonic), Catalog(database, changes)
    await registry.restore()
    await catalog.restore()
    measurements = Measurements(registry, catalog, time.monotonic)
    for number, node in enumerate(registry.all()):
        registry.session_opened(node.id)
        samples, now_s = [5.0 + number % 200 + i / 10 for i in range(20)], time.monotonic()
        measurements.latencies.report(CLIENT_REGION, node.id, samples, kind="gateway", reporter="door", now_s=now_s)
    prices, residency = Prices(database, changes, Currencies({}), FeedState()), ResidencyRules(database, changes)
    gatherer = Gatherer(registry, catalog, measurements, residency, prices, time.monotonic)
    return Router("bench", registry, catalog, gatherer, changes, (), time.monotonic), changes


def _fill(connection: sa.Connection, nodes: int, models: int) -> None:
    """Every model deployed everywhere, every node ready with all of them."""
    now_s = time.time()
    for number in range(models):
        version = {"model": f"model-{number}", "version": "1", "digest": _digest(number)}
        connection.execute(sa.insert(tables.versions).values(**version, size_bytes=1, created_at_s=now_s))
        connection.execute(sa.insert(tables.deployments).values(**version, sites=[], created_at_s=now_s, actor="bench"))
    places = sorted(COORDINATES)
    for number in range(nodes):
        region = places[number % len(places)]
        node = {"id": f"node-{number}", "kind": "node", "site": f"{region}-a", "region": region}
        price = 0.5 + number % 7 / 10
        connection.execute(sa.insert(tables.nodes).values(**node, own_usd_per_hour=price, joined_at_s=now_s))
        for model in range(models):
            row = {"node": node["id"], "digest": _digest(model), "status": _status(model).SerializeToString()}
            connection.execute(sa.insert(tables.replicas).values(**row))


def _digest(number: int) -> str:
    return f"sha256:{number:064x}"


def _status(number: int) -> node_pb2.ReplicaStatus:
    return node_pb2.ReplicaStatus(
        model=f"model-{number}",
        digest=_digest(number),
        variant="fp32",
        state=READY,
        service_ms_p50=5.0,
        service_ms_p95=9.0,
        inferences_per_second=200.0,
    )
