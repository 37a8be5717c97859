"""Federated runs over the control plane's own parts, with a pretended engine: how each ends, whatever dies."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
from nearmesh_controlplane.rollouts.rollout import Plan
from nearmesh_controlplane.rollouts.scope import Scope
from nearmesh_controlplane.runs.calls import RunCalls
from nearmesh_controlplane.runs.engine import EngineStatus
from nearmesh_controlplane.runs.folder import End, RunFolder, from_npz
from nearmesh_controlplane.runs.run import Check
from nearmesh_controlplane.runs.trainer import Trainer

from nearmesh.errors import AlreadyExists, InvalidInput, NotFound, PackageError, PermissionDenied
from nearmesh.v1 import run_pb2 as pb
from tests.control_plane_state import digest_of
from tests.pretended_runs import ME, MODEL, World, fab, plane, request
from tests.rollout_nodes import Behaviour

TRAINED, SERVED, REFUSED = pb.RUN_STATE_TRAINED, pb.RUN_STATE_SERVED, pb.RUN_STATE_REFUSED
ROLLED_BACK, STOPPED, FAILED = pb.RUN_STATE_ROLLED_BACK, pb.RUN_STATE_STOPPED, pb.RUN_STATE_FAILED
WAITING, TRAINING = pb.RUN_STATE_WAITING, pb.RUN_STATE_TRAINING
QUICK = pb.PromoteOptions(steps=[0.5], step_s=1.0, step_requests=1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_run_trains_and_is_kept(world: World) -> None:
    async with plane(world) as found:
        begun = await found.start(auto_promote=False)
        assert (begun.state, begun.actor, begun.parent_version, begun.metric) == (WAITING, "data/ann", "1", "accuracy")
        ended = await found.until(begun.id, TRAINED)
        assert [one.number for one in ended.rounds] == [0, 1, 2, 3]
        assert [round(one.metrics["accuracy"], 1) for one in ended.rounds] == [0.5, 0.6, 0.7, 0.8]
        assert [(site.node, site.site) for site in ended.rounds[1].sites] == [(n, f"site-{n}") for n in "abc"]
        assert (ended.resumed, ended.version, world.engine.running, world.engine.ready) == (0, "", [], False)
        assert ended.ended_at_s and not ended.HasField("gate")
        listed = (await found.calls.list(pb.ListRunsRequest(model=MODEL))).runs
        assert [(run.id, len(run.rounds), len(run.rounds[1].sites)) for run in listed] == [(begun.id, 4, 0)]
    async with plane(world) as again:
        assert await again.get(begun.id) == ended
        assert [e.action for e in await again.audit.latest(2)] == ["run trained", "run start"]


async def test_a_better_model_is_served_and_says_where_it_comes_from(world: World) -> None:
    async with plane(world) as found:
        begun = await found.start(auto_promote=True, promote=QUICK, settings={"epochs": "5"})
        ended = await found.until(begun.id, SERVED)
        assert (ended.version, ended.gate.passed) == (f"1-{begun.id}", True)
        assert [check.name for check in ended.gate.checks] == [
            *("finite", "norm", "sites", "site a", "site b", "site c", "mean", "parity", "variant int8")
        ]
        assert found.mesh.serving == dict.fromkeys("abc", ended.version)
        assert found.rollouts.get(MODEL).id == ended.rollout
        (lineage,) = world.candidates.lineages
        assert (lineage.run, lineage.round, lineage.parent.version) == (begun.id, 3, "1")
        assert lineage.settings == {"epochs": 5, "learning_rate": 0.05}
        assert {(site.rounds, site.examples) for site in lineage.sites} == {(3, 10)}
        assert not any(node in site.site for site in lineage.sites for node in world.nodes if len(node) > 1)
        assert lineage.metrics_before["accuracy"] < lineage.metrics["accuracy"]


async def test_promote_takes_a_trained_run_further(world: World) -> None:
    async with plane(world) as found:
        begun = await found.start(promote=QUICK)
        with pytest.raises(InvalidInput, match="is waiting; one that is trained can be promoted"):
            await found.calls.promote(pb.PromoteRunRequest(run=begun.id))
        await found.until(begun.id, TRAINED)
        promoted = await found.calls.promote(pb.PromoteRunRequest(run=begun.id))
        assert (promoted.state, promoted.ended_at_s) == (pb.RUN_STATE_CHECKING, 0.0)
        # Again is no mistake.
        assert (await found.calls.promote(pb.PromoteRunRequest(run=begun.id))).state == pb.RUN_STATE_CHECKING
        assert (await found.until(begun.id, SERVED)).version == f"1-{begun.id}"
        assert [e.action for e in await found.audit.latest(20)].count("run promote") == 1


async def test_the_next_run_begins_from_what_is_served_and_its_version_keeps_a_short_name(world: World) -> None:
    async with plane(world) as found:
        first = await found.start(auto_promote=True, promote=QUICK)
        await found.until(first.id, SERVED)
        second = await found.start(auto_promote=True, promote=QUICK)
        assert second.parent_version == f"1-{first.id}"
        assert (await found.until(second.id, SERVED)).version == f"1-{second.id}"


# Whatever dies


async def test_a_control_plane_killed_between_any_two_looks_does_nothing_twice(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start(auto_promote=True, promote=QUICK)).id
    states: list[pb.RunState] = []
    for _ in range(200):
        # Each time another process; those of before are gone, and so are their server apps.
        world.engine.kill()
        async with plane(world) as found:
            await found.driver.look()
            world.engine.play()
            await found.driver.look()
            if found.rollouts.running():
                await found.mesh.pass_s(10)
            run = await found.get(id)
            states.append(run.state)
            numbers = [one.number for one in run.rounds]
            assert numbers == list(range(len(numbers)))
            if run.state in (SERVED, REFUSED, ROLLED_BACK, FAILED):
                break
    assert run.state == SERVED, run
    assert set(states) >= {TRAINING, SERVED}
    assert world.candidates.published == [f"1-{id}"]
    assert run.resumed > 0
    async with plane(world) as found:
        assert [one.version for one in found.rollouts.all()] == [f"1-{id}"], "one rollout"
        assert [d.version for d in found.state.catalog.deployments(MODEL)] == [f"1-{id}", "1"]


@pytest.mark.parametrize("at", ["build", "publish", "rollout"])
async def test_a_control_plane_killed_within_the_chain_does_nothing_twice(
    world: World, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done is done, and what would have said so is lost."""
    async with plane(world) as found:
        id = (await found.start(auto_promote=True, promote=QUICK)).id
        await found.until(id, pb.RUN_STATE_CHECKING)
        target, name = {
            "build": (world.candidates, "build"),
            "publish": (world.candidates, "publish"),
            "rollout": (found.rollouts, "start"),
        }[at]
        done = getattr(target, name)

        async def killed(*args: object, **more: object) -> None:
            await done(*args, **more)
            raise SystemExit("killed")

        with monkeypatch.context() as patch:
            patch.setattr(target, name, killed)
            with pytest.raises(SystemExit):
                for _ in range(10):
                    await found.chain.go_on(await found.runs.get(id))
    async with plane(world) as found:
        assert (await found.until(id, SERVED)).version == f"1-{id}"
        assert world.candidates.published == [f"1-{id}"]
        assert len(found.rollouts.all()) == 1


