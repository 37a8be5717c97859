"""Who keeps vectors, as the control plane knows and tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.registry import vectors
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.vectors import MAX_DETAIL_CHARACTERS, Vectors
from nearmesh_controlplane.registry.wanted import wanted_state

from nearmesh.v1 import node_pb2 as pb
from tests.control_plane_state import State, state

RULES: dict[str, frozenset[str]] = {}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    """Two nodes of europe-west1 and one of us-east1 that keep vectors, and one that keeps none."""
    async with state(tmp_path) as found:
        for name, site, region in (
            ("a", "left", "europe-west1"),
            ("b", "right", "europe-west1"),
            ("c", "far", "us-east1"),
            ("none", "left", "europe-west1"),
        ):
            await found.node(name, site=site, region=region)
            keeps = name != "none"
            await found.registry.hello(name, pb.NodeHello(mesh_address=f"{name}:8003", keeps_vectors=keeps))
        yield found


@pytest.fixture
def kept(mesh: State) -> Vectors:
    RULES.clear()
    return Vectors(mesh.registry, mesh.changes, reach, RULES.get)


def reach(region: str, node: Node) -> pb.Peer:
    return pb.Peer(node=node.id, address=f"{region}/{node.mesh_address}", server_name=f"{node.id}.mesh")


def named(mesh: State, kept: Vectors, node: str) -> list[str]:
    return [one.node for one in kept.nodes_for(mesh.registry.get(node))]


def test_every_node_is_told_who_keeps_vectors_and_how_its_region_reaches_them(mesh: State, kept: Vectors) -> None:
    told = wanted_state(
        "none", mesh.registry, mesh.catalog, jwks_json="", registry_url="", vector_nodes=kept.nodes_for
    ).vector_nodes
    assert [(one.node, one.site, one.region) for one in told] == [
        ("a", "left", "europe-west1"),
        ("b", "right", "europe-west1"),
        ("c", "far", "us-east1"),
    ]
    assert (told[2].address, told[2].server_name) == ("europe-west1/c:8003", "c.mesh")


async def test_one_that_is_away_is_named_and_one_that_was_removed_is_not(mesh: State, kept: Vectors) -> None:
    mesh.registry.session_closed("c")
    assert named(mesh, kept, "a") == ["a", "b", "c"]
    await mesh.registry.remove("c")
    assert named(mesh, kept, "a") == ["a", "b"]
    gone = wanted_state("c", mesh.registry, mesh.catalog, jwks_json="", registry_url="", vector_nodes=kept.nodes_for)
    assert not gone.vector_nodes


async def test_a_node_that_moves_or_begins_to_keep_some_is_told_anew(mesh: State, kept: Vectors) -> None:
    assert named(mesh, kept, "a") == ["a", "b", "c"]
    await mesh.registry.hello("none", pb.NodeHello(mesh_address="none:8003", keeps_vectors=True))
    await mesh.registry.hello("c", pb.NodeHello(mesh_address="c:9", keeps_vectors=True))
    found = {one.node: one.address for one in kept.nodes_for(mesh.registry.get("a"))}
    assert found == {
        name: f"europe-west1/{name}:{port}" for name, port in (("a", 8003), ("b", 8003), ("c", 9), ("none", 8003))
    }


async def test_p2_who_keeps_vectors_is_known_after_a_restart_before_anybody_is_back(mesh: State, kept: Vectors) -> None:
    await mesh.registry.restore()
    assert named(mesh, kept, "a") == ["a", "b", "c"]


def test_p9_a_residency_rule_bars_the_regions_that_it_does_not_name(mesh: State, kept: Vectors) -> None:
    RULES["europe-west1"] = frozenset({"europe-west1"})
    mesh.changes.bump()
    assert [one.node for one in kept.nodes_for(mesh.registry.get("a")) if one.barred] == ["c"]
    assert not any(one.barred for one in kept.nodes_for(mesh.registry.get("c")))
    # Copies in other regions are bound by it, too.
    assert [list(one.barred_from) for one in kept.nodes_for(mesh.registry.get("c"))] == [[], [], ["europe-west1"]]
    RULES["europe-west1"] = frozenset({"europe-west1", "us-east1"})
    assert not any(one.barred_from for one in kept.nodes_for(mesh.registry.get("c")))


def test_of_very_many_the_near_ones_are_named(mesh: State, kept: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MOST", 2)
    assert (named(mesh, kept, "c"), named(mesh, kept, "b")) == (["c", "a"], ["b", "a"])


def test_what_a_node_says_of_its_vectors_is_bounded_and_shown(mesh: State, kept: Vectors) -> None:
    kept.heard("a", pb.NodeStatus(vectors=pb.VectorStatus(rows=7, collections=2, detail="x" * 9999)))
    kept.heard("none", pb.NodeStatus(vectors=pb.VectorStatus(rows=7)))
    found = kept.status("a")
    assert found
    assert (found.rows, len(found.detail)) == (7, MAX_DETAIL_CHARACTERS)
    assert kept.status("none") is None
    kept.heard("a", pb.NodeStatus())
    assert kept.status("a") == pb.VectorStatus()
