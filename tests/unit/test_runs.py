"""Federated runs over the control plane's own parts, with a pretended engine: asked for, watched, and stopped."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from nearmesh.errors import AlreadyExists, InvalidInput, NotFound, PackageError
from nearmesh.v1 import run_pb2 as pb
from tests.pretended_runs import MODEL, STOPPED, TRAINED, TRAINING, WAITING, World, plane


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
        # Of one that has ended they are read when somebody asks.
        assert begun.id not in found.runs._rounds
        listed = (await found.calls.list(pb.ListRunsRequest(model=MODEL))).runs
        assert [(run.id, len(run.rounds), len(run.rounds[1].sites)) for run in listed] == [(begun.id, 4, 0)]
    async with plane(world) as again:
        assert await again.get(begun.id) == ended
        assert [e.action for e in await again.audit.latest(2)] == ["run trained", "run start"]


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


async def test_a_model_without_training_is_refused_at_once(world: World) -> None:
    world.candidates.trainable = False
    async with plane(world) as found:
        with pytest.raises(PackageError, match=r"m@1 has no \[training\]"):
            await found.start()
        assert not (await found.calls.list(pb.ListRunsRequest())).runs


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
