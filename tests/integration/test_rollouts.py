"""Rollouts of a control plane that is a process, with pretended nodes over real sessions: killed in every phase,
changed by operators, watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nearmesh.errors import AlreadyExists, InvalidInput, NotFound
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.v1.node_pb2 import REPLICA_STATE_READY as READY
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import ControlPlane, control_plane, pair, until
from tests.integration.rollout_sessions import comes_to, sessions
from tests.postgres import Postgres
from tests.rollout_nodes import MODEL, Behaviour, FakeNode

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOADING, STEPS, ROLLING = pb.ROLLOUT_PHASE_LOADING, pb.ROLLOUT_PHASE_STEPS, pb.ROLLOUT_PHASE_ROLLING
PAUSED, BACK, DONE = pb.ROLLOUT_STATE_PAUSED, pb.ROLLOUT_STATE_ROLLING_BACK, pb.ROLLOUT_STATE_DONE
ABORTED, FAILED = pb.ROLLOUT_STATE_ABORTED, pb.ROLLOUT_STATE_FAILED
QUICK = pb.RolloutOptions(step_s=1.0, step_requests=5)
# Between the phases that these tests are about.
PLANE_TIMES = {
    "nearmesh_controlplane.rollouts.machine.WATCHED_S": 0.5,
    "nearmesh_controlplane.rollouts.machine.AFTER_CANARY_S": 0.5,
    "nearmesh_controlplane.rollouts.rollouts.LOOK_EVERY_S": 0.1,
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("control-plane"), times=PLANE_TIMES) as found:
        async with found.operator() as operator:
            for version in "12":
                await operator.publish(adding(found.data.parent / version, MODEL, version, float(version)))
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, FakeNode]]:
    found = {name: FakeNode(name) for name in "abc"}
    async with sessions(plane, tmp_path_factory.mktemp("nodes"), list(found.values())):
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def nodes(plane: ControlPlane, running: dict[str, FakeNode]) -> AsyncIterator[dict[str, FakeNode]]:
    """All of them serve version 1, as good as version 2."""
    for node in running.values():
        node.behaviours, node.stuck = {}, False
    async with plane.operator() as operator:
        await operator.deploy(MODEL, "1")
    await serve(plane, running, "1")
    yield running


async def serve(plane: ControlPlane, nodes: dict[str, FakeNode], version: str) -> None:
    digest = await digest_of(plane, version)

    async def all_do() -> bool:
        return all(node.serving == digest for node in nodes.values())

    await until(all_do, what=f"all serve {version}")


async def digest_of(plane: ControlPlane, version: str) -> str:
    async with plane.operator() as operator:
        return next(v.digest for v in (await operator.model(MODEL)).versions if v.version == version)


async def begin(plane: ControlPlane, strategy: str = "canary") -> None:
    async with plane.operator() as operator:
        steps = (0.1, 0.5) if strategy == "canary" else ()
        await operator.deploy(MODEL, "2", strategy=strategy, steps=steps, options=QUICK)


async def killed(plane: ControlPlane) -> None:
    await plane.kill()
    await plane.start()


async def test_p3_a_canary_goes_on_after_a_kill_in_each_of_its_phases(
    plane: ControlPlane, nodes: dict[str, FakeNode]
) -> None:
    nodes["c"].stuck = True
    await begin(plane)
    await comes_to(plane, MODEL, phase=LOADING)
    await killed(plane)
    nodes["c"].stuck = False
    await comes_to(plane, MODEL, phase=STEPS)
    await killed(plane)
    await comes_to(plane, MODEL, phase=STEPS)
    for node in nodes.values():
        # Whoever changes over now takes its time.
        node.stuck = True
    await comes_to(plane, MODEL, phase=ROLLING)
    await killed(plane)
    for node in nodes.values():
        node.stuck = False
    done = await comes_to(plane, MODEL, state=DONE)
    assert sorted(node.node for node in done.nodes if node.changed_over) == ["a", "b", "c"]
    assert all(node.site and node.live and node.state == READY for node in done.nodes), done.nodes
    await serve(plane, nodes, "2")
    assert max(node.largest_share for node in nodes.values()) == 0.5
    async with plane.operator() as operator:
        assert [d.version for d in (await operator.model(MODEL)).deployments][:2] == ["2", "1"]


async def test_p3_what_was_paused_or_taken_back_stays_so_after_a_kill(
    plane: ControlPlane, nodes: dict[str, FakeNode]
) -> None:
    await begin(plane)
    await comes_to(plane, MODEL, phase=STEPS)
    async with plane.operator() as operator:
        await operator.change_rollout(MODEL, "pause")
    await killed(plane)
    held = await comes_to(plane, MODEL, state=PAUSED)
    async with plane.operator() as operator:
        assert (await operator.change_rollout(MODEL, "abort")).state == BACK
    await killed(plane)
    ended = await comes_to(plane, MODEL, state=ABORTED)
    assert (ended.id, ended.reason) == (held.id, "aborted by operator/tester")
    await serve(plane, nodes, "1")


async def test_a_bad_version_is_taken_back_and_everybody_hears_why(
    plane: ControlPlane, nodes: dict[str, FakeNode]
) -> None:
    for node in nodes.values():
        node.behaviours = {await digest_of(plane, "2"): Behaviour(errors=0.5)}
    await begin(plane)
    async with plane.operator() as operator, asyncio.timeout(30):
        heard = [found async for found in operator.watch_rollout(MODEL)]
        assert heard[-1].state == FAILED and "requests failed" in heard[-1].reason
        assert any(node.failed for found in heard for node in found.nodes)
        assert heard[-1] == await operator.rollout(MODEL, heard[-1].id) == (await operator.rollouts(MODEL))[0]
        entry = next(e for e in await operator.audit() if e.action == "rollout failed")
        assert (entry.subject, entry.detail) == (f"{MODEL}@2", heard[-1].reason)
    await serve(plane, nodes, "1")


async def test_rollback_while_a_rollout_runs_is_there_in_seconds(
    plane: ControlPlane, nodes: dict[str, FakeNode]
) -> None:
    await begin(plane, "rolling")
    async with plane.operator() as operator:
        first = next(iter(nodes.values()))
        digest = await digest_of(plane, "2")

        async def one_has_it() -> bool:
            return digest in {node.serving for node in nodes.values()} or first.serving == digest

        await until(one_has_it)
        with pytest.raises(AlreadyExists, match="a rollout of m@2 is running"):
            await operator.deploy(MODEL, "1")
        back = await operator.rollback(MODEL)
        assert (back.version, back.rollout > 0) == ("1", True)
    async with asyncio.timeout(5):
        await serve(plane, nodes, "1")
    ended = await comes_to(plane, MODEL, state=ABORTED)
    assert not any(node.changed_over for node in ended.nodes), "they went back"


async def test_what_is_refused(plane: ControlPlane, nodes: dict[str, FakeNode]) -> None:
    async with plane.operator() as operator:
        for words, call in (
            ("no site 'nowhere'", operator.deploy(MODEL, "2", ["nowhere"], strategy="rolling")),
            ("no region 'mars'", operator.deploy(MODEL, "2", regions=["mars"], strategy="rolling")),
            ("9 replicas of 'm' are wanted, and 3 nodes", operator.deploy(MODEL, "2", replicas=9)),
            ("no rollout of 'm' runs", operator.change_rollout(MODEL, "abort")),
            ("no rollout 999 of 'm'", operator.rollout(MODEL, 999)),
            ("no model 'x'", operator.rollout("x")),
        ):
            with pytest.raises(NotFound, match=words):
                await call
        for words, call in (
            ("steps are a canary's", operator.deploy(MODEL, "2", strategy="rolling", steps=[0.5])),
            ("name its strategy", operator.deploy(MODEL, "2", steps=[0.5])),
            ("is from 0 to below 1", operator.deploy(MODEL, "2", strategy="canary", steps=[1.5])),
            (
                "step_s is nan",
                operator.deploy(MODEL, "2", strategy="all", options=pb.RolloutOptions(step_s=float("nan"))),
            ),
            (
                "no \\[online_check\\]",
                operator.deploy(MODEL, "2", strategy="canary", options=pb.RolloutOptions(smallest_agreement=0.5)),
            ),
        ):
            with pytest.raises(InvalidInput, match=words):
                await call


@pytest.mark.timeout(120)
async def test_p3_a_rollout_goes_on_with_the_next_leader(database_server: Postgres, tmp_path: Path) -> None:
    nodes = {name: FakeNode(name) for name in "ab"}
    async with pair(tmp_path, database_server.new_database(), times=PLANE_TIMES) as both:
        leader = await both.leader()
        other = both.other(leader)
        async with leader.operator() as operator:
            for version in "12":
                await operator.publish(adding(tmp_path / version, MODEL, version, float(version)))
        addresses = [plane.mesh for plane in both.planes.values()]
        async with sessions(leader, tmp_path / "nodes", list(nodes.values()), addresses):
            async with leader.operator() as operator:
                await operator.deploy(MODEL, "1")
            await serve(leader, nodes, "1")
            # Whoever is asked writes it down; the leader steps.
            await begin(other)
            await comes_to(leader, MODEL, phase=STEPS)
            await leader.kill()
            await comes_to(other, MODEL, state=DONE, within_s=60)
            await serve(other, nodes, "2")
            async with other.operator() as operator:
                assert [d.version for d in (await operator.model(MODEL)).deployments] == ["2", "1"]
