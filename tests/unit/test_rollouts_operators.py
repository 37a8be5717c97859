"""Rollouts that operators hold, take back or ask for twice, and control planes that restart in the middle of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.rollouts.calls import RolloutCalls
from nearmesh_controlplane.rollouts.scope import Scope

from nearmesh import rpc
from nearmesh.errors import AlreadyExists, InvalidInput, NotFound
from nearmesh.v1 import catalog_pb2 as pb
from tests.control_plane_state import digest_of
from tests.rollout_nodes import ALL, CANARY, ME, MODEL, PLANS, ROLLING, Behaviour, mesh, rollouts_of


@pytest.mark.parametrize("strategy", ["canary", "rolling"])
async def test_pause_holds_and_resume_goes_on(tmp_path: Path, strategy: str) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", PLANS[strategy])
        await found.until("steps" if strategy == "canary" else "rolling")
        await found.pass_s(1)
        await found.rollouts.change(MODEL, "pause", ME)
        await found.pass_s(5)
        held = found.rollouts.get(MODEL)
        told = found.told("c")
        await found.pass_s(100)
        assert (found.rollouts.get(MODEL), found.told("c")) == (held, told)
        assert held.state == "paused"
        await found.rollouts.change(MODEL, "resume", ME)
        assert (await found.ends()).state == "done"


async def test_a_paused_rollout_is_watched_all_the_same(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", CANARY)
        await found.until("steps")
        await found.rollouts.change(MODEL, "pause", ME)
        for node in found.nodes.values():
            node.behaviours = {digest_of(MODEL, "2"): Behaviour(errors=0.3)}
        assert (await found.ends(30)).state == "failed"


@pytest.mark.parametrize(
    ("phase", "step"), [("loading", 0), ("scouting", 0), ("steps", 0), ("steps", 2), ("rolling", 2)]
)
async def test_abort_goes_back_from_every_phase(tmp_path: Path, phase: str, step: int) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", CANARY)
        await found.until(phase, step)
        if phase == "rolling":
            await found.pass_s(2)
        await found.rollouts.change(MODEL, "abort", ME)
        assert [v.version for v in found.told("a").versions] == ["1"], "at once, for all of them"
        ended = await found.ends(10)
        assert (ended.state, ended.reason) == ("aborted", "aborted by operator/me")
        await found.pass_s(3)
        assert found.serving == dict.fromkeys("abc", "1")
        with pytest.raises(NotFound, match="no rollout of 'm' runs"):
            await found.rollouts.change(MODEL, "abort", ME)


async def test_one_rollout_of_a_model_at_a_time(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", CANARY)
        with pytest.raises(AlreadyExists, match=r"a rollout of m@2 is running.*nearmesh model rollout abort m"):
            await found.start("1", ROLLING)
        await found.rollouts.change(MODEL, "pause", ME)
        with pytest.raises(AlreadyExists, match="is paused"):
            await found.start("1", ROLLING)
        await found.rollouts.change(MODEL, "abort", ME)
        with pytest.raises(InvalidInput, match="is rolling back, so it cannot be resumed"):
            await found.rollouts.change(MODEL, "resume", ME)
        await found.ends()
        await found.start("2", ALL)


@pytest.mark.parametrize("again", [1, 3])
@pytest.mark.parametrize("strategy", ["canary", "rolling"])
async def test_a_control_plane_that_restarts_in_every_phase_goes_on(tmp_path: Path, strategy: str, again: int) -> None:
    """Every so many seconds everything in memory is forgotten."""
    async with mesh(tmp_path) as found:
        await found.start("2", PLANS[strategy])
        phases = set()
        for _ in range(400):
            await found.pass_s(again)
            found.rollouts = rollouts_of(found.plane)
            await found.rollouts.restore()
            await found.plane.catalog.restore()
            now = found.rollouts.get(MODEL)
            phases.add(now.phase)
            if now.ended:
                break
        assert (now.state, found.serving) == ("done", dict.fromkeys("abc", "2"))
        every = {"loading", "scouting", "steps", "rolling"} if strategy == "canary" else {"rolling"}
        assert phases == every or again > 1, phases
        assert [d.version for d in found.plane.catalog.deployments(MODEL)] == ["2", "1"]


async def test_a_bad_version_is_taken_back_by_the_control_plane_that_comes_after(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", CANARY)
        await found.until("steps", 1)
        for node in found.nodes.values():
            node.behaviours = {digest_of(MODEL, "2"): Behaviour(errors=0.5)}
        found.rollouts = rollouts_of(found.plane)
        await found.rollouts.restore()
        assert (await found.ends(30)).state == "failed"
        assert found.serving == dict.fromkeys("abc", "1")


async def test_a_rollout_that_another_control_plane_began_just_now_is_known_to_who_deploys_or_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh(tmp_path) as found:
        plane = found.plane
        other = rollouts_of(plane)
        await other.restore()
        calls = RolloutCalls(other, plane.catalog, plane.registry, Audit(plane.db), plane.changes, lambda version: 0.0)
        # As where both write to one PostgreSQL; here it is the one file of both.
        alone = plane.db._transaction

        def transaction(change: Callable[..., object], *args: object) -> object:
            with monkeypatch.context() as patch:
                patch.setattr(plane.db, "shared", False)
                return alone(change, *args)

        monkeypatch.setattr(plane.db, "_transaction", transaction)
        monkeypatch.setattr(plane.db, "shared", True)
        rpc._caller.set(ME)
        begun = await found.rollouts.start(plane.catalog.version(MODEL, "2"), Scope(), ALL, ME)
        assert other.active(MODEL) is None, "nobody has told it yet"
        with pytest.raises(AlreadyExists, match="a rollout of m@2 is running"):
            await calls.deploy(pb.DeployRequest(model=MODEL, version="1"))
        back = await calls.rollback(MODEL)
        assert (back.version, back.rollout) == ("1", begun.id)
        assert other.get(MODEL).state == "rolling back"


async def test_who_does_not_lead_steps_nothing(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        begun = await found.start("2", ALL)
        found.rollouts.leads = lambda: False
        await found.pass_s(20)
        assert found.rollouts.get(MODEL) == begun
        found.rollouts.leads = lambda: True
        assert (await found.ends()).state == "done"


async def test_a_word_of_an_operator_is_not_undone_by_a_step(tmp_path: Path) -> None:
    """Two control planes over one database: one that leads, one that an operator speaks to."""
    async with mesh(tmp_path) as found:
        await found.start("2", CANARY)
        await found.until("steps", 1)
        other = rollouts_of(found.plane)
        await other.restore()
        await other.change(MODEL, "abort", ME)
        # The leader has not heard of it, and would go on to the next step.
        assert found.rollouts.get(MODEL).state == "running"
        await found.pass_s(12)
        assert found.rollouts.get(MODEL).state == "aborted"
