"""Versions that end the process of the node that loads or tries them: it comes back, and leaves them alone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from nearmesh.packaging.build import build
from nearmesh.tls import write_private
from nearmesh.v1 import node_pb2 as pb
from tests.bad_versions import Kind, version
from tests.integration.mesh_processes import ControlPlane, Node, added, control_plane, node, question, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

READY, FAILED = pb.REPLICA_STATE_READY, pb.REPLICA_STATE_FAILED
KINDS: dict[str, Kind] = {"1": "good", "2": "aborting", "3": "dying"}
# Of what was published.
DIGESTS: dict[str, str] = {}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node with version 1; version 2, which ends the process that asks it anything, lies on its disk."""
    folder = tmp_path_factory.mktemp("crashes")
    async with control_plane(folder / "plane") as plane, node(plane, folder / "node", "node") as found:
        async with plane.operator() as operator:
            for number, kind in KINDS.items():
                made = build(version(folder / f"v{number}", number, kind, add=float(number)), folder / "cache")
                DIGESTS[number] = made.digest
                await operator.publish(made)
        await _deployed(plane, found, "2")
        await _deployed(plane, found, "1")
        yield found


async def _deployed(plane: ControlPlane, agent: Node, number: str) -> None:
    async with plane.operator() as operator:
        await operator.deploy("m", number)

        async def alone() -> bool:
            return [(r.version, r.status.state) for r in (await operator.model("m")).replicas] == [(number, READY)]

        await until(alone, what=f"version {number} alone is there")


async def test_a_version_that_ends_the_process_when_it_is_loaded_leaves_the_one_before_in_place(agent: Node) -> None:
    async with agent.plane.operator() as operator:
        await operator.deploy("m", "3")
    assert await agent.exit_code() == -signal.SIGABRT
    await agent.logged("Fatal Python error: Aborted")
    # As systemd, Kubernetes or `nearmesh dev` would.
    await agent.start()
    await agent.serves("m", "1", within_s=10)
    said = await agent.says("m", lambda r: r.status.digest == DIGESTS["3"] and r.status.state == FAILED)
    assert said.status.detail.startswith("the process ended while this version was loading")
    # It stays away until it is asked for anew.
    stub = agent.stub()
    assert [added(await stub.ModelInfer(question("m"), timeout=5)) for _ in range(10)] == [1.0] * 10
    await _deployed(agent.plane, agent, "1")


async def test_a_trial_that_ends_the_process_is_not_tried_again_and_the_standing_version_serves(agent: Node) -> None:
    """The control plane is away: what it had said last lies on the node's disk."""
    await agent.plane.kill()
    await agent.stop()
    kept = agent.data / "wanted.pb"
    state = pb.WantedState.FromString(kept.read_bytes())
    (standing,) = state.versions
    served = pb.WantedState.FromString((agent.data / "served.pb").read_bytes())
    bad = next(each for each in served.versions if each.version == "2")
    bad.trial.share = 1.0
    state.versions.append(bad)
    write_private(kept, state.SerializeToString())

    await agent.start()
    stub = agent.stub()
    with pytest.raises(grpc.aio.AioRpcError):
        async with asyncio.timeout(20):
            while True:
                assert added(await stub.ModelInfer(question("m"), timeout=5)) == 1.0, "until the trial is there"
    assert await agent.exit_code() == -signal.SIGABRT

    await agent.start()
    await agent.serves("m", "1", within_s=10)
    await agent.logged(f"version not tried digest={bad.digest}: the process ended while this version was on trial")
    stub = agent.stub()
    assert [added(await stub.ModelInfer(question("m"), timeout=5)) for _ in range(20)] == [1.0] * 20
    assert standing.version == "1"
