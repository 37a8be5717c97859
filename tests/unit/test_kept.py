"""A control plane that is alone goes on from the routes that it had before its restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.routing.demand import Calls
from nearmesh_controlplane.routing.kept import KeptRoutes
from nearmesh_controlplane.routing.snapshots import Snapshots

from nearmesh.package import RoutePolicy
from nearmesh.snapshot import SnapshotKeeper
from tests.control_plane_state import State, replica, state

EUROPE = "europe-west1"


async def keep(kept: KeptRoutes, mesh: State, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the present routes are on disk."""
    made = Snapshots(authority, mesh.registry, mesh.catalog, mesh.router, mesh.residency, mesh.changes, 60.0)
    await made.refresh()
    loop, saved, save = asyncio.get_running_loop(), asyncio.Event(), SnapshotKeeper.save

    def saves(keeper: SnapshotKeeper) -> None:
        save(keeper)
        loop.call_soon_threadsafe(saved.set)

    monkeypatch.setattr(SnapshotKeeper, "save", saves)
    task = asyncio.create_task(kept.run(made))
    await saved.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_restart_moves_no_traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cheaper node has no room for stays at the other one, before it is known again who asks."""
    authority, folder = Authority.open("mesh", tmp_path / "authority"), tmp_path / "routes"
    async with state(tmp_path) as mesh:
        await mesh.publish("m", policy=RoutePolicy(objective="cheapest"))
        for name, usd in (("cheap", 1.0), ("dear", 1.5)):
            await mesh.node(name, usd=usd, hardware=name)
            await mesh.reports(name, replica())
        mesh.clock.now_s += 60
        for second in range(30):
            mesh.clock.now_s += 1
            mesh.measurements.demand.answered("cheap", {"d": ("m", 10 * second)}, now_s=mesh.clock())
            mesh.measurements.demand.report(
                EUROPE, [Calls("m", "", 10)], kind="gateway", reporter="g", now_s=mesh.clock()
            )
            mesh.changes.bump()
            before = mesh.router.plan.shares(EUROPE, "m", "cheapest")
        assert 0.1 < before["dear"] < 0.9
        await keep(KeptRoutes(authority, folder), mesh, authority, monkeypatch)
    async with state(tmp_path) as again:
        KeptRoutes(authority, folder).resume(again.router)
        for name in ("dear", "cheap"):
            assert again.router.plan.shares(EUROPE, "m", "cheapest") == pytest.approx(before, abs=0.01)
            again.registry.session_opened(name)
        assert again.router.plan.shares(EUROPE, "m", "cheapest") == pytest.approx(before, abs=0.01)
    async with state(tmp_path) as without:
        without.registry.session_opened("dear")
        assert without.router.plan.shares(EUROPE, "m", "cheapest") == {"cheap": 1.0}, "else there is nothing to test"


async def test_a_first_start_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    async with state(tmp_path) as mesh:
        seen = mesh.changes.value
        KeptRoutes(Authority.open("mesh", tmp_path / "authority"), tmp_path / "routes").resume(mesh.router)
        assert mesh.changes.value == seen
