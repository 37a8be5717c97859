"""Rollouts over the control plane's own parts and pretended nodes: what nodes are told, and how each rollout ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from nearmesh_controlplane.rollouts.rollout import Plan

from tests.control_plane_state import digest_of
from tests.rollout_nodes import CANARY, MODEL, PLANS, ROLLING, Behaviour, FakeNode, mesh


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
