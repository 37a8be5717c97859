"""Pulls and the death of the process that makes them. Full counts: `make soak`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nearmesh_agent.store.registry import HttpRegistry
from nearmesh_agent.store.store import ModelStore
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from nearmesh.devmesh.wan import LinkSettings, WanSettings, running
from nearmesh.devmesh.wan.link import Link
from tests.contract.test_artifact_source import served
from tests.faults.pulls import killed_while_pulling
from tests.store_site import CHUNK_BYTES, Model


@pytest.mark.timeout(180)
async def test_p5_an_agent_that_is_killed_while_it_pulls_goes_on_and_loads_nothing_torn(tmp_path: Path) -> None:
    found = await killed_while_pulling(tmp_path, kills=3, seed=1)
    assert found["kills"] == 3


SIZE, CUTS = 24 * 2**20, 10


@asynccontextmanager
async def far_away(folder: Path, model: Model) -> AsyncIterator[tuple[str, Link]]:
    """A registry behind 20 ms and 20 MB/s."""
    registry = model.registry()
    for digest, data in (registry.blobs | registry.manifests).items():
        (folder / digest).write_bytes(data)

    async def give(request: Request) -> Response:
        return FileResponse(folder / request.path_params["digest"])

    routes = [Route("/v2/m/blobs/{digest}", give), Route("/v2/m/manifests/{digest}", give)]
    async with served(Starlette(routes=routes)) as url:
        link = LinkSettings(
            name="wan",
            client_region="here",
            node="registry",
            target=url.removeprefix("http://"),
            round_trip_ms=20,
            bytes_per_s=20e6,
            buffer_bytes=256 * 1024,
        )
        async with running(WanSettings(links=(link,))) as wan:
            yield f"http://127.0.0.1:{wan.links['wan'].port}", wan.links["wan"]


async def test_a_wan_that_is_cut_ten_times_costs_a_chunk_for_each_connection(tmp_path: Path) -> None:
    model, store = Model.of(SIZE), ModelStore(tmp_path / "store")
    (tmp_path / "registry").mkdir()
    async with far_away(tmp_path / "registry", model) as (url, link):
        registry = HttpRegistry(url, "m")
        pulling = asyncio.create_task(store.pull("m", model.digest, registry))
        for number in range(1, CUTS + 1):
            while link.down.delivered_bytes < SIZE * number / (CUTS + 2) and not pulling.done():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert not pulling.done()
            await link.cut()
            await asyncio.sleep(0.05)
            await link.heal()
        _, folder = await pulling
        assert (folder / "weights.onnx").read_bytes() == model.weights
        # A chunk, and what had left the WAN and was not read yet.
        lost = CUTS * 16 * (CHUNK_BYTES + 256 * 1024)
        assert link.down.delivered_bytes < 1.1 * SIZE + lost
        assert link.accepted > CUTS
        registry.close()
    store.close()
