"""What one of several control planes may do at each moment, on a clock that the test turns: nothing here runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from nearmesh_controlplane.peers import together as module
from nearmesh_controlplane.peers.leadership import LEASE_S, MARGIN_S, Holder
from nearmesh_controlplane.peers.role import GivenOut, Peer, Self
from nearmesh_controlplane.peers.together import MEASURED_AFTER_S, SETTLED_WITHIN_S, Together
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.routing.snapshots import Snapshots

from nearmesh.errors import NotLeader
from nearmesh.snapshot import SnapshotRoutes, sealed
from nearmesh.v1 import route_pb2
from tests.control_plane_state import Clock, State, state
from tests.snapshots import NOW_S, snapshot


class Bench:
    """A control plane that is told who leads."""

    def __init__(self, mesh: State, authority: Authority, clock: Clock) -> None:
        self.mesh, self.authority, self.clock = mesh, authority, clock
        self.resumed: list[SnapshotRoutes] = []
        self.signed: dict[int, route_pb2.SignedSnapshot] = {}
        snapshots = Snapshots(
            authority, mesh.registry, mesh.catalog, mesh.router, mesh.residency, mesh.changes, 60.0, clock=lambda: NOW_S
        )
        me = Self(id="me", incarnation="me-1", public="me:1", mesh="me:2", http="me:3")
        self.plane = Together(
            "postgresql://nowhere",
            me,
            mesh.db,
            mesh.changes,
            mesh.registry,
            snapshots,
            cast(Any, None),
            self.resumed.append,
            {},
        )
        other = Peer(id="other", public="other:1", mesh="other:2", http="other:3", seen_at_s=0.0)
        self.plane._peers = [other]

    def leads(self, who: str, term: int) -> None:
        holder = Holder(id=who, incarnation=f"{who}-1", term=term, left_s=LEASE_S)
        self.plane._leadership.told(holder, asked_at_s=self.clock(), now_s=self.clock())

    def tells(self, generation: int = 5) -> None:
        """The leader's routes are read; signed once, as it does."""
        if generation not in self.signed:
            self.signed[generation] = sealed(snapshot(generation=generation), self.authority.key)
        self.plane._take_routes(self.signed[generation].SerializeToString())

    def settle(self, after_s: float, term: int) -> None:
        """A look of the leader's own, so long after it began; its lease is renewed."""
        self.clock.now_s += after_s
        self.leads("me", term)
        self.plane._settle(term)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    clock = Clock()
    monkeypatch.setattr(module, "steady_clock", clock)
    async with state(tmp_path) as mesh:
        yield Bench(mesh, Authority.open("mesh", tmp_path / "authority"), clock)


async def test_who_follows_gives_out_the_leaders_routes_and_says_who_leads(bench: Bench) -> None:
    with pytest.raises(NotLeader, match="nobody else does yet"):
        bench.plane.check_leads()
    bench.leads("other", 4)
    assert bench.plane.followed() is None
    bench.tells()
    given = GivenOut(bench.mesh.router, bench.plane, bench.mesh.router)
    assert [e.node for e in given.table("europe-west1", "public").nearest] == ["eu", "us"]
    with pytest.raises(NotLeader, match="'me' does not lead; 'other' does, at other:1 and other:2"):
        bench.plane.check_leads()


async def test_a_rule_of_residency_holds_at_once_also_for_what_the_leader_decided_before_it(bench: Bench) -> None:
    bench.leads("other", 4)
    bench.tells()
    given = GivenOut(bench.mesh.router, bench.plane, bench.mesh.router)
    before = given.table("europe-west1", "public")
    assert given.table("europe-west1", "public") is before, "no news"
    await bench.mesh.residency.set("europe-west1", ["europe-west1"])
    table = given.table("europe-west1", "public")
    assert [e.node for e in table.nearest] == ["eu"]
    assert {tuple(e.node for e in nodes) for nodes in table.models["m"].by_objective.values()} == {("eu",)}
    assert given.table("us-east1", "public") == bench.plane.followed().table("us-east1", "public")  # type: ignore[union-attr]
    await bench.mesh.residency.set("europe-west1", ["asia-northeast1"])
    table = given.table("europe-west1", "public")
    assert table.nearest == () and set(table.models["m"].by_objective.values()) == {()}, "it never yields"
    await bench.mesh.residency.set("europe-west1", [])
    assert given.table("europe-west1", "public") is before


async def test_the_same_routes_read_again_are_the_same_object(bench: Bench) -> None:
    bench.tells()
    before = bench.plane.followed()
    bench.tells()
    assert bench.plane.followed() is before
    bench.tells(generation=6)
    assert bench.plane.followed() is not before


async def test_routes_that_the_mesh_did_not_sign_are_not_given_out(bench: Bench, tmp_path: Path) -> None:
    stranger = Authority.open("mesh", tmp_path / "stranger")
    bench.plane._take_routes(sealed(snapshot(), stranger.key).SerializeToString())
    assert bench.plane.followed() is None
    bench.tells()
    bench.plane._take_routes(b"nonsense")
    assert bench.plane.followed() is not None


async def test_a_new_leader_goes_by_the_old_ones_routes_until_the_nodes_are_back(bench: Bench) -> None:
    bench.tells()
    await bench.mesh.node("eu")
    bench.mesh.registry.session_closed("eu")
    bench.plane._awaited = frozenset({"eu"})
    bench.leads("me", 5)
    bench.plane._led_since_s = bench.clock()
    bench.plane.check_leads()
    await bench.mesh.registry.restore()
    bench.settle(MEASURED_AFTER_S + 0.1, 5)
    assert (bench.plane.decides(), bench.plane.followed() is None) == (False, False)
    bench.mesh.registry.session_opened("eu")
    bench.settle(0.5, 5)
    assert (bench.plane.decides(), bench.plane.followed()) == (True, None)
    assert [routes.generation for routes in bench.resumed] == [5]


async def test_who_does_not_come_back_is_not_waited_for_for_ever(bench: Bench) -> None:
    bench.tells()
    bench.plane._awaited = frozenset({"lost"})
    bench.leads("me", 5)
    bench.plane._led_since_s = bench.clock()
    bench.settle(SETTLED_WITHIN_S - 0.1, 5)
    assert not bench.plane.decides()
    bench.settle(0.2, 5)
    assert bench.plane.decides()


async def test_a_leader_that_froze_does_nothing_of_a_leader_when_it_wakes(bench: Bench) -> None:
    bench.tells()
    bench.leads("me", 5)
    bench.plane._decide(5)
    assert bench.plane.decides()
    # No renewal, no timer, nobody told it anything: it was stopped.
    bench.clock.now_s += LEASE_S - MARGIN_S
    assert not bench.plane.decides()
    assert bench.plane.followed() is not None
    assert bench.plane.term() == 0
    with pytest.raises(NotLeader):
        bench.plane.check_leads()
    # In another term it decides anew, and not because it once did.
    bench.leads("me", 7)
    bench.plane.check_leads()
    assert not bench.plane.decides()