async def test_a_server_app_that_dies_is_followed_by_another_that_goes_on(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start()).id
        await found.until(id, TRAINING)
        for _ in range(4):
            await found.look()
        world.engine.kill("out of memory")
        await found.driver.look()
        run = await found.get(id)
        assert (run.state, run.reason) == (TRAINING, "is taken up again: out of memory")
        rounds = len(run.rounds)
        assert rounds > 1
        ended = await found.until(id, TRAINED)
        assert (ended.resumed, ended.reason, len(world.engine.runs)) == (1, "", 2)
        assert [one.number for one in ended.rounds] == [0, 1, 2, 3]


async def test_one_that_dies_again_and_again_is_given_up_with_its_last_words(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start()).id
        world.engine.words = "INFO: round 1\nTraceback\n  ...\nKeyError: 'w'\nINFO: ends\n"
        for _ in range(400):
            await found.driver.look()
            world.engine.kill()
            found.state.wall.now_s += 1
            if (await found.get(id)).state == FAILED:
                break
        run = await found.get(id)
        assert run.reason == "8 attempts in a row ended before a round had; the last one: KeyError: 'w'"
        assert (run.resumed, len(world.engine.runs), world.engine.ready) == (7, 8, False)


async def test_a_server_app_that_ends_while_it_is_looked_at_loses_no_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Trainer._take_rounds

    async def sudden(*args: Any) -> bool:
        fresh = await own(*args)
        for _ in range(6):
            world.engine.play()
        return fresh

    monkeypatch.setattr(Trainer, "_take_rounds", sudden)
    async with plane(world) as found:
        id = (await found.start()).id
        ended = await found.until(id, TRAINED)
        assert [one.number for one in ended.rounds] == [0, 1, 2, 3]
        assert 3 in await found.runs.arrays(id)


