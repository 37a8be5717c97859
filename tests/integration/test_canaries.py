"""A canary on a real node, of versions that are good and bad: what callers see, and how soon a bad one is gone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from nearmesh.packaging.build import build
from nearmesh.v1 import catalog_pb2 as catalog
from nearmesh.v1 import node_pb2 as pb
from tests.bad_versions import Kind, version
from tests.integration.mesh_processes import ControlPlane, Node, control_plane, node, until
from tests.steady_traffic import under_traffic

pytestmark = pytest.mark.asyncio(loop_scope="module")

READY = pb.REPLICA_STATE_READY
FAILED, DONE = catalog.ROLLOUT_STATE_FAILED, catalog.ROLLOUT_STATE_DONE
# By number: version 1 stands.
KINDS: dict[int, Kind] = {1: "good", 2: "raising", 3: "wrong", 4: "slow", 5: "hanging", 6: "dying", 7: "good"}
CHECK = '\n[online_check]\nagree = "close"\n'
SHARE = 0.2
QUICK = catalog.RolloutOptions(step_s=2.0, step_requests=20)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    folder = tmp_path_factory.mktemp("canaries")
    async with control_plane(folder / "plane") as plane, node(plane, folder / "node", "node") as found:
        async with plane.operator() as operator:
            for number, kind in KINDS.items():
                made = version(folder / f"v{number}", str(number), kind, add=1.0, more=CHECK)
                await operator.publish(build(made, folder / "cache"))
            await operator.deploy("m", "1")
        await found.says("m", lambda r: r.version == "1" and r.status.state == READY)
        yield found


async def _ended(plane: ControlPlane, number: int, within_s: float) -> catalog.Rollout:
    async with plane.operator() as operator:

        async def over() -> catalog.Rollout | None:
            found = await operator.rollout("m")
            return found if found.version == str(number) and found.state in (FAILED, DONE) else None

        return await until(over, within_s=within_s, what=f"the canary of version {number} has ended")


@pytest.mark.parametrize("number", [2, 3, 4, 5])
async def test_p4_a_bad_version_is_taken_back_within_ten_seconds_and_no_caller_sees_it(
    agent: Node, number: int
) -> None:
    async with under_traffic(agent.stub(), timeout_s=2.0) as traffic, agent.plane.operator() as operator:
        await asyncio.sleep(0.2)
        await operator.deploy("m", str(number), strategy="canary", steps=[SHARE], options=QUICK)
        found = await _ended(agent.plane, number, within_s=10)
        assert found.state == FAILED, found.reason
        # What was on its way has been answered by then.
        await asyncio.sleep(0.3)
        assert traffic.errors == []
        assert traffic.part(str(number)) <= SHARE
        before = traffic.versions[str(number)]
        await asyncio.sleep(0.5)
        assert traffic.versions[str(number)] == before and traffic.versions["1"] > 50


async def test_a_version_that_ends_the_process_is_taken_back_when_the_node_is_there_again(agent: Node) -> None:
    async with agent.plane.operator() as operator:
        await operator.deploy("m", "6", strategy="canary", steps=[SHARE], options=QUICK)
    assert await agent.exit_code() == -signal.SIGABRT
    # As systemd, Kubernetes or `nearmesh dev` would.
    await agent.start()
    await agent.serves("m", "1", within_s=10)
    found = await _ended(agent.plane, 6, within_s=10)
    assert found.state == FAILED and "the process ended while this version was loading" in found.reason
    async with under_traffic(agent.stub(), timeout_s=2.0) as traffic:
        await asyncio.sleep(1.0)
        assert traffic.errors == [] and set(traffic.versions) == {"1"}


async def test_p4_a_good_version_comes_by_its_shares_and_stays_and_no_caller_notices(agent: Node) -> None:
    async with under_traffic(agent.stub(), timeout_s=2.0) as traffic, agent.plane.operator() as operator:
        await operator.deploy("m", "7", strategy="canary", steps=[SHARE, 0.5], options=QUICK)
        found = await _ended(agent.plane, 7, within_s=40)
        assert found.state == DONE, found.reason
        before = traffic.versions["1"]
        await asyncio.sleep(1.0)
        assert traffic.errors == []
        assert traffic.versions["1"] == before and traffic.versions["7"] > 50
    status = (await agent.says("m", lambda r: r.version == "7" and r.status.state == READY)).status
    assert status.compared == status.agreed > 0 and status.failed == 0
