"""One suite for everything that xDS is made from: the router itself, and the snapshot that it was last read into."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.config import EndpointOverride
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.routing.snapshots import Snapshots

from nearmesh.routing import OBJECTIVES
from nearmesh.routing.table import Listener, RouteSource, RouteTable
from nearmesh.snapshot import SnapshotKeeper
from tests.control_plane_state import State, replica, state

EUROPE, AMERICA, ASIA = "europe-west1", "us-east1", "asia-northeast1"
SOURCES = ("router", "snapshot")


class Setting:
    """A mesh of three nodes, read through one kind of source."""

    def __init__(self, mesh: State, kind: str, folder: Path) -> None:
        self.mesh, self._kind = mesh, kind
        authority = Authority.open("mesh", folder)
        self._snapshots = Snapshots(
            authority, mesh.registry, mesh.catalog, mesh.router, mesh.residency, mesh.changes, 3600.0, clock=mesh.clock
        )
        self._keeper = SnapshotKeeper(authority.ca_pem, None, mesh="mesh", clock=mesh.clock)

    async def source(self) -> RouteSource:
        """As of now."""
        if self._kind == "router":
            return self.mesh.router
        await self._snapshots.refresh()
        self._keeper.take(await anext(self._snapshots.watch("")))
        return self._keeper


@pytest.fixture(params=SOURCES)
async def setting(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Setting]:
    overrides = [
        EndpointOverride(client_region=EUROPE, node="us", address="127.0.0.1:1"),
        EndpointOverride(client_region=EUROPE, node="us", address="127.0.0.1:2", listener="mesh"),
    ]
    async with state(tmp_path, overrides) as mesh:
        await mesh.publish("m")
        for name, region in (("eu", EUROPE), ("us", AMERICA), ("asia", ASIA)):
            await mesh.node(name, region, hardware="h")
            await mesh.reports(name, replica())
        yield Setting(mesh, request.param, tmp_path / "authority")


def nodes(table: RouteTable, objective: str) -> list[str]:
    return [endpoint.node for endpoint in table.models["m"].by_objective[objective]]


@pytest.mark.parametrize("region", [EUROPE, AMERICA, ASIA])
@pytest.mark.parametrize("listener", ["public", "mesh"])
async def test_every_region_and_listener_has_the_routers_tables(
    setting: Setting, region: str, listener: Listener
) -> None:
    assert (await setting.source()).table(region, listener) == setting.mesh.router.table(region, listener)


async def test_each_objective_has_its_order_and_the_policy_is_the_default(setting: Setting) -> None:
    await setting.mesh.catalog.set_policy("m", "nearest", 100.0)
    await setting.mesh.registry.set_price("asia", 0.1)
    table = (await setting.source()).table(EUROPE, "public")
    assert set(table.models["m"].by_objective) == set(OBJECTIVES)
    assert table.models["m"].default_objective == "nearest"
    assert nodes(table, "nearest") == ["eu", "us", "asia"]
    assert nodes(table, "cheapest")[0] == "asia"


async def test_who_cannot_serve_has_no_place(setting: Setting) -> None:
    await setting.mesh.reports("us", replica(), draining=True)
    table = (await setting.source()).table(AMERICA, "public")
    assert "us" not in nodes(table, "nearest")
    assert "us" not in [endpoint.node for endpoint in table.nearest]


async def test_a_region_without_nodes_has_the_orders_of_its_neighbourhood(setting: Setting) -> None:
    table = (await setting.source()).table("europe-west4", "public")
    assert nodes(table, "nearest") == ["eu", "us", "asia"]


async def test_a_change_wakes_who_waits_and_nothing_changed_is_equal(setting: Setting) -> None:
    source = await setting.source()
    before, seen = source.table(EUROPE, "public"), await source.changed(0)
    waiting = asyncio.create_task(source.changed(seen))
    await asyncio.sleep(0)
    assert not waiting.done()
    await setting.mesh.registry.set_price("asia", 0.1)
    source = await setting.source()
    assert await waiting > seen
    assert source.table(EUROPE, "public") != before
    assert source.table(EUROPE, "public") == source.table(EUROPE, "public")