async def test_a_server_app_that_gives_up_says_why(world: World) -> None:
    world.engine.end = End(reason="the recipe has no parameter 'w'")
    async with plane(world) as found:
        id = (await found.start(rounds=1)).id
        ended = await found.until(id, FAILED)
        assert (ended.reason, len(world.engine.runs)) == ("the recipe has no parameter 'w'", 1)


async def test_an_engine_that_is_away_is_waited_for_and_counts_as_no_attempt(world: World) -> None:
    world.engine.away = True
    async with plane(world) as found:
        id = (await found.start()).id
        for _ in range(50):
            await found.look()
        run = await found.get(id)
        assert (run.state, run.reason) == (TRAINING, "the engine is away: the SuperLink does not answer")
        world.engine.away = False
        assert (await found.until(id, TRAINED)).resumed == 0


async def test_another_control_plane_goes_on_from_the_database(world: World) -> None:
    async with plane(world, "first") as found:
        id = (await found.start()).id
        await found.until(id, TRAINING)
        for _ in range(3):
            await found.look()
        rounds = len((await found.get(id)).rounds)
        assert rounds >= 2
    world.engine.kill()
    async with plane(world, "second") as found:
        ended = await found.until(id, TRAINED)
        assert (ended.resumed, [one.number for one in ended.rounds]) == (1, [0, 1, 2, 3])
        # The parameters went on from where they were: three steps in all.
        arrays = await found.runs.arrays(id)
        assert sorted(arrays) == [2, 3]
        assert from_npz(arrays[3])["w"] == pytest.approx(1.3, abs=1e-5)


async def test_whoever_was_asked_stays_asked_while_the_next_control_plane_begins(world: World) -> None:
    world.says = {name: world.says[name] for name in "ab"}
    async with plane(world) as found:
        id = (await found.start()).id
        await found.until(id, TRAINING)
        # Nothing has begun yet.
        assert found.driver.wanted_training("a") is None
        await found.look()
        assert found.driver.wanted_training("a") == "plane:7480"
    async with plane(world, "second") as found:
        assert [found.driver.wanted_training(node) for node in "abc"] == ["plane:7480", "plane:7480", None]
        await found.until(id, TRAINED)
        assert found.driver.wanted_training("a") is None


async def test_a_folder_of_a_time_when_another_one_led_is_thrown_away(world: World) -> None:
    async with plane(world, "first") as found:
        id = (await found.start()).id
        await found.until(id, TRAINING)
        await found.look()
        await found.look()
    async with plane(world, "second") as found:
        await found.look()
        await found.look()
        await found.driver.look()
        reached = len((await found.get(id)).rounds)
    # The first one's server app outlived its leadership, and made a round of its own.
    world.engine.step = 100.0
    world.engine.play()
    world.engine.step = 0.1
    world.engine.kill()
    async with plane(world, "first") as found:
        ended = await found.until(id, TRAINED)
        assert reached >= 2
        assert from_npz((await found.runs.arrays(id))[3])["w"] == pytest.approx(1.3, abs=1e-5)
        assert [one.number for one in ended.rounds] == [0, 1, 2, 3]


async def test_one_that_does_not_lead_does_nothing(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start()).id
        await found.until(id, TRAINING)
        await found.look()
        assert found.driver.wanted_training("a") == "plane:7480"
        found.driver.leads = lambda: False
        await found.look()
        assert (world.engine.running, world.engine.ready, found.driver.wanted_training("a")) == ([], False, None)
        rounds = len((await found.get(id)).rounds)
        await found.look()
        assert len((await found.get(id)).rounds) == rounds
        found.driver.leads = lambda: True
        assert (await found.until(id, TRAINED)).resumed == 1


# What people ask


