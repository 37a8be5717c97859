"""Rollouts to some places or to so many replicas, and what becomes of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from nearmesh_controlplane.rollouts.scope import Scope

from nearmesh.errors import NotFound
from tests.rollout_nodes import CANARY, MODEL, ROLLING, FakeNode, mesh


async def test_a_rollout_to_some_places_leaves_the_others_alone(tmp_path: Path) -> None:
    nodes = [FakeNode("a", site="s1"), FakeNode("b", site="s2"), FakeNode("c", site="s3", region="us-east1")]
    async with mesh(tmp_path, *nodes) as found:
        await found.start("2", ROLLING, Scope(sites=("s2",)))
        await found.ends()
        assert found.serving == {"a": "1", "b": "2", "c": "1"}
        await found.start("2", ROLLING, Scope(regions=("us-east1",)))
        await found.ends()
        assert found.serving == {"a": "1", "b": "2", "c": "2"}


async def test_so_many_replicas_and_the_others_let_go_once_it_is_done(tmp_path: Path) -> None:
    nodes = [FakeNode(f"n{i}", site=f"s{i % 2}") for i in range(4)]
    async with mesh(tmp_path, *nodes) as found:
        begun = await found.start("2", ROLLING, Scope(replicas=2))
        assert begun.placed == ("n0", "n1"), "one at each site"
        await found.pass_s(3)
        assert found.serving["n3"] == "1", "until it is done, everybody serves"
        await found.ends()
        await found.pass_s(3)
        assert found.serving == {"n0": "2", "n1": "2", "n2": "", "n3": ""}
        assert found.plane.catalog.deployments(MODEL)[0].nodes == ("n0", "n1")


async def test_a_replica_whose_node_is_gone_is_replaced_and_what_is_there_stays(tmp_path: Path) -> None:
    nodes = [FakeNode(f"n{i}", site=f"s{i % 2}") for i in range(4)]
    async with mesh(tmp_path, *nodes) as found:
        await found.start("2", ROLLING, Scope(replicas=2))
        await found.ends()
        found.nodes["n1"].away = True
        await found.pass_s(20)
        assert found.plane.catalog.deployments(MODEL)[0].nodes == ("n0", "n1"), "it may be back soon"
        await found.pass_s(40)
        assert found.plane.catalog.deployments(MODEL)[0].nodes == ("n0", "n3"), "at the site that has none now"
        assert (found.serving["n0"], found.serving["n3"]) == ("2", "2")
        found.nodes["n1"].away = False
        await found.pass_s(5)
        assert found.serving["n1"] == "", "its place is taken"


async def test_a_drained_replica_is_replaced_at_once(tmp_path: Path) -> None:
    nodes = [FakeNode(f"n{i}", site=f"s{i}") for i in range(3)]
    async with mesh(tmp_path, *nodes) as found:
        await found.start("2", ROLLING, Scope(replicas=1))
        await found.ends()
        await found.plane.registry.drain("n0", undo=False)
        await found.pass_s(3)
        assert found.plane.catalog.deployments(MODEL)[0].nodes == ("n1",)


async def test_more_replicas_than_nodes_are_refused(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        with pytest.raises(NotFound, match="4 replicas of 'm' are wanted, and 3 nodes of all sites may have it"):
            await found.start("2", ROLLING, Scope(replicas=4))


async def test_a_cordoned_node_takes_no_part(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        await found.plane.registry.cordon("b", undo=False)
        await found.start("2", CANARY)
        await found.ends()
        assert found.serving == {"a": "2", "b": "1", "c": "2"}
        await found.plane.registry.cordon("b", undo=True)
        await found.pass_s(4)
        assert found.serving["b"] == "2"
