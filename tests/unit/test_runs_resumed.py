"""Federated runs over the control plane's own parts, with a pretended engine: how each ends, whatever dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nearmesh_controlplane.runs.folder import End, RunFolder, from_npz
from nearmesh_controlplane.runs.trainer import Trainer

from nearmesh.errors import ConfigError
from nearmesh.v1 import run_pb2 as pb
from tests.pretended_runs import (
    FAILED,
    MODEL,
    QUICK,
    REFUSED,
    ROLLED_BACK,
    SERVED,
    STOPPED,
    TRAINED,
    TRAINING,
    World,
    plane,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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


async def test_an_engine_that_is_set_up_wrongly_ends_the_run_with_why(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare() -> None:
        raise ConfigError("[runs] ca: /etc/ca.pem cannot be used")

    monkeypatch.setattr(world.engine, "prepare", prepare)
    async with plane(world) as found:
        ended = await found.until((await found.start()).id, FAILED)
        assert ended.reason == "[runs] ca: /etc/ca.pem cannot be used"


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


async def test_folders_that_cannot_be_tidied_end_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the task that drives all runs, and with it the control plane."""

    def bug(_folder: RunFolder) -> None:
        raise ZeroDivisionError

    def vanished(_path: Path) -> None:
        raise FileNotFoundError(2, "gone meanwhile")

    async with plane(world) as found:
        bad = (await found.start()).id
        await found.until(bad, TRAINING)
        await found.look()
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "progress", bug)
            patch.setattr(Path, "iterdir", vanished)
            await found.until(bad, FAILED)
        assert world.engine.running == []
        assert (await found.until((await found.start()).id, TRAINED)).resumed == 0


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
