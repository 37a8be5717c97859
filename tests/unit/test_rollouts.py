"""Rollouts over the control plane's own parts and pretended nodes: what nodes are told, and how each rollout ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.rollouts.calls import RolloutCalls
from nearmesh_controlplane.rollouts.rollout import Limits, Plan
from nearmesh_controlplane.rollouts.scope import Scope

from nearmesh import rpc
from nearmesh.errors import AlreadyExists, InvalidInput, NotFound
from nearmesh.v1 import catalog_pb2 as pb
from tests.control_plane_state import digest_of
from tests.rollout_nodes import ME, MODEL, Behaviour, FakeNode, mesh, rollouts_of

CANARY = Plan(strategy="canary", steps=(0.05, 0.25, 0.5), step_s=10.0, mirror_share=0.25, limits=Limits(agreement=0.9))
ROLLING = Plan(strategy="rolling", step_s=2.0)
ALL = Plan(strategy="all")
PLANS = {"canary": CANARY, "rolling": ROLLING, "all": ALL}


@pytest.mark.parametrize("strategy", PLANS)
async def test_a_good_version_becomes_the_wanted_one(tmp_path: Path, strategy: str) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", PLANS[strategy])
        ended = await found.ends()
        assert (ended.state, ended.reason) == ("done", "")
        assert found.serving == dict.fromkeys("abc", "2")
        assert [d.version for d in found.plane.catalog.deployments(MODEL)] == ["2", "1"]
        assert [(e.action, e.actor) for e in await found.audit.latest(2)] == [
            ("rollout done", "control-plane/control-plane"),
            ("deploy", "operator/me"),
        ]
        # Nothing of the rollout is left in what nodes are told.
        (told,) = found.told("a").versions
        assert (told.version, told.HasField("trial"), told.rollout) == ("2", False, f"rollout {ended.id}")


async def test_a_canary_gets_its_share_and_no_more(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", CANARY)
        loading = found.told("a").versions
        assert [(v.version, v.trial.share, v.trial.mirror_share) for v in loading] == [("1", 0, 0), ("2", 0, 0)]
        assert loading[1].HasField("trial")
        assert [v.rollout for v in loading] == ["deployment 1", "rollout 1"]
        for step, share in enumerate(CANARY.steps):
            await found.until("steps", step)
            await found.pass_s(2)
            (standing, trial) = found.told("b").versions
            assert (standing.version, trial.version, trial.trial.share, trial.trial.mirror_share) == (
                "1",
                "2",
                share,
                0.25,
            )
            assert {node.largest_share for node in found.nodes.values()} == {share}
            assert set(found.serving.values()) == {"1"}
        await found.until("rolling", 2)
        assert (await found.ends()).state == "done"


async def test_a_step_lasts_for_its_time_and_until_it_had_its_requests(tmp_path: Path) -> None:
    quiet = [FakeNode(name, per_s=4.0) for name in "ab"]
    async with mesh(tmp_path, *quiet) as found:
        await found.start("2", Plan(strategy="canary", steps=(0.1,), step_s=10.0, step_requests=12))
        began_s = (await found.until("steps")).since_s
        # 0.8 a second: twelve take 15 s.
        rolling = await found.until("rolling")
        assert 14 <= rolling.since_s - began_s <= 18


async def test_a_step_without_requests_ends_after_three_times_its_time(tmp_path: Path) -> None:
    silent = [FakeNode(name, per_s=0.0) for name in "ab"]
    async with mesh(tmp_path, *silent) as found:
        await found.start("2", Plan(strategy="canary", steps=(0.5,), step_s=10.0))
        began_s = (await found.until("steps")).since_s
        assert (await found.until("rolling")).since_s - began_s == pytest.approx(30, abs=1)


async def test_rolling_changes_one_node_at_a_time_and_waits_until_it_serves(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", ROLLING)
        seen = []
        while found.rollouts.active(MODEL):
            await found.pass_s(1)
            # Two versions at a time on one node alone: the one that changes over.
            assert sum(len(node.versions) > 1 for node in found.nodes.values()) <= 1
            now = "".join(sorted(found.serving.values()))
            if now not in seen:
                seen.append(now)
        assert seen == ["111", "112", "122", "222"]


BAD = {
    "errors": (Behaviour(errors=0.05), "requests failed"),
    "wrong weights": (Behaviour(agrees=0.1), "compared answers agree"),
    "ten times slower": (Behaviour(ms=50.0), "95th percentile is 50.0 ms, and 5.0 ms"),
    "a failed warm-up": (Behaviour(refused="WARMUP_FAILED: 3, expected 4"), "refuses it: WARMUP_FAILED"),
    "a wrong digest": (Behaviour(refused="DIGEST_MISMATCH: fp32.onnx"), "refuses it: DIGEST_MISMATCH"),
    "a crash that is noticed": (Behaviour(refused="CRASHED: the process ended with it"), "refuses it: CRASHED"),
    "a crash": (Behaviour(crashes=True), "went away without a word"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_version_is_taken_back_within_ten_seconds_and_never_gets_more_than_its_share(
    tmp_path: Path, kind: str
) -> None:
    behaviour, words = BAD[kind]
    async with mesh(tmp_path, v2=behaviour) as found:
        await found.start("2", CANARY)
        for _ in range(60):
            await found.pass_s(1)
            if found.rollouts.get(MODEL).state != "running":
                break
        taken = found.rollouts.get(MODEL)
        assert words in taken.reason, taken
        assert (taken.phase, taken.step) in (("loading", 0), ("scouting", 0), ("steps", 0))
        assert sum(node.away for node in found.nodes.values()) <= 1, "one node goes first"
        assert max(node.largest_share for node in found.nodes.values()) <= 0.05
        for node in found.nodes.values():
            # Whoever starts a process anew.
            node.away = False
        ended = await found.ends(20)
        assert (ended.state, words in ended.reason) == ("failed", True)
        await found.pass_s(4)
        assert found.serving == dict.fromkeys("abc", "1")
        assert [d.version for d in found.plane.catalog.deployments(MODEL)] == ["1"], "it was never the wanted one"
        entry = (await found.audit.latest(1))[0]
        assert (entry.action, entry.subject) == ("rollout failed", "m@2")


@pytest.mark.parametrize("kind", ["errors", "ten times slower", "wrong weights"])
async def test_how_soon_a_breach_is_found(tmp_path: Path, kind: str) -> None:
    async with mesh(tmp_path, v2=BAD[kind][0]) as found:
        await found.start("2", CANARY)
        began_s = (await found.until("scouting")).since_s
        while found.rollouts.get(MODEL).state == "running":
            await found.pass_s(1)
        assert found.rollouts.get(MODEL).since_s - began_s <= 10


@pytest.mark.parametrize("strategy", ["rolling", "all"])
async def test_a_version_that_is_refused_is_taken_back_by_every_strategy(tmp_path: Path, strategy: str) -> None:
    async with mesh(tmp_path, v2=Behaviour(refused="WARMUP_FAILED: no")) as found:
        await found.start("2", PLANS[strategy])
        assert (await found.ends()).state == "failed"
        assert found.serving == dict.fromkeys("abc", "1")


async def test_rolling_is_taken_back_at_its_first_node(tmp_path: Path) -> None:
    async with mesh(tmp_path, v2=Behaviour(errors=0.5)) as found:
        await found.start("2", Plan(strategy="rolling", step_s=5.0))
        ended = await found.ends()
        assert (ended.state, {*ended.changed, *ended.changing}) == ("failed", {"a"})
        await found.pass_s(4)
        assert found.serving == dict.fromkeys("abc", "1")


async def test_a_version_that_errs_as_rarely_as_the_standing_one_stays(tmp_path: Path) -> None:
    async with mesh(tmp_path, v1=Behaviour(errors=0.02), v2=Behaviour(errors=0.02)) as found:
        await found.start("2", CANARY)
        assert (await found.ends()).state == "done"


@pytest.mark.parametrize(
    "detail",
    ["UNREACHABLE: the registry", "STORAGE: I/O error", "STORAGE_FULL: m@2 needs 6 MiB", "NOT_READY: no memory"],
)
async def test_a_node_that_cannot_have_it_for_now_is_waited_for_and_then_left_out(tmp_path: Path, detail: str) -> None:
    bad = FakeNode("c", site="site-c")
    async with mesh(tmp_path, FakeNode("a", site="site-a"), bad) as found:
        bad.behaviours = {digest_of(MODEL, "2"): Behaviour(refused=detail)}
        await found.start("2", Plan(strategy="rolling", step_s=1.0, node_limit_s=30.0))
        ended = await found.ends()
        assert ended.state == "done"
        assert detail in ended.left_out["c"] and "c: nothing moved on it for" in ended.reason
        assert found.serving == {"a": "2", "c": "1"}


async def test_a_stuck_node_does_not_hold_up_a_canary(tmp_path: Path) -> None:
    stuck = FakeNode("c", site="site-c")
    async with mesh(tmp_path, FakeNode("a", site="site-a"), stuck) as found:
        stuck.stuck = True
        await found.start("2", Plan(strategy="canary", steps=(0.1,), step_s=5.0, node_limit_s=20.0))
        await found.until("steps", within_s=40)
        ended = await found.ends()
        assert (ended.state, list(ended.left_out)) == ("done", ["c"])


async def test_a_node_that_goes_away_is_not_waited_for_and_gets_it_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", ROLLING)
        await found.pass_s(1)
        found.nodes["c"].away = True
        ended = await found.ends()
        assert (ended.state, sorted(ended.changed)) == ("done", ["a", "b"])
        found.nodes["c"].away = False
        await found.pass_s(5)
        assert found.serving == dict.fromkeys("abc", "2")


async def test_one_lost_node_of_several_is_no_verdict_on_a_canary(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", CANARY)
        await found.until("steps", 1)
        found.nodes["b"].away = True
        assert (await found.ends()).state == "done"


async def test_a_node_that_joins_in_the_middle_takes_part(tmp_path: Path) -> None:
    async with mesh(tmp_path) as found:
        await found.start("2", CANARY)
        await found.until("steps", 1)
        await found.join(FakeNode("d", site="site-d"))
        await found.pass_s(4)
        assert [(v.version, v.trial.share) for v in found.told("d").versions] == [("1", 0), ("2", 0.25)]
        await found.ends()
        assert found.serving == dict.fromkeys("abcd", "2")


async def test_a_first_deployment_goes_everywhere_at_once(tmp_path: Path) -> None:
    async with mesh(tmp_path, deployed="") as found:
        for strategy, plan in PLANS.items():
            await found.start("1", plan)
            if strategy == "canary":
                await found.pass_s(1)
            ended = await found.ends(20)
            assert (ended.state, found.serving) == ("done", dict.fromkeys("abc", "1"))
            break


# Operators


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


# Restarts


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


# Where


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