async def test_the_same_key_is_the_same_run(world: World) -> None:
    async with plane(world) as found:
        first = await found.start(idempotency_key="k")
        assert (await found.start(idempotency_key="k")).id == first.id
        with pytest.raises(AlreadyExists, match=f"is of run {first.id} of m, which was asked for in other words"):
            await found.start(idempotency_key="k", rounds=4)
        assert (await found.start(idempotency_key="l")).id != first.id
    async with plane(world) as again:
        assert (await again.start(idempotency_key="k")).id == first.id
        assert [e.action for e in await again.audit.latest(9)].count("run start") == 2


async def test_stop_lets_the_round_end_and_stop_again_does_not(world: World) -> None:
    async with plane(world) as found:
        first = await found.start(rounds=100)
        await found.until(first.id, TRAINING)
        for _ in range(3):
            await found.look()
        stopping = await found.calls.stop(pb.StopRunRequest(run=first.id))
        assert stopping.state == TRAINING
        await found.driver.look()
        # Nothing has ended since.
        assert (await found.get(first.id)).state == TRAINING
        ended = await found.until(first.id, STOPPED, looks=4)
        assert (len(ended.rounds) >= 2, world.engine.running, ended.reason) == (True, [], "stopped by request")
        with pytest.raises(InvalidInput, match="is stopped already"):
            await found.calls.stop(pb.StopRunRequest(run=first.id))
        second = await found.start(rounds=100)
        await found.until(second.id, TRAINING)
        for _ in range(3):
            await found.look()
        for _ in range(2):
            await found.calls.stop(pb.StopRunRequest(run=second.id))
        await found.driver.look()
        assert (await found.get(second.id)).state == STOPPED


async def test_stop_while_it_is_rolled_out_takes_the_rollout_back(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start(auto_promote=True)).id
        await found.until(id, pb.RUN_STATE_ROLLING_OUT)
        await found.look()
        await found.look()
        await found.calls.stop(pb.StopRunRequest(run=id))
        ended = await found.until(id, STOPPED)
        assert ended.reason.startswith("its rollout was taken back: aborted by data/ann")
        await found.mesh.pass_s(4)
        assert found.mesh.serving == dict.fromkeys("abc", "1")


async def test_one_that_waits_or_is_trained_is_stopped_at_once(world: World) -> None:
    async with plane(world) as found:
        first = await found.start()
        assert (await found.calls.stop(pb.StopRunRequest(run=first.id))).state == STOPPED
        second = await found.start()
        await found.until(second.id, TRAINED)
        assert (await found.calls.stop(pb.StopRunRequest(run=second.id))).state == STOPPED


# Which sites, and when


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


async def test_a_disk_that_is_full_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left")

    async with plane(world) as found:
        id = (await found.start()).id
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "write_plan", full)
            for _ in range(30):
                await found.look()
            run = await found.get(id)
            assert (run.state, "No space left; look at the disk" in run.reason) == (TRAINING, True)
        assert (await found.until(id, TRAINED)).resumed == 0


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


async def test_an_engine_that_goes_away_in_the_middle_is_waited_for(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start()).id
        await found.until(id, TRAINING)
        for _ in range(3):
            await found.look()
        world.engine.away = True
        await found.look()
        run = await found.get(id)
        assert (run.state, run.reason) == (TRAINING, "the engine is away: the SuperLink does not answer")
        world.engine.away = False
        assert (await found.until(id, TRAINED)).resumed == 0
        # Whoever has no patience need not have it.
        second = (await found.start(rounds=100)).id
        await found.until(second, TRAINING)
        for _ in range(3):
            await found.look()
        world.engine.away = True
        for _ in range(2):
            await found.calls.stop(pb.StopRunRequest(run=second))
        assert (await found.until(second, STOPPED, looks=3)).reason == "stopped by request"


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


# The gate, and what comes of it


async def test_a_model_that_was_made_worse_is_refused_with_the_figures(world: World) -> None:
    world.engine.accuracy = [0.8, 0.7, 0.7, 0.7]
    async with plane(world) as found:
        id = (await found.start(auto_promote=True)).id
        ended = await found.until(id, REFUSED)
        assert "site a: accuracy 0.8000 -> 0.7000 over 10 examples, loses 0.1000; may lose 0.02" in ended.reason
        assert "mean: accuracy 0.8000 -> 0.7000, gains -0.1000; has to gain 0" in ended.reason
        assert (ended.gate.passed, world.candidates.built, ended.version) == (False, [], "")
        # Whoever takes it all the same says so.
        options = pb.PromoteOptions(largest_site_loss=0.2, smallest_mean_gain=-0.2, steps=[0.5], step_s=1.0)
        await found.calls.promote(pb.PromoteRunRequest(run=id, options=options))
        assert (await found.until(id, SERVED)).gate.passed


