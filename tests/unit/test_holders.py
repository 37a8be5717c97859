"""Whom a node is told of that it can fetch a version from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.registry.holders import MOST_NEAR, MOST_OTHERS, Holders
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.wanted import wanted_state, wanted_versions

from nearmesh.v1 import node_pb2 as pb
from tests.control_plane_state import State, digest_of, replica, state

PULLING, FAILED = pb.REPLICA_STATE_PULLING, pb.REPLICA_STATE_FAILED
DIGEST = digest_of("m", "1")
NODES = {"a": "here", "b": "here", "c": "here", "near": "next-door", "far": "elsewhere"}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    """Three nodes of a site, one of another site of the region, and one of another region; all should have m."""
    async with state(tmp_path) as found:
        await found.publish("m")
        await found.catalog.deploy("m", "1", (), "tester")
        for name, site in NODES.items():
            await found.node(name, "asia-east1" if name == "far" else "europe-west1", site=site)
        yield found


def book(mesh: State) -> Holders:
    def wants(node: Node) -> set[str]:
        return {v.digest for v in wanted_versions(node, mesh.registry.replicas(node.id), mesh.catalog)}

    def reach(region: str, node: Node) -> pb.Peer:
        return pb.Peer(node=node.id, address=f"{node.id}.{region}:8003", server_name=f"{node.id}.mesh")

    return Holders(mesh.registry, mesh.changes, wants, reach)


def told(mesh: State, name: str) -> list[tuple[str, bool, bool]]:
    holders = book(mesh)
    found = wanted_state(name, mesh.registry, mesh.catalog, jwks_json="", registry_url="", holders=holders.of).versions[
        0
    ]
    return [(holder.node, holder.same_site, holder.whole) for holder in found.holders]


async def reports(mesh: State, name: str, *replicas: pb.ReplicaStatus, held: bool = False) -> None:
    await mesh.registry.status(name, pb.NodeStatus(replicas=replicas, held=[DIGEST] if held else []))


async def test_nodes_of_a_site_know_of_each_other_before_any_has_begun(mesh: State) -> None:
    assert told(mesh, "a") == [("b", True, False), ("c", True, False)]
    # Not all ask the same one first.
    assert told(mesh, "b") == [("c", True, False), ("a", True, False)]
    assert told(mesh, "near") == []


async def test_who_has_it_comes_first_and_the_region_after_the_site(mesh: State) -> None:
    await reports(mesh, "c", held=True)
    await reports(mesh, "near", replica(), held=True)
    await reports(mesh, "far", replica(), held=True)
    await reports(mesh, "b", replica(state=PULLING))
    assert told(mesh, "a") == [("c", True, True), ("b", True, False), ("near", False, True)]
    assert told(mesh, "far") == []


async def test_who_has_it_needs_nobody(mesh: State) -> None:
    await reports(mesh, "a", replica())
    assert told(mesh, "a") == []
    await reports(mesh, "b", replica(state=PULLING), held=True)
    assert told(mesh, "b") == []


async def test_who_is_gone_or_could_not_have_it_is_not_named(mesh: State) -> None:
    await reports(mesh, "b", replica(state=FAILED))
    assert told(mesh, "a") == [("c", True, False)]
    # It tries again itself all the same.
    assert told(mesh, "b") == [("c", True, False), ("a", True, False)]
    mesh.registry.session_closed("c")
    assert told(mesh, "a") == []


async def test_addresses_are_those_that_the_region_uses(mesh: State) -> None:
    (holder, _) = book(mesh).of(mesh.registry.get("a"), DIGEST)
    assert (holder.address, holder.server_name) == ("b.europe-west1:8003", "b.mesh")


async def test_a_change_is_seen_at_once(mesh: State) -> None:
    holders = book(mesh)
    assert [h.whole for h in holders.of(mesh.registry.get("a"), DIGEST)] == [False, False]
    before = mesh.changes.value
    await reports(mesh, "b", held=True)
    assert mesh.changes.value > before, "others are told"
    assert [h.whole for h in holders.of(mesh.registry.get("a"), DIGEST)] == [True, False]


async def test_few_are_named_however_many_there_are(mesh: State) -> None:
    for number in range(20):
        await mesh.node(f"more-{number:02}", "europe-west1", site="here")
        await mesh.node(f"other-{number:02}", "europe-west1", site=f"site-{number}")
        await reports(mesh, f"other-{number:02}", held=True)
    found = told(mesh, "a")
    assert sum(same for _, same, _ in found) == MOST_NEAR
    assert sum(not same for _, same, _ in found) == MOST_OTHERS


async def test_more_than_anybody_has_is_cut(mesh: State) -> None:
    status = pb.NodeStatus(held=[*(f"sha256:{n}" for n in range(5000)), "x" * 5000])
    await mesh.registry.status("a", status)
    assert len(mesh.registry.held("a")) <= 1000
