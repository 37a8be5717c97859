"""What happens to model versions on nodes: swapped under a caller without one error, refused when they are wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from nearmesh.packaging.build import Artifact
from nearmesh.rpc import from_rpc_error
from nearmesh.v1 import node_pb2
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import (
    REGION,
    Caller,
    ControlPlane,
    Node,
    calling,
    control_plane,
    node,
    question,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAMAGES = ("a changed byte", "a missing file", "a shortened file", "a damaged manifest")
READY, FAILED = node_pb2.REPLICA_STATE_READY, node_pb2.REPLICA_STATE_FAILED


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agent(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with node(plane, tmp_path_factory.mktemp("agent"), "here") as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def other(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with node(plane, tmp_path_factory.mktemp("other"), "there") as found:
        yield found


async def deployed(plane: ControlPlane, artifact: Artifact, sites: tuple[str, ...] = ()) -> None:
    async with plane.operator() as operator:
        await operator.publish(artifact)
        await operator.deploy(artifact.manifest.model, artifact.manifest.version, sites)


def flawless(caller: Caller, *adds: tuple[str, float]) -> bool:
    """Whether every call was answered, and by one of these versions with what it adds."""
    assert caller.errors == []
    return set(caller.answers) <= set(adds)


def folder_of(agent: Node, digest: str) -> Path:
    """The version's folder in the node's store."""
    return agent.data / "models" / "versions" / digest.removeprefix("sha256:")


async def test_p4_deploy_and_rollback_fail_no_request(plane: ControlPlane, agent: Node, tmp_path: Path) -> None:
    await deployed(plane, adding(tmp_path / "1", "swapped", "1", 1.0))
    await agent.serves("swapped", "1")
    async with calling(agent, "swapped") as caller, plane.operator() as operator:
        await caller.hears("1")
        await deployed(plane, adding(tmp_path / "2", "swapped", "2", 2.0))
        await caller.hears("2")
        assert (await operator.rollback("swapped")).version == "1"
        await caller.hears("1")
        await operator.deploy("swapped", "2")
        await caller.hears("2")
        await caller.goes_on()
        assert flawless(caller, ("1", 1.0), ("2", 2.0))
        # The old version is gone from the node and from what the control plane says about it.
        await agent.says("swapped", lambda r: r.version == "2" and r.status.state == READY)

        async def alone() -> bool:
            return [(r.node, r.version) for r in (await operator.model("swapped")).replicas] == [("here", "2")]

        await until(alone)


async def test_p5_a_failed_warm_up_never_serves_and_the_old_version_goes_on(
    plane: ControlPlane, agent: Node, tmp_path: Path
) -> None:
    await deployed(plane, adding(tmp_path / "1", "proven", "1", 1.0))
    await agent.serves("proven", "1")
    async with calling(agent, "proven") as caller:
        await deployed(plane, adding(tmp_path / "2", "proven", "2", 2.0, expected=3.0))
        replica = await agent.says("proven", lambda r: r.status.state == FAILED)
        assert replica.version == "2"
        assert replica.status.detail.startswith("WARMUP_FAILED: warmup.npz: output 'y' differs")
        await caller.goes_on()
        assert flawless(caller, ("1", 1.0))
        async with plane.operator() as operator:
            await operator.rollback("proven")
            await agent.says("proven", lambda r: r.version == "1" and r.status.state == READY)
            await deployed(plane, adding(tmp_path / "3", "proven", "3", 3.0))
        await caller.hears("3")
        assert flawless(caller, ("1", 1.0), ("3", 3.0))


async def test_p5_the_old_version_comes_back_after_a_restart_while_the_wanted_one_is_wrong(
    plane: ControlPlane, agent: Node, tmp_path: Path
) -> None:
    await deployed(plane, adding(tmp_path / "1", "kept", "1", 1.0))
    await agent.serves("kept", "1")
    await deployed(plane, adding(tmp_path / "2", "kept", "2", 2.0, expected=3.0))
    await agent.says("kept", lambda r: r.status.state == FAILED)
    await agent.kill()
    await agent.start()
    await agent.serves("kept", "1")
    replica = await agent.says("kept", lambda r: r.status.state == FAILED)
    assert replica.version == "2"
    await agent.says("kept", lambda r: r.version == "1" and r.status.state == READY)


async def test_p5_a_blob_that_rotted_in_the_registry_never_serves(
    plane: ControlPlane, agent: Node, tmp_path: Path
) -> None:
    await deployed(plane, adding(tmp_path / "1", "rotten", "1", 1.0))
    await agent.serves("rotten", "1")
    second = adding(tmp_path / "2", "rotten", "2", 2.0)
    weights = next(file for file in second.manifest.files if file.title == "fp32.onnx")
    async with calling(agent, "rotten") as caller, plane.operator() as operator:
        await operator.publish(second)
        blob = plane.data / "oci" / "blobs" / "sha256" / weights.digest.removeprefix("sha256:")
        sound = blob.read_bytes()
        blob.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        await operator.deploy("rotten", "2")
        replica = await agent.says("rotten", lambda r: r.status.state == FAILED)
        assert replica.version == "2"
        assert replica.status.detail.startswith(f"DIGEST_MISMATCH: fp32.onnx is {weights.digest}")
        await caller.goes_on()
        assert flawless(caller, ("1", 1.0))
        assert not folder_of(agent, second.digest).exists()
        # Once the registry has the right bytes again, so has the node, by itself.
        blob.write_bytes(sound)
        await caller.hears("2")
        assert flawless(caller, ("1", 1.0), ("2", 2.0))


async def test_p5_versions_damaged_on_the_nodes_disk_are_noticed_and_pulled_again(
    plane: ControlPlane, agent: Node, tmp_path: Path
) -> None:
    """A model for each kind of damage, all of them over one restart."""
    damaged: dict[str, Artifact] = {}
    for adds, damage in enumerate(DAMAGES, 1):
        # What several versions have in common lies on the disk once.
        name = f"damaged-{adds}"
        damaged[damage] = adding(tmp_path / name, name, "1", float(adds))
        await deployed(plane, damaged[damage])
    for artifact in damaged.values():
        await agent.serves(artifact.manifest.model, "1")
    await agent.kill()
    sound: dict[str, bytes] = {}
    for damage, artifact in damaged.items():
        path = _path_of(agent, artifact, damage)
        sound[damage] = path.read_bytes()
        if damage == "a missing file":
            path.unlink()
        elif damage == "a shortened file":
            path.write_bytes(sound[damage][:-10])
        else:
            path.write_bytes(sound[damage][:-1] + bytes([sound[damage][-1] ^ 1]))
    before = len(agent.log)
    await agent.start()
    for artifact in damaged.values():
        await agent.serves(artifact.manifest.model, "1")
    said = agent.log[before:]
    for damage, artifact in damaged.items():
        assert _path_of(agent, artifact, damage).read_bytes() == sound[damage], damage
        if damage != "a missing file":
            assert f"of {artifact.digest} is damaged" in said, damage


def _path_of(agent: Node, artifact: Artifact, damage: str) -> Path:
    return folder_of(agent, artifact.digest) / ("manifest.json" if "manifest" in damage else "fp32.onnx")


async def test_a_deployment_to_some_sites_leaves_the_others_alone(
    plane: ControlPlane, agent: Node, other: Node, tmp_path: Path
) -> None:
    await deployed(plane, adding(tmp_path / "1", "local", "1", 1.0))
    await deployed(plane, adding(tmp_path / "2", "local", "2", 2.0), ("site-there",))
    await other.serves("local", "2")
    await agent.serves("local", "1")
    await deployed(plane, adding(tmp_path / "elsewhere", "elsewhere", "1", 1.0), ("site-there",))
    await other.serves("elsewhere", "1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.stub().ModelInfer(question("elsewhere"))
    assert from_rpc_error(caught.value).reason == "NOT_FOUND"
    async with plane.operator() as operator:
        assert [d.sites for d in (await operator.model("local")).deployments] == [["site-there"], []]
        assert (await operator.rollback("local")).sites == ["site-there"]
    await other.serves("local", "1")


async def test_a_cordoned_node_keeps_what_it_has_also_over_a_restart(
    plane: ControlPlane, agent: Node, other: Node, tmp_path: Path
) -> None:
    await deployed(plane, adding(tmp_path / "1", "cordoned", "1", 1.0))
    await other.serves("cordoned", "1")
    async with plane.operator() as operator:
        assert (await operator.cordon("there")).cordoned
        await deployed(plane, adding(tmp_path / "2", "cordoned", "2", 2.0))
        await deployed(plane, adding(tmp_path / "new", "brand-new", "1", 1.0))
        await agent.serves("cordoned", "2")
        await agent.serves("brand-new", "1")
        await other.serves("cordoned", "1")
        await other.kill()
        await other.start()
        await other.live()
        await other.serves("cordoned", "1")
        await other.says("cordoned", lambda r: r.version == "1" and r.status.state == READY and r.live)
        assert "there" not in {r.node for r in (await operator.model("brand-new")).replicas}
        assert not (await operator.cordon("there", undo=True)).cordoned
    await other.serves("cordoned", "2")
    await other.serves("brand-new", "1")


async def test_a_drained_node_leaves_the_routes_then_refuses_and_comes_back_whole(
    plane: ControlPlane, agent: Node, other: Node, tmp_path: Path
) -> None:
    await deployed(plane, adding(tmp_path, "drained", "1", 1.0))
    for each in (agent, other):
        await each.serves("drained", "1")
        await each.says("drained", lambda r: r.status.state == READY)
    async with plane.operator() as operator, calling(other, "drained") as caller:
        assert (await operator.drain("there")).draining
        ranked = {c.node: c for c in (await operator.explain("drained", REGION)).candidates}
        assert ranked["here"].ready and not ranked["there"].ready
        assert "drained" in ranked["there"].why
        # Who has not heard is answered for a moment, and then sent elsewhere.
        await caller.goes_on()
        assert not caller.errors
        await other.logged("drained: new work is refused from now on")

        async def refused() -> bool:
            return bool(caller.errors)

        await until(refused)
        assert set(caller.errors) == {"UNAVAILABLE: node 'there' is leaving; another node may serve"}

        async def drained() -> bool:
            return next(n.drained for n in await operator.nodes() if n.id == "there")

        await until(drained)
        assert not (await operator.drain("there", undo=True)).draining
        ranked = {c.node: c for c in (await operator.explain("drained", REGION)).candidates}
        assert ranked["there"].ready
        await caller.hears("1")
        await caller.goes_on()
        seen = len(caller.errors)
        await caller.goes_on()
        assert len(caller.errors) == seen and set(caller.answers) == {("1", 1.0)}