async def test_a_variant_that_loses_too_much_is_refused(world: World) -> None:
    world.candidates.variants = (Check(name="variant int8", passed=False, detail="accuracy 0.5, at least 0.7"),)
    async with plane(world) as found:
        id = (await found.start(auto_promote=True)).id
        ended = await found.until(id, REFUSED)
        assert ended.reason == "variant int8: accuracy 0.5, at least 0.7"
        assert world.candidates.published == []


async def test_a_version_that_cannot_be_made_is_refused(world: World) -> None:
    world.candidates.refuses = "initializer 'w' has another shape"
    async with plane(world) as found:
        id = (await found.start(auto_promote=True)).id
        assert (await found.until(id, REFUSED)).reason == "initializer 'w' has another shape"


async def test_one_that_fails_in_the_canary_is_back_at_its_parent(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start(auto_promote=True)).id
        bad = {digest_of(MODEL, f"1-{id}"): Behaviour(errors=0.5)}
        for node in world.nodes.values():
            node.behaviours = bad
        ended = await found.until(id, ROLLED_BACK)
        assert "its rollout failed" in ended.reason
        assert "requests failed" in ended.reason
        await found.mesh.pass_s(4)
        assert found.mesh.serving == dict.fromkeys("abc", "1")
        assert [d.version for d in found.state.catalog.deployments(MODEL)] == ["1"]
        with pytest.raises(InvalidInput, match=f"`nearmesh model deploy m 1-{id}`"):
            await found.calls.promote(pb.PromoteRunRequest(run=id))


async def test_answers_are_compared_as_the_package_says(world: World) -> None:
    world.agreement = 0.75
    async with plane(world) as found:
        id = (await found.start(auto_promote=True)).id
        bad = {digest_of(MODEL, f"1-{id}"): Behaviour(agrees=0.2)}
        for node in world.nodes.values():
            node.behaviours = bad
        ended = await found.until(id, ROLLED_BACK)
        assert "compared answers agree" in ended.reason


async def test_a_rollout_waits_for_another_one(world: World) -> None:
    async with plane(world) as found:
        await found.state.publish(MODEL, "2")
        id = (await found.start(auto_promote=True, promote=QUICK)).id
        await found.until(id, pb.RUN_STATE_CHECKING)
        other = Plan(strategy="canary", steps=(0.1,), step_s=30.0)
        await found.rollouts.start(found.state.catalog.version(MODEL, "2"), Scope(), other, ME)
        for _ in range(6):
            await found.driver.look()
        run = await found.get(id)
        assert (run.state, "a rollout of m@2 is running" in run.reason) == (pb.RUN_STATE_ROLLING_OUT, True)
        assert (await found.until(id, SERVED)).version == f"1-{id}"


async def test_a_model_without_training_is_refused_at_once(world: World) -> None:
    world.candidates.trainable = False
    async with plane(world) as found:
        with pytest.raises(PackageError, match=r"m@1 has no \[training\]"):
            await found.start()
        assert not (await found.calls.list(pb.ListRunsRequest())).runs


async def test_a_bug_ends_its_run_and_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with plane(world) as found:
        bad = await found.start(auto_promote=True)
        found.state.wall.now_s += 1
        good = await found.start(promote=QUICK)

        async def build(*_args: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(world.candidates, "build", build)
            ended = await found.until(bad.id, FAILED)
        assert ended.reason == "an error of the control plane itself (ZeroDivisionError), which its log has"
        assert (await found.until(good.id, TRAINED)).state == TRAINED


async def test_watch_tells_each_change_and_ends(world: World) -> None:
    async with plane(world) as found:
        id = (await found.start()).id
        seen: list[pb.Run] = []

        async def watch() -> None:
            async for run in found.calls.watch(pb.GetRunRequest(run=id)):
                seen.append(run)

        task = asyncio.create_task(watch())
        while not task.done():
            await found.look()
            await asyncio.sleep(0.01)
        assert (seen[0].state, seen[-1].state) == (WAITING, TRAINED)
        assert all(one != other for one, other in itertools.pairwise(seen))
        with pytest.raises(NotFound, match="no run 'r0'"):
            await found.get("r0")
