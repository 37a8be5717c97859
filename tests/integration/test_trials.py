"""A version on trial beside the standing one, good or bad: what callers see of it, and what is counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from nearmesh_agent.serving import memory

from nearmesh.v1 import node_pb2 as pb
from tests.bad_versions import Kind, version
from tests.hot_swaps import digest
from tests.integration.mesh_processes import added, question
from tests.trial_node import TrialNode, trial_node

READY, FAILED, LOADING = pb.REPLICA_STATE_READY, pb.REPLICA_STATE_FAILED, pb.REPLICA_STATE_LOADING


def versions(folder: Path, kind: Kind = "good", **more: Any) -> None:
    """Version 1, which is good, and version 2."""
    version(folder / "v1", "1", add=1.0)
    version(folder / "v2", "2", kind, add=2.0, **more)


@pytest.fixture
async def good(tmp_path: Path) -> AsyncIterator[TrialNode]:
    versions(tmp_path)
    async with trial_node(tmp_path) as node:
        await node.want(1, 2, share=0.25)
        yield node


async def test_a_trial_gets_its_share_exactly_and_each_answer_says_who_made_it(good: TrialNode) -> None:
    seen: Counter[str] = Counter()
    for _ in range(40):
        answer = await good.ask(receipt=True)
        seen[answer.model_version] += 1
        assert added(answer) == float(answer.model_version)
        assert answer.parameters["nearmesh_digest"].string_param == digest(int(answer.model_version))
    assert seen == {"1": 30, "2": 10}
    assert (good.status(2).on_trial, good.status(2).answered, good.status(2).failed) == (True, 10, 0)
    assert not good.status(1).on_trial and good.status(1).answered == 30


async def test_whoever_names_a_version_gets_that_one(good: TrialNode) -> None:
    for _ in range(8):
        assert [added(await good.ask(name)) for name in ("1", "2")] == [1.0, 2.0]
    assert sorted((await good.node.client.get_model_metadata("m")).versions) == ["1", "2"]


async def test_p4_a_trial_that_becomes_the_standing_version_fails_no_request_and_is_not_loaded_again(
    good: TrialNode,
) -> None:
    trial = good.replica(2)
    traffic = asyncio.create_task(good.traffic(1.0, per_s=100.0))
    await asyncio.sleep(0.25)
    await good.want(1, 2, share=0.5)
    await asyncio.sleep(0.25)
    await good.want(2)
    swapped = good.replica(2)
    await asyncio.sleep(0.15)
    answers = await asyncio.gather(*(good.ask() for _ in range(20)))
    assert {answer.model_version for answer in answers} == {"2"}
    found = await traffic
    assert (found.errors, found.wrong) == ([], [])
    assert swapped is trial and trial is not None and trial.tally.loads == 1
    assert sum(found.versions.values()) == 100 and min(found.versions.values()) > 20


async def test_p4_a_trial_that_is_withdrawn_fails_no_request(good: TrialNode) -> None:
    traffic = asyncio.create_task(good.traffic(0.75, per_s=100.0))
    await asyncio.sleep(0.25)
    await good.want(1)
    # At once.
    answers = await asyncio.gather(*(good.ask() for _ in range(20)))
    assert {answer.model_version for answer in answers} == {"1"}
    found = await traffic
    assert (found.errors, found.wrong) == ([], [])
    assert good.replica(2) is None


@pytest.mark.parametrize("kind", ["raising", "refusing", "hanging", "slow"])
async def test_p4_nobody_sees_a_trial_fail(tmp_path: Path, kind: Kind) -> None:
    # Its slow answers come after the deadline.
    versions(tmp_path, kind, slow_s=4.0)
    async with trial_node(tmp_path) as node:
        await node.want(1, 2, share=0.25)
        found = await node.traffic(1.0, per_s=100.0, timeout_s=2.0)
        assert (found.errors, found.wrong) == ([], [])
        assert found.versions == {"1": 100}
        status = node.status(2)
        assert (status.answered, status.failed) == (0, 25)
        # The standing version is as quick as it was: what others took is not its own time.
        assert node.status(1).failed == 0 and node.status(1).service_ms_p50 < 100
        await node.want(1)
        found = await node.traffic(0.25, per_s=100.0)
        assert found.versions == {"1": 25} and not found.errors


async def test_whoever_names_a_bad_version_sees_what_it_does(tmp_path: Path) -> None:
    versions(tmp_path, "raising")
    async with trial_node(tmp_path) as node:
        await node.want(1, 2, share=0.25)
        with pytest.raises(grpc.aio.AioRpcError, match="broken on purpose") as caught:
            await node.ask("2")
        assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_what_is_wrong_with_a_request_is_the_callers_fault_and_not_the_trials(good: TrialNode) -> None:
    await good.want(1, 2, share=1.0)
    bad = question("m")
    bad.inputs[0].name = "nothing"
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await good.stub.ModelInfer(bad, timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (good.status(2).failed, good.status(1).failed) == (0, 0)


async def test_where_there_is_no_time_for_two_the_standing_version_answers(tmp_path: Path) -> None:
    version(tmp_path / "v1", "1", "slow", add=1.0, slow_s=0.1)
    version(tmp_path / "v2", "2", "slow", add=2.0, slow_s=0.1)
    async with trial_node(tmp_path) as node:
        await node.want(1, 2)
        for _ in range(20):
            await node.ask()
        await node.want(1, 2, share=1.0)
        answers = [await node.ask(timeout_s=0.25) for _ in range(3)]
        assert {answer.model_version for answer in answers} == {"1"}
        assert (await node.ask()).model_version == "2"
        assert node.status(2).failed == 0


def _given_up(node: TrialNode) -> bool:
    return node.state(2) == FAILED and "has not come back" in node.status(2).detail


async def test_p10_a_trial_that_hangs_leaves_the_standing_versions_engines_alone(tmp_path: Path) -> None:
    versions(tmp_path, "hanging")
    async with trial_node(tmp_path) as node:
        await node.want(1, 2, share=0.5)
        started_s = time.monotonic()
        await node.traffic(0.5)
        assert await node.node.serving() and await node.node.client.is_model_ready("m")
        async with asyncio.timeout(6):
            while not _given_up(node):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert time.monotonic() - started_s < 6
        # Nobody waits for it any more.
        found = await node.traffic(0.5)
        assert found.errors == [] and max(found.took_s) < 0.5
        standing = node.replica(1)
        assert standing is not None and standing.ready and standing.endings.hanging == 0
        assert await node.node.serving() and await node.node.client.is_model_ready("m")


@pytest.mark.parametrize(("kind", "agreed"), [("good", 1.0), ("wrong", 0.0), ("raising", 0.0)])
async def test_what_the_standing_version_answers_is_asked_of_the_trial_as_well(
    tmp_path: Path, kind: Kind, agreed: float
) -> None:
    version(tmp_path / "v1", "1", add=1.0)
    version(tmp_path / "v2", "2", kind, add=1.0)
    async with trial_node(tmp_path) as node:
        await node.want(1, 2, mirror=0.5)
        for _ in range(40):
            assert (await node.ask()).model_version == "1"
            await asyncio.sleep(0.005)
        async with asyncio.timeout(5):
            while node.status(2).compared < 15:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        status = node.status(2)
        assert status.compared <= 20 and status.agreed == agreed * status.compared
        assert status.answered == 0 and status.failed == (status.compared if kind == "raising" else 0)
        assert node.status(1).compared == 0
        assert status.service_ms_p50 > 0


async def test_p5_a_trial_that_proves_wrong_gets_nothing(tmp_path: Path) -> None:
    versions(tmp_path, expected=5.0)
    async with trial_node(tmp_path) as node:
        await node.want(1, 2, share=1.0, mirror=1.0)
        assert node.state(2) == FAILED and "WARMUP_FAILED" in node.status(2).detail
        found = await node.traffic(0.4)
        assert found.versions == {"1": 20} and not found.errors


async def test_a_trial_that_does_not_fit_says_what_it_would_need(tmp_path: Path) -> None:
    version(tmp_path / "v1", "1", add=1.0, memory_bytes=memory.MIB)
    version(tmp_path / "v2", "2", add=2.0, memory_bytes=memory.MIB)
    async with trial_node(tmp_path, memory_budget_mib=1) as node:
        await node.want(1, 2, share=1.0)
        assert node.state(2) == FAILED
        assert (
            "needs about 1.0 MiB, and of the 1.0 MiB that this node gives its models 1.0 MiB" in node.status(2).detail
        )
        assert (await node.ask()).model_version == "1"
        # Without a trial it may take over: one goes, the other comes.
        await node.want(2)
        assert (await node.ask()).model_version == "2"


async def test_p6_under_overload_with_a_trial_refusals_are_early_and_what_is_accepted_is_in_time(
    tmp_path: Path,
) -> None:
    version(tmp_path / "v1", "1", "slow", add=1.0, slow_s=0.05)
    version(tmp_path / "v2", "2", "slow", add=2.0, slow_s=0.5)
    async with trial_node(tmp_path) as node:
        await node.want(1, 2)
        for _ in range(10):
            await node.ask()
        await node.want(1, 2, share=0.1, mirror=0.25)
        # Two instances of 50 ms are 40 a second; twice as many come.
        found = await node.traffic(2.0, per_s=80.0, timeout_s=1.0)
        late = [error for error in found.errors if error.startswith("DEADLINE_EXCEEDED")]
        refused = [error for error in found.errors if error.startswith("RESOURCE_EXHAUSTED")]
        assert found.wrong == [] and len(refused) + len(late) == len(found.errors)
        assert len(late) <= 32 and sum(found.versions.values()) >= 40


async def test_a_trial_that_hangs_when_it_is_loaded_holds_up_no_other_load(tmp_path: Path) -> None:
    versions(tmp_path, "stuck")
    version(tmp_path / "v3", "3", add=3.0)
    async with trial_node(tmp_path) as node:
        await node.want(1)
        loading = asyncio.create_task(node.want(1, 2, share=1.0))
        async with asyncio.timeout(2):
            while node.state(2) != LOADING:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        # One that has to be healed, or to come back into memory, does.
        standing = node.replica(1)
        assert standing is not None
        await standing.deactivate()
        assert (await node.ask(timeout_s=2.0)).model_version == "1"
        # Another version takes over.
        started_s = time.monotonic()
        await node.want(3)
        assert (await node.ask()).model_version == "3" and time.monotonic() - started_s < 3
        assert node.replica(2) is None
        loading.cancel()


async def test_a_trial_with_other_inputs_is_no_trouble_for_callers(tmp_path: Path) -> None:
    version(tmp_path / "v1", "1", add=1.0)
    text = (version(tmp_path / "v2", "2", add=2.0) / "model.toml").read_text()
    (tmp_path / "v2" / "model.toml").write_text(text.replace('name = "x"', 'name = "values"'))
    steps = (tmp_path / "v2" / "steps.py").read_text()
    (tmp_path / "v2" / "steps.py").write_text(steps.replace("def add(x):", "def add(values):\n    x = values"))
    np.savez(
        tmp_path / "v2" / "warmup.npz",
        **{"input.values": np.array([77], np.float32), "output.y": np.array([79], np.float32)},
    )
    async with trial_node(tmp_path) as node:
        await node.want(1, 2, share=0.5, mirror=1.0)
        assert node.state(2) == READY, node.status(2).detail
        found = await node.traffic(0.4)
        assert found.versions == {"1": 20} and not found.errors
        assert node.status(2).failed >= 10
