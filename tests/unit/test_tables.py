"""Route tables over a real registry: what has not changed is the same object, and who stands by keeps its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.routing import tables

from nearmesh.routing import HYSTERESIS
from nearmesh.routing.table import Endpoint
from tests.control_plane_state import State, replica, state

EUROPE = "europe-west1"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    """Nodes of one region; a, the cheapest, is the only one that has model n."""
    async with state(tmp_path) as found:
        await found.publish("m")
        await found.publish("n")
        for name, usd in (("a", 1.0), ("b", 2.0), ("c", 2.02), ("d", 4.0)):
            await found.node(name, EUROPE, usd=usd, hardware="h")
            await found.reports(name, *(replica(model) for model in ("mn" if name == "a" else "m")))
        yield found


def route(mesh: State, model: str = "m") -> tuple[Endpoint, ...]:
    return mesh.router.table(EUROPE, "public").models[model].by_objective["cheapest"]


def names(endpoints: tuple[Endpoint, ...]) -> str:
    return "".join(endpoint.node for endpoint in endpoints)


async def test_what_did_not_change_is_the_same_object(mesh: State) -> None:
    before = mesh.router.table(EUROPE, "public")
    await mesh.registry.set_price("b", 9.0)
    after = mesh.router.table(EUROPE, "public")
    assert after is not before
    assert after.models["n"] is before.models["n"] and after.models["m"] is not before.models["m"]
    kept, moved = before.models["m"].by_objective["cheapest"], route(mesh)
    assert (names(kept), names(moved)) == ("abcd", "acdb")
    assert {id(endpoint) for endpoint in kept} == {id(endpoint) for endpoint in moved}


async def test_stand_bys_keep_their_places_while_they_are_about_as_good(mesh: State) -> None:
    before = route(mesh)
    await mesh.registry.set_price("b", 2.02 * (1 + HYSTERESIS / 2))
    assert route(mesh) is before
    await mesh.registry.set_price("b", 2.02 * (1 + 2 * HYSTERESIS))
    assert names(route(mesh)) == "acbd"
    # And back again it takes as much.
    await mesh.registry.set_price("b", 2.0)
    assert names(route(mesh)) == "acbd"
    await mesh.registry.set_price("b", 1.7)
    assert names(route(mesh)) == "abcd"


async def test_who_is_no_longer_able_leaves_at_once_and_who_comes_has_its_place(mesh: State) -> None:
    assert names(route(mesh)) == "abcd"
    await mesh.registry.drain("b", undo=False)
    assert names(route(mesh)) == "acd"
    await mesh.registry.drain("b", undo=True)
    assert names(route(mesh)) == "abcd"
    mesh.registry.session_closed("b")
    assert names(route(mesh)) == "acdb", "after everyone who is certain"
    await mesh.registry.set_price("c", 0.5)
    assert names(route(mesh))[0] == "c"


async def test_of_many_nodes_the_best_are_named(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ENDPOINTS", 2)
    assert names(route(mesh)) == "ab"
    await mesh.registry.set_price("d", 1.5)
    assert names(route(mesh)) == "ad"


async def test_memory_of_endpoints_is_bounded(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_KEPT", 3)
    for number in range(10):
        mesh.router.table(f"region-{number}", "public")
    assert len(mesh.router._tables._ends) <= 3
