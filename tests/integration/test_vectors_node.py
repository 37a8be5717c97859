"""Retrieval on a real node of a real mesh: tokens and their namespaces, quotas, what it tells, and how it leaves."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from nearmesh.client.bootstrap import grpc_bootstrap, write_bootstrap
from nearmesh.client.vectors import Passage, VectorClient
from nearmesh.client.vectors_blocking import BlockingVectors
from nearmesh.errors import (
    ConfigError,
    InvalidInput,
    NotFound,
    NotReady,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    Unsupported,
)
from nearmesh.ids import node_server_name
from tests.integration.mesh_processes import MESH, REGION, ControlPlane, Node, control_plane, until

# All tests share a control plane and a node, and leave no collection behind.
pytestmark = pytest.mark.asyncio(loop_scope="module")

QUOTAS = {"acme": {"max_vectors": 3}, "slow": {"requests_per_second": 2.0}}


class Place:
    """A control plane with a node that keeps vectors."""

    def __init__(self, plane: ControlPlane, node: Node) -> None:
        self.plane, self.node = plane, node

    def client(self, role: str, namespace: str = "", *, token: str | None = None) -> VectorClient:
        issuer = self.plane.authority.issuer
        made = issuer.access("app", role, now_s=time.time(), lifetime_s=600, namespace=namespace)
        return VectorClient(
            self.node.public,
            self.plane.authority.ca_pem,
            made if token is None else token,
            server_name=node_server_name(MESH, self.node.name),
        )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def place(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    node = Node(plane, tmp_path_factory.mktemp("node"), "node-a", vectors={"enabled": True, "namespaces": QUOTAS})
    try:
        await node.start()
        found = Place(plane, node)
        async with found.client("operator") as operator:

            async def answers() -> bool:
                try:
                    await operator.list()
                except NotReady:
                    return False
                return True

            await until(answers, within_s=40, what="the vectors can be asked for")
        yield found
    finally:
        await node.end()


async def test_a_token_reaches_its_own_namespace_and_its_quota(place: Place) -> None:
    rows = [Passage(id=name, vector=np.eye(4)[number], text=name) for number, name in enumerate("abcd")]
    async with (
        place.client("data", "acme") as acme,
        place.client("client", "acme") as reader,
        place.client("client") as other,
        place.client("operator") as operator,
        place.client("data", "slow") as slow,
        place.client("data", token="eyJ.no.token") as stranger,
    ):
        docs = await acme.create("docs", dimension=4)
        assert (await docs.upsert(rows[:3])).written == 3
        with pytest.raises(QuotaExceeded, match="'acme' has 3 vectors"):
            await docs.upsert(rows[3:])
        found = await reader.collection("docs").search([1, 0.1, 0, 0], k=2)
        assert [hit.row.id for hit in found.hits] == ["a", "b"]
        with pytest.raises(PermissionDenied, match="may not call"):
            await reader.collection("docs").upsert(rows[:1])
        for outside in (other.collection("docs"), operator.collection("docs")):
            with pytest.raises(NotFound, match="no collection 'docs' in namespace 'default'"):
                await outside.count()
        with pytest.raises(PermissionDenied, match="reaches the namespace 'default', not 'acme'"):
            await other.collection("docs", namespace="acme").count()
        assert await operator.collection("docs", namespace="acme").count() == 3
        listed = await operator.list("*")
        assert [(one.collection.namespace, one.rows) for one in listed.collections] == [("acme", 3)]
        with pytest.raises(Unauthenticated):
            await stranger.list()
        with pytest.raises(QuotaExceeded, match="'slow' may ask 2 times a second"):
            for _ in range(4):
                await slow.list()
        with pytest.raises(PermissionDenied):
            async for _ in acme.migrate("http://localhost:1"):
                pass
        with pytest.raises(InvalidInput, match="no embedder"):
            await docs.upsert([Passage(id="x", text="no vector")])
        with pytest.raises(NotFound, match="embedder 'nope' is no model of this node"):
            await acme.create("texts", embedder="nope")
        await docs.drop()


async def test_a_node_tells_of_its_vectors_and_they_outlive_it(place: Place, tmp_path: Path) -> None:
    async with place.client("data") as data:
        docs = await data.create("docs", dimension=2)
        await docs.upsert([Passage(id="a", vector=[1, 0], text="words of one"), Passage(id="b", vector=[0, 1])])
        found = await docs.retrieve("words", mode="lexical")
        assert [hit.row.id for hit in found.hits] == ["a"]

        async def told() -> bool:
            text = await asyncio.to_thread(metrics, place.node)
            return 'nearmesh_vectors_rows{collection="docs",namespace="default"} 2.0' in text

        await until(told, what="the metrics have the rows")
        async with place.plane.operator() as operator:

            async def known() -> bool:
                return any(node.vectors.rows == 2 for node in await operator.nodes())

            await until(known, what="the control plane has them too")
        bootstrap = tmp_path / "bootstrap.json"
        ca = tmp_path / "ca.pem"
        ca.write_bytes(place.plane.authority.ca_pem)
        write_bootstrap(bootstrap, grpc_bootstrap(place.plane.public, ca, place.plane.token(), REGION))
        async with VectorClient.near(bootstrap) as nearest:
            assert await nearest.collection("docs").count() == 2
        assert await asyncio.to_thread(blocking, bootstrap) == ["a", "b"]
        with pytest.raises(NotFound, match="site 'nowhere'; those of the mesh: node-a at site-node-a"):
            async with VectorClient.near(bootstrap, site="nowhere"):
                pass
    await place.node.child.stop()
    await place.node.start()
    async with place.client("client") as reader, place.client("data") as data:

        async def there() -> bool:
            try:
                return await reader.collection("docs").count() == 2
            except NotReady:
                return False

        await until(there, what="the rows are there again")
        await data.collection("docs").drop()


def blocking(bootstrap: Path) -> list[str]:
    """What a script does."""
    with BlockingVectors.near(bootstrap) as vectors:
        docs = vectors.collection("docs")
        assert docs.search([1, 0], k=1).hits[0].row.id == "a" and docs.count() == docs.describe().rows == 2
        with pytest.raises(NotFound):
            vectors.collection("nope").count()
        found = [row.id for row in docs.rows(page=1)]
    with pytest.raises(ConfigError, match="not open"):
        docs.count()
    return found


def metrics(node: Node) -> str:
    line = next(line for line in node.log.splitlines() if " serving node=" in line)
    address = line.rsplit("metrics=", 1)[1]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


async def test_a_node_that_keeps_no_vectors_says_how_it_would(plane: ControlPlane, tmp_path: Path) -> None:
    node = Node(plane, tmp_path / "node", "node-b")
    try:
        await node.start()
        async with Place(plane, node).client("data") as data:
            with pytest.raises(Unsupported, match=r"set `enabled` under \[vectors\] in its node.toml"):
                await data.list()
    finally:
        await node.end()
