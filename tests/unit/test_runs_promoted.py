"""Federated runs over the control plane's own parts, with a pretended engine: the gate, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from nearmesh_controlplane.rollouts.rollout import Plan
from nearmesh_controlplane.rollouts.scope import Scope
from nearmesh_controlplane.runs.run import Check

from nearmesh.errors import InvalidInput
from nearmesh.v1 import run_pb2 as pb
from tests.control_plane_state import digest_of
from tests.pretended_runs import ME, MODEL, QUICK, REFUSED, ROLLED_BACK, SERVED, TRAINED, World, plane
from tests.rollout_nodes import Behaviour


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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
