"""Plain gRPC `xds:///` clients, each a process with a bootstrap file, against our discovery service and three nodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nearmesh_controlplane.routing import load_reports

from tests.integration.xds_fixtures import REGION, SmallMesh, XdsClient, access_token, small_mesh, xds_client

LARGE = 6_500_000


@asynccontextmanager
async def setting(folder: Path) -> AsyncIterator[tuple[SmallMesh, XdsClient]]:
    async with small_mesh(folder, "public") as small, xds_client(small) as client:
        yield small, client
        assert small.service.refused == 0


async def moves_to(client: XdsClient, node: str, model: str = "digits", **more: object) -> None:
    """Calls until that node answers; an error on the way is an error of the test."""
    async with asyncio.timeout(10):
        while (answer := await client.call(model, **more)).get("node") != node:
            assert "error" not in answer, answer


async def test_the_first_node_answers_and_an_objective_is_a_header(tmp_path: Path) -> None:
    async with setting(tmp_path) as (small, client):
        assert (await client.call())["node"] == "a"
        small.order("public", "abc", nearest="c")
        await moves_to(client, "c", metadata={"nearmesh-objective": "nearest"})
        assert (await client.call())["node"] == "a"
        assert (await client.call(stream=True, metadata={"nearmesh-objective": "nearest"}))["node"] == "c"


async def test_a_changed_order_moves_traffic_without_an_error(tmp_path: Path) -> None:
    async with setting(tmp_path) as (small, client):
        for order in ("abc", "bca", "cab", "acb"):
            small.order("public", order)
            await moves_to(client, order[0])


async def test_an_unknown_model_is_not_found_at_once_and_served_once_it_appears(tmp_path: Path) -> None:
    async with setting(tmp_path) as (small, client):
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


async def test_a_large_request_survives_the_death_of_the_node_that_works_on_it(tmp_path: Path) -> None:
    async with setting(tmp_path) as (small, client):
        assert (await client.call(size=LARGE))["bytes"] == LARGE
        call = asyncio.create_task(client.call(size=LARGE, parameters={"sleep_ms": 700}))
        await asyncio.sleep(0.4)
        await small.nodes["a"].kill()
        answer = await call
        assert (answer.get("node"), answer.get("bytes")) == ("b", LARGE), answer
        for _ in range(20):
            assert (await client.call())["node"] == "b"


async def test_a_stream_ends_with_its_node_and_is_not_retried(tmp_path: Path) -> None:
    async with setting(tmp_path) as (small, client):
        assert (await client.call(stream="to the end"))["begun"]
        await small.nodes["a"].kill()
        # The SDK turns this into SequenceLost.
        assert (await client.more())["error"] == "UNAVAILABLE"


async def test_bad_requests_cost_a_client_no_node(tmp_path: Path) -> None:
    async with setting(tmp_path) as (_, client):
        for _ in range(30):
            assert (await client.call(parameters={"status": 3}))["error"] == "INVALID_ARGUMENT"
            assert (await client.call())["node"] == "a"


@pytest.mark.parametrize("kind", ["none", "forged", "stranger"])
async def test_without_a_token_of_the_mesh_nothing_is_told(tmp_path: Path, kind: str) -> None:
    async with small_mesh(tmp_path, "public", "a") as small:
        stranger = access_token(type(small.authority).open("test-mesh", tmp_path / "elsewhere"))
        token = {"none": "", "forged": small.token[:-6] + "AAAAAA", "stranger": stranger}[kind]
        async with xds_client(small, token=token) as client:
            answer = await client.call(timeout_s=5)
            assert answer["error"] == "UNAVAILABLE"
            assert "UNAUTHENTICATED" in answer["detail"]


async def test_grpc_reports_how_many_calls_each_node_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own accord, since the cluster asks for it."""
    monkeypatch.setattr(load_reports, "REPORT_EVERY_S", 1)
    async with setting(tmp_path) as (small, client):
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
