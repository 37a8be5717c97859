"""When the control plane makes a snapshot, what stands in it, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.config import EndpointOverride
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.routing import snapshots as making
from nearmesh_controlplane.routing.snapshots import DRIFT_S, MAX_ASKED_REGIONS, Snapshots

from nearmesh.errors import InvalidInput
from nearmesh.routing import parse_objective
from nearmesh.snapshot import opened
from nearmesh.v1 import route_pb2 as pb
from tests.control_plane_state import State, replica, state

EUROPE, AMERICA, ASIA = "europe-west1", "us-east1", "asia-northeast1"
LIFETIME_S = 3600.0


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    overrides = [EndpointOverride(client_region=EUROPE, node="us", address="127.0.0.1:1")]
    async with state(tmp_path, overrides) as found:
        await found.publish("m")
        for name, region in (("eu", EUROPE), ("us", AMERICA)):
            await found.node(name, region, hardware="h")
            await found.reports(name, replica())
        yield found


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open("mesh", tmp_path / "authority")


@pytest.fixture
def snapshots(mesh: State, authority: Authority) -> Snapshots:
    return Snapshots(
        authority, mesh.registry, mesh.catalog, mesh.router, mesh.residency, mesh.changes, LIFETIME_S, clock=mesh.clock
    )


async def present(found: Snapshots, authority: Authority, now_s: float, region: str = "") -> pb.Snapshot:
    return opened(await anext(found.watch(region)), authority.ca_pem, mesh="mesh", now_s=now_s)


async def test_it_says_who_is_where_and_until_when(mesh: State, snapshots: Snapshots, authority: Authority) -> None:
    await mesh.join("lost")
    await mesh.registry.remove("lost")
    await snapshots.refresh()
    found = await present(snapshots, authority, mesh.clock.now_s)
    assert found.expires_at_s == mesh.clock.now_s + LIFETIME_S
    assert [(n.id, n.region, n.public_address) for n in found.nodes] == [
        ("eu", EUROPE, "eu:8001"),
        ("us", AMERICA, "us:8001"),
    ]
    assert list(found.removed_nodes) == ["lost"]
    assert found.jwks_json == authority.jwks_json
    assert found.only_region == ""
    assert [table.region for table in found.tables] == [EUROPE, AMERICA]
    assert [(a.node, a.public_address, a.mesh_address) for a in found.tables[0].addresses] == [
        (1, "127.0.0.1:1", "us:8003")
    ]
    assert list(found.tables[1].nearest) == [1, 0]


async def test_its_choices_are_the_first_of_the_routers_decisions(
    mesh: State, snapshots: Snapshots, authority: Authority
) -> None:
    await snapshots.refresh()
    found = await present(snapshots, authority, mesh.clock.now_s)
    for table in found.tables:
        for route in table.routes:
            decision = mesh.router.decide("m", table.region, parse_objective(route.objective))
            expected = [(r.candidate.node, r.why) for r in decision.ranking if r.candidate.ready]
            assert [(found.nodes[c.node].id, c.why) for c in route.choices] == expected
            assert sum(choice.share for choice in route.choices) == pytest.approx(1.0)


async def test_a_change_makes_a_new_one_and_drift_only_now_and_then(mesh: State, snapshots: Snapshots) -> None:
    assert await snapshots.refresh()
    assert not await snapshots.refresh()
    await mesh.reports("eu", replica(service_ms=5.5))
    mesh.changes.tick()
    assert not await snapshots.refresh(), "a time that drifted"
    mesh.clock.now_s += DRIFT_S
    assert await snapshots.refresh()
    await mesh.registry.set_price("us", 0.5)
    assert await snapshots.refresh(), "a price"
    await mesh.registry.remove("us")
    assert await snapshots.refresh(), "a node that is gone"


async def test_it_is_made_again_long_before_it_ends(mesh: State, authority: Authority) -> None:
    brief = Snapshots(
        authority, mesh.registry, mesh.catalog, mesh.router, mesh.residency, mesh.changes, 6.0, clock=mesh.clock
    )
    assert await brief.refresh()
    mesh.clock.now_s += 1.9
    assert not await brief.refresh()
    mesh.clock.now_s += 0.2
    assert await brief.refresh()


async def test_its_generation_grows_also_when_the_clock_goes_back_and_after_a_restart(
    mesh: State, snapshots: Snapshots, authority: Authority
) -> None:
    await snapshots.refresh()
    first = (await present(snapshots, authority, mesh.clock.now_s)).generation
    mesh.clock.now_s -= 20
    await mesh.registry.set_price("us", 0.5)
    await snapshots.refresh()
    second = (await present(snapshots, authority, mesh.clock.now_s)).generation
    assert second == first + 1
    mesh.clock.now_s += 21
    again = Snapshots(
        authority, mesh.registry, mesh.catalog, mesh.router, mesh.residency, mesh.changes, LIFETIME_S, clock=mesh.clock
    )
    await again.refresh()
    assert (await present(again, authority, mesh.clock.now_s)).generation > second


async def test_a_client_is_sent_its_own_region_alone_also_one_that_has_no_node(
    mesh: State, snapshots: Snapshots, authority: Authority
) -> None:
    await snapshots.refresh()
    found = await present(snapshots, authority, mesh.clock.now_s, AMERICA)
    assert [table.region for table in found.tables] == [AMERICA]
    assert found.only_region == AMERICA
    waiting = asyncio.create_task(present(snapshots, authority, mesh.clock.now_s, ASIA))
    await asyncio.sleep(0)
    assert not waiting.done()
    mesh.changes.tick()
    assert await snapshots.refresh()
    assert [table.region for table in (await waiting).tables] == [ASIA]
    with pytest.raises(InvalidInput, match="region"):
        await anext(snapshots.watch("No Region"))


async def test_who_does_not_decide_gives_all_of_what_the_leader_made(
    mesh: State, snapshots: Snapshots, authority: Authority
) -> None:
    await snapshots.refresh()
    standby = Snapshots(
        authority, mesh.registry, mesh.catalog, mesh.router, mesh.residency, mesh.changes, LIFETIME_S, clock=mesh.clock
    )
    standby.decides = lambda: False
    standby.follow(await anext(snapshots.watch("")))
    assert [t.region for t in (await present(standby, authority, mesh.clock.now_s, AMERICA)).tables] == [AMERICA]
    assert [t.region for t in (await present(standby, authority, mesh.clock.now_s, ASIA)).tables] == [EUROPE, AMERICA]


async def test_a_snapshot_that_a_change_of_the_leader_overtook_is_dropped(mesh: State, snapshots: Snapshots) -> None:
    making_one = asyncio.create_task(snapshots.refresh())
    await asyncio.sleep(0)
    snapshots.decides = lambda: False
    assert not await making_one
    assert snapshots.present == pb.Snapshot()


async def test_bound_regions_are_always_there_by_name(mesh: State, snapshots: Snapshots, authority: Authority) -> None:
    """Else their clients would get the routes of a neighbour that is not bound."""
    await mesh.residency.set("europe-west3", [EUROPE])
    await snapshots.refresh()
    found = await present(snapshots, authority, mesh.clock.now_s)
    assert [table.region for table in found.tables] == [EUROPE, "europe-west3", AMERICA]


async def test_what_clients_claim_is_bounded(mesh: State, snapshots: Snapshots, authority: Authority) -> None:
    await snapshots.refresh()
    waiting = [asyncio.create_task(anext(snapshots.watch(f"r-{i}"))) for i in range(MAX_ASKED_REGIONS + 10)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await snapshots.refresh()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    found = await present(snapshots, authority, mesh.clock.now_s)
    assert len(found.tables) == 2 + MAX_ASKED_REGIONS


async def test_one_that_would_be_too_large_names_fewer_nodes(
    mesh: State, snapshots: Snapshots, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshots.refresh()
    full = await present(snapshots, authority, mesh.clock.now_s)
    assert {len(route.choices) for table in full.tables for route in table.routes} == {2}
    monkeypatch.setattr(making, "MAX_SNAPSHOT_BYTES", full.ByteSize() - 100)
    await mesh.registry.set_price("us", 0.5)
    await snapshots.refresh()
    small = await present(snapshots, authority, mesh.clock.now_s)
    assert {len(route.choices) for table in small.tables for route in table.routes} == {1}
