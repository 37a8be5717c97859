"""Federated runs over the control plane's own parts, with a pretended engine: which sites they ask, and when."""

from __future__ import annotations

from pathlib import Path

import pytest
from nearmesh_controlplane.runs.calls import RunCalls
from nearmesh_controlplane.runs.engine import EngineStatus

from nearmesh.errors import InvalidInput, NotFound, PermissionDenied
from nearmesh.v1 import run_pb2 as pb
from tests.pretended_runs import MODEL, QUICK, SERVED, TRAINED, TRAINING, WAITING, World, fab, plane, request


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_p8_nodes_that_are_not_asked_never_hear_of_it(world: World) -> None:
    """No data, another site than was named, not allowed: their SuperNodes do not start."""
    del world.says["b"]
    async with plane(world) as found:
        begun = await found.start(min_sites=1, sites=["site-a", "site-b"])
        await found.until(begun.id, TRAINING)
        await found.look()
        assert [found.driver.wanted_training(node) for node in "abc"] == ["plane:7480", None, None]
        ended = await found.until(begun.id, TRAINED)
        assert [site.node for site in ended.rounds[1].sites] == ["a"]
        assert found.driver.wanted_training("a") is None
        with pytest.raises(NotFound, match="no site 'x'; the mesh has site-a, site-b, site-c"):
            await found.start(sites=["x"])


async def test_it_waits_for_its_sites_and_says_who_is_there(world: World) -> None:
    world.says = {"a": world.says["a"]}
    async with plane(world) as found:
        id = (await found.start()).id
        await found.look()
        run = await found.get(id)
        assert (run.state, run.reason) == (WAITING, "1 of 2 sites are there that have data for m: a")
        world.says["b"] = type(world.says["a"])(models=[MODEL], public_key="ssh b")
        await found.until(id, TRAINING)
        await found.look()
        await found.look()
        # Whoever comes later takes part from then on.
        world.says["c"] = type(world.says["a"])(models=[MODEL], public_key="ssh c")
        ended = await found.until(id, TRAINED)
        assert len(ended.rounds[0].sites) == 2
        assert len(ended.rounds[-1].sites) == 3


async def test_a_node_that_is_removed_is_not_asked_any_more(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start(rounds=100)).id
        await found.until(id, TRAINING)
        await found.look()
        await found.state.registry.remove("b")
        await found.look()
        assert [found.driver.wanted_training(node) for node in "abc"] == ["plane:7480", None, "plane:7480"]


async def test_a_node_that_is_drained_trains_no_more(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start(rounds=100)).id
        await found.until(id, TRAINING)
        await found.look()
        await found.state.registry.drain("c", undo=False)
        await found.look()
        assert [found.driver.wanted_training(node) for node in "abc"] == ["plane:7480", "plane:7480", None]
        (run,) = world.engine.runs.values()
        assert {site.node for site in run.folder.sites().values()} == {"a", "b"}


async def test_apps_of_one_s_own_may_be_refused(world: World) -> None:
    async with plane(world) as found:
        calls = RunCalls(found.runs, found.state.catalog, found.state.registry, world.candidates, own_apps=False)
        with pytest.raises(PermissionDenied, match="`own_apps`"):
            await calls.start(request(app=fab()))


async def test_an_app_of_one_s_own_has_the_supernodes_for_itself_and_ends_when_flower_says_so(world: World) -> None:
    for said in world.says.values():
        said.own_apps = True
        said.models.append("n")
    async with plane(world) as found:
        own = await found.start(app=fab(), rounds=5, settings={"lr.first": "0.5"})
        await found.state.publish("n", "1")
        found.state.wall.now_s += 1
        other = await found.start(model="n")
        await found.driver.look()
        await found.driver.look()
        assert (await found.get(own.id)).own_app
        assert (await found.get(other.id)).reason == f"waits for run {own.id}, which is at work"
        (run,) = world.engine.runs.values()
        assert (run.config, run.folder.path.name) == ({"lr.first": 0.5, "num-server-rounds": 5}, own.id)
        run.status = EngineStatus(state="finished")
        ended = await found.until(own.id, TRAINED, looks=3)
        assert not ended.HasField("gate")
        with pytest.raises(InvalidInput, match="has no setting 'lr'"):
            await found.start(app=fab(), settings={"lr": "1"})


async def test_runs_of_one_model_follow_each_other(world: World) -> None:
    async with plane(world) as found:
        first = await found.start()
        found.state.wall.now_s += 1
        second = await found.start()
        await found.look()
        waiting = await found.get(second.id)
        assert (waiting.state, waiting.reason) == (WAITING, f"waits for run {first.id}, which is at work")
        await found.until(second.id, TRAINED)
        assert (await found.get(first.id)).state == TRAINED


async def test_one_that_waited_begins_from_what_the_one_before_it_ended_in(world: World) -> None:
    async with plane(world) as found:
        first = await found.start(auto_promote=True, promote=QUICK)
        found.state.wall.now_s += 1
        second, named = await found.start(), await found.start(version="1")
        assert second.parent_version == named.parent_version == "1"
        await found.until(first.id, SERVED)
        assert (await found.until(second.id, TRAINED)).parent_version == f"1-{first.id}"
        assert (await found.until(named.id, TRAINED)).parent_version == "1"


async def test_a_window_that_closes_ends_no_round_and_lets_no_other_begin(world: World) -> None:
    async with plane(world) as found:
        found.state.wall.now_s = 22 * 3600.0
        id = (await found.start(schedule=pb.Schedule(window="22:00-23:00"))).id
        await found.until(id, TRAINING)
        await found.look()
        found.state.wall.now_s = 23 * 3600.0
        waiting = await found.until(id, WAITING, looks=6)
        assert "its window 22:00-23:00 UTC opens at 1970-01-02 22:00 UTC" in waiting.reason
        rounds = len(waiting.rounds)
        assert (world.engine.running, found.driver.wanted_training("a")) == ([], None)
        for _ in range(3):
            await found.look()
        assert len((await found.get(id)).rounds) == rounds < 4
        found.state.wall.now_s = 46 * 3600.0
        ended = await found.until(id, TRAINED)
        assert ([one.number for one in ended.rounds], ended.resumed) == ([0, 1, 2, 3], 0)
