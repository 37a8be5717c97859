"""Plain gRPC `xds:///` clients, each a process with a bootstrap file, against our discovery service and three nodes.

The nodes are there for all tests; each test has a client of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from nearmesh_controlplane.routing import load_reports

from tests.integration.xds_fixtures import REGION, SmallMesh, XdsClient, access_token, small_mesh, xds_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = 6_500_000


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SmallMesh]:
    async with small_mesh(tmp_path_factory.mktemp("mesh"), "public") as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def small(shared: SmallMesh) -> AsyncIterator[SmallMesh]:
    """Whole, whatever the test before this one did to it; nothing that gRPC was told may be refused."""
    await shared.whole()
    refused = shared.service.refused
    yield shared
    assert shared.service.refused == refused


async def moves_to(client: XdsClient, node: str, model: str = "digits", **more: object) -> None:
    """Calls until that node answers; an error on the way is an error of the test."""
    async with asyncio.timeout(10):
        while (answer := await client.call(model, **more)).get("node") != node:
            assert "error" not in answer, answer


async def test_the_first_node_answers_and_an_objective_is_a_header(small: SmallMesh) -> None:
    async with xds_client(small) as client:
        assert (await client.call())["node"] == "a"
        small.order("public", "abc", nearest="c")
        await moves_to(client, "c", metadata={"nearmesh-objective": "nearest"})
        assert (await client.call())["node"] == "a"
        assert (await client.call(stream=True, metadata={"nearmesh-objective": "nearest"}))["node"] == "c"


async def test_a_changed_order_moves_traffic_without_an_error(small: SmallMesh) -> None:
    async with xds_client(small) as client:
        for order in ("abc", "bca", "cab", "acb"):
            small.order("public", order)
            await moves_to(client, order[0])


async def test_an_unknown_model_is_not_found_at_once_and_served_once_it_appears(small: SmallMesh) -> None:
    async with xds_client(small) as client:
        answer = await client.call("fresh")
        assert answer["error"] == "NOT_FOUND"
        assert answer["ms"] < 2000
        small.order("public", "abc", ("digits", "fresh"))
        async with asyncio.timeout(10):
            while "error" in await client.call("fresh"):
                pass
        small.order("public", "abc", ("digits",))
        async with asyncio.timeout(10):
            while "node" in (answer := await client.call("fresh")):
                pass
        assert answer["error"] == "NOT_FOUND"
        assert (await client.call())["node"] == "a"


async def test_a_large_request_survives_the_death_of_the_node_that_works_on_it(small: SmallMesh) -> None:
    async with xds_client(small) as client:
        assert (await client.call(size=LARGE))["bytes"] == LARGE
        call = asyncio.create_task(client.call(size=LARGE, parameters={"sleep_ms": 700}))
        await asyncio.sleep(0.4)
        await small.nodes["a"].kill()
        answer = await call
        assert (answer.get("node"), answer.get("bytes")) == ("b", LARGE), answer
        for _ in range(20):
            assert (await client.call())["node"] == "b"


async def test_a_stream_ends_with_its_node_and_is_not_retried(small: SmallMesh) -> None:
    async with xds_client(small) as client:
        assert (await client.call(stream="to the end"))["begun"]
        await small.nodes["a"].kill()
        # The SDK turns this into SequenceLost.
        assert (await client.more())["error"] == "UNAVAILABLE"


async def test_bad_requests_cost_a_client_no_node(small: SmallMesh) -> None:
    async with xds_client(small) as client:
        for _ in range(30):
            assert (await client.call(parameters={"status": 3}))["error"] == "INVALID_ARGUMENT"
            assert (await client.call())["node"] == "a"


@pytest.mark.parametrize("kind", ["none", "forged", "stranger"])
async def test_without_a_token_of_the_mesh_nothing_is_told(small: SmallMesh, tmp_path: Path, kind: str) -> None:
    stranger = access_token(type(small.authority).open("test-mesh", tmp_path))
    token = {"none": "", "forged": small.token[:-6] + "AAAAAA", "stranger": stranger}[kind]
    async with xds_client(small, token=token) as client:
        answer = await client.call(timeout_s=5)
        assert answer["error"] == "UNAVAILABLE"
        assert "UNAUTHENTICATED" in answer["detail"]


async def test_grpc_reports_how_many_calls_each_node_got(small: SmallMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own accord, since the cluster asks for it."""
    monkeypatch.setattr(load_reports, "REPORT_EVERY_S", 1)
    async with xds_client(small) as client:
        for _ in range(5):
            await client.call()
        await client.call(metadata={"nearmesh-objective": "nearest"})
        await client.call(parameters={"status": 13})
        found: Counter[tuple[str, str, str, str]] = Counter()
        async with asyncio.timeout(15):
            while sum(found.values()) < 7:
                kind, reporter, report = await small.reports.taken.get()
                assert (kind, reporter, report.region) == ("clients", "app", REGION)
                for calls in report.calls:
                    found[calls.model, calls.objective, calls.node, "answered"] += calls.answered
                    found[calls.model, calls.objective, calls.node, "failed"] += calls.failed
        assert +found == {
            ("digits", "", "a", "answered"): 5,
            ("digits", "", "a", "failed"): 1,
            ("digits", "nearest", "a", "answered"): 1,
        }
