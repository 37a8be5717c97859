"""What each node is asked to have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.registry.wanted import wanted_state

from nearmesh.v1 import node_pb2
from tests.control_plane_state import State, digest_of, replica, state

PULLING, LOADING = node_pb2.REPLICA_STATE_PULLING, node_pb2.REPLICA_STATE_LOADING
FAILED, UNLOADING = node_pb2.REPLICA_STATE_FAILED, node_pb2.REPLICA_STATE_UNLOADING


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    """Two sites, and model m in versions 1 and 2, of which none is deployed."""
    async with state(tmp_path) as found:
        for version in "12":
            await found.publish("m", version)
        await found.node("a", site="left")
        await found.node("b", site="right")
        yield found


def wanted(mesh: State, node: str) -> dict[str, str]:
    found = wanted_state(node, mesh.registry, mesh.catalog, jwks_json="keys", registry_url="https://cp")
    assert all(v.digest == digest_of(v.model, v.version) for v in found.versions)
    return {version.model: version.version for version in found.versions}


async def deploy(mesh: State, version: str, *sites: str) -> None:
    await mesh.catalog.deploy("m", version, sites, "tester")


async def test_what_is_only_published_is_wanted_nowhere(mesh: State) -> None:
    assert wanted(mesh, "a") == {}


async def test_the_newest_deployment_that_covers_the_site_counts(mesh: State) -> None:
    await deploy(mesh, "1")
    assert (wanted(mesh, "a"), wanted(mesh, "b")) == ({"m": "1"}, {"m": "1"})
    await deploy(mesh, "2", "left")
    assert (wanted(mesh, "a"), wanted(mesh, "b")) == ({"m": "2"}, {"m": "1"})
    await deploy(mesh, "1", "left", "right")
    assert (wanted(mesh, "a"), wanted(mesh, "b")) == ({"m": "1"}, {"m": "1"})
    await deploy(mesh, "2")
    assert (wanted(mesh, "a"), wanted(mesh, "b")) == ({"m": "2"}, {"m": "2"})


async def test_a_rollback_goes_back_where_the_present_version_is(mesh: State) -> None:
    await deploy(mesh, "1")
    await deploy(mesh, "2", "left")
    await mesh.catalog.rollback("m", "tester")
    assert (wanted(mesh, "a"), wanted(mesh, "b")) == ({"m": "1"}, {"m": "1"})


@pytest.mark.parametrize(
    ("has", "kept"),
    [
        ([], {}),
        ([replica("m", "1")], {"m": "1"}),
        # In the middle of a change it stays with what serves.
        ([replica("m", "2", state=PULLING), replica("m", "1")], {"m": "1"}),
        ([replica("m", "1"), replica("m", "2", state=FAILED)], {"m": "1"}),
        # After a restart nothing is ready yet.
        ([replica("m", "1", state=PULLING)], {"m": "1"}),
        ([replica("m", "1", state=LOADING)], {"m": "1"}),
        ([replica("m", "1", state=FAILED)], {"m": "1"}),
        ([replica("m", "1", state=UNLOADING)], {}),
        ([replica("other", "1")], {}),
    ],
)
async def test_a_cordoned_node_is_asked_for_what_it_has(
    mesh: State, has: list[node_pb2.ReplicaStatus], kept: dict[str, str]
) -> None:
    await deploy(mesh, "2")
    await mesh.registry.cordon("a", undo=False)
    await mesh.reports("a", *has)
    assert wanted(mesh, "a") == kept
    await mesh.registry.cordon("a", undo=True)
    assert wanted(mesh, "a") == {"m": "2"}


async def test_a_version_says_who_asks_for_it(mesh: State) -> None:
    await deploy(mesh, "1")

    def asked_by() -> list[str]:
        found = wanted_state("a", mesh.registry, mesh.catalog, jwks_json="", registry_url="")
        return [version.rollout for version in found.versions]

    first = asked_by()
    await mesh.reports("a", replica("m", "1"))
    assert asked_by() == first == ["deployment 1"]
    await deploy(mesh, "1")
    assert asked_by() == ["deployment 2"], "a version that failed is tried again"


async def test_everything_else_that_a_node_is_told(mesh: State) -> None:
    await mesh.registry.remove("b")
    await mesh.reports("a", draining=True)
    told = wanted_state("a", mesh.registry, mesh.catalog, jwks_json="keys", registry_url="https://cp")
    assert (list(told.removed_nodes), told.jwks_json, told.registry_url) == (["b"], "keys", "https://cp")
    # It is out of the routes since it said that it leaves; no operator asked for that.
    assert (told.withdrawn, told.drain) == (True, False)
    await mesh.registry.drain("a", undo=False)
    told = wanted_state("a", mesh.registry, mesh.catalog, jwks_json="", registry_url="")
    assert (told.withdrawn, told.drain) == (True, True)
