"""P2 with real processes: the control plane is killed, and who starts after that finds its way all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.errors import Unsupported
from nearmesh.rpc import from_rpc_error
from nearmesh.snapshot import opened, sealed
from nearmesh.snapshot.keeper import SNAPSHOT_FILE
from nearmesh.v1 import route_pb2, route_pb2_grpc
from tests.integration.adding_model import adding
from tests.integration.island_mesh import (
    MODEL,
    IslandMesh,
    island_mesh,
    sdk_client,
    stock_client,
    xds_client,
)
from tests.integration.mesh_processes import MESH, REGION, until
from tests.snapshots import snapshot

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[IslandMesh]:
    async with island_mesh(tmp_path_factory.mktemp("islands")) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(running: IslandMesh) -> IslandMesh:
    """Everything is up, whatever the test before this one killed."""
    await running.up()
    return running


async def other(mesh: IslandMesh, node: str) -> str:
    """Kills the node and names the one that is left."""
    await mesh.nodes[node].kill()
    return next(name for name in mesh.nodes if name != node)


async def test_p2_a_fresh_sdk_finds_its_way_by_nodes_a_restarted_one_by_what_it_kept_and_both_fail_over(
    mesh: IslandMesh, tmp_path: Path
) -> None:
    # It knows no node by its bootstrap.
    alone = mesh.bootstrap("alone", fallbacks=False)
    async with sdk_client(tmp_path / "alone", alone) as client:
        await client.node()
        await mesh.keeps(mesh.state_file(tmp_path / "alone" / "state"))
    await mesh.plane.kill()
    async with (
        sdk_client(tmp_path, mesh.bootstrap("sdk")) as client,
        sdk_client(tmp_path / "alone", alone) as restarted,
    ):
        assert await restarted.node() in mesh.nodes
        left = await other(mesh, await client.node())
        assert [await client.node() for _ in range(5)] == [left] * 5
        assert "does not answer; going by its routes of" in client.log
        assert await restarted.node() == left
        await mesh.keeps(mesh.state_file(tmp_path / "state"))
        await mesh.up()
        await mesh.deploy(adding(tmp_path / "new", "after-sdk", "1", 2.0))
        await client.knows("after-sdk")


async def test_p2_a_fresh_xds_client_finds_its_way_by_nodes_and_fails_over_and_goes_back(
    mesh: IslandMesh, tmp_path: Path
) -> None:
    await mesh.plane.kill()
    async with xds_client(tmp_path, mesh.bootstrap("xds")) as client:
        left = await other(mesh, await client.node(timeout_s=20))
        assert [await client.node() for _ in range(5)] == [left] * 5
        unknown = await client.call("nothing-like-it", timeout_s=10)
        assert unknown["error"] == "NOT_FOUND"
        streams = mesh.plane.log.count("xds stream opened peer=client/tester")
        await mesh.up()
        await mesh.deploy(adding(tmp_path / "new", "after-xds", "1", 2.0))
        await client.knows("after-xds")
        assert mesh.plane.log.count("xds stream opened peer=client/tester") > streams


async def test_p2_a_restarted_gateway_comes_back_by_a_node_and_returns_to_the_control_plane(
    mesh: IslandMesh, tmp_path: Path
) -> None:
    async with stock_client(mesh.gateway.address) as client:
        await client.answers()
        await mesh.plane.kill()
        await mesh.gateway.kill()
        await mesh.gateway.start()
        await client.answers()
        await mesh.nodes["one"].kill()
        for _ in range(5):
            assert await client.adds() == 1.0
        streams = mesh.plane.log.count("xds stream opened peer=gateway/door")
        await mesh.up()
        await mesh.deploy(adding(tmp_path / "new", "after-gateway", "1", 2.0))
        await client.answers("after-gateway", within_s=60)

        async def returned() -> bool:
            return mesh.plane.log.count("xds stream opened peer=gateway/door") > streams

        await until(returned, within_s=60)
        assert await client.adds() == 1.0


async def test_p2_a_restarted_node_serves_and_shows_the_way(mesh: IslandMesh, tmp_path: Path) -> None:
    await mesh.plane.kill()
    for agent in mesh.nodes.values():
        await agent.kill()
        await agent.start()
        await agent.serves(MODEL, "1")
    async with (
        sdk_client(tmp_path / "sdk", mesh.bootstrap("sdk")) as sdk,
        xds_client(tmp_path / "xds", mesh.bootstrap("xds")) as xds,
    ):
        assert {await sdk.node(), await xds.node(timeout_s=20)} <= set(mesh.nodes)


async def test_p2_a_forged_snapshot_moves_no_client_and_no_node_and_an_expired_one_is_said_so(
    mesh: IslandMesh, tmp_path: Path
) -> None:
    agent, stranger = mesh.nodes["one"], Authority.open(MESH, tmp_path / "stranger")
    path, state = agent.data / SNAPSHOT_FILE, mesh.state_file(tmp_path / "state")
    state.parent.mkdir(parents=True)
    kept = route_pb2.SignedSnapshot.FromString(path.read_bytes())
    old = opened(kept, mesh.plane.authority.ca_pem, now_s=time.time())
    # One that names nodes would have led to them, and to a newer one.
    old.ClearField("tables")
    old.issued_at_s, old.expires_at_s = time.time() - 10 * 3600, time.time() - 2 * 3600
    await mesh.plane.kill()
    alone = mesh.bootstrap("alone", fallbacks=False)
    for signed, words in (
        (sealed(old, mesh.plane.authority.key), "expired 2.0 h ago"),
        (sealed(old, stranger.key), "there is no snapshot"),
    ):
        state.write_bytes(signed.SerializeToString())
        async with sdk_client(tmp_path, alone) as client:
            answer = await client.call(timeout_s=1.5)
            assert answer["error"] == "UNREACHABLE"
            assert words in answer["detail"]
    assert "counts as none: the snapshot was not signed by this mesh" in client.log

    await agent.kill()
    forged = sealed(snapshot(mesh=MESH, issued_at_s=time.time(), expires_at_s=time.time() + 3600), stranger.key)
    path.write_bytes(forged.SerializeToString())
    await agent.start()
    await agent.logged("counts as none: the snapshot was not signed by this mesh")
    # It does not know its neighbour without a snapshot; the control plane brings the mesh back.
    routes = route_pb2_grpc.RouteServiceStub(agent.channel(mesh.plane.token()))
    with pytest.raises(grpc.aio.AioRpcError, match="no snapshot of the mesh's routes here yet"):
        await routes.Resolve(route_pb2.ResolveRequest(model=MODEL, region=REGION))
    await mesh.plane.start()
    await mesh.keeps(path)


async def test_a_node_answers_for_routes_as_the_control_plane_would(mesh: IslandMesh) -> None:
    agent = mesh.nodes["one"]
    routes = route_pb2_grpc.RouteServiceStub(agent.channel(mesh.plane.token()))
    request = route_pb2.ResolveRequest(model=MODEL, region=REGION)
    found = await routes.Resolve(request)
    assert {c.node: c.address for c in found.candidates} == {a.name: a.public for a in mesh.nodes.values()}
    assert found.expires_at_s > time.time() + 3600
    watched = await anext(aiter(routes.Watch(request)))
    assert [c.node for c in watched.candidates] == [c.node for c in found.candidates]
    # A snapshot is for all who may call; a change of the mesh is not asked of a node.
    signed = await anext(aiter(routes.WatchSnapshot(route_pb2.WatchSnapshotRequest(region=REGION))))
    assert opened(signed, mesh.plane.authority.ca_pem, mesh=MESH, now_s=time.time()).nodes
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await routes.ReportLatency(route_pb2.ReportLatencyRequest(region=REGION))
    assert caught.value.code() in (grpc.StatusCode.PERMISSION_DENIED, Unsupported.status)
    stranger = route_pb2_grpc.RouteServiceStub(agent.channel())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stranger.Resolve(request)
    assert from_rpc_error(refused.value).reason == "UNAUTHENTICATED"


async def test_a_leaving_node_ends_its_watches_at_once(mesh: IslandMesh) -> None:
    agent = mesh.nodes["two"]
    routes = route_pb2_grpc.RouteServiceStub(agent.channel(mesh.plane.token()))
    watch = routes.Watch(route_pb2.ResolveRequest(model=MODEL, region=REGION))
    assert await watch.read()
    start = time.monotonic()
    stopping = asyncio.create_task(agent.child.stop())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await watch.read():
            pass
    await stopping
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # Its grace is 10 s.
    assert time.monotonic() - start < 8


async def test_p8_a_removed_gateway_is_refused_by_nodes_from_the_snapshot_alone(
    mesh: IslandMesh, tmp_path: Path
) -> None:
    credentials = await mesh.plane.machine(tmp_path / "gone", "gone", kind="gateway")
    async with mesh.plane.operator() as operator:
        await operator.remove("gone")

    async def told() -> bool:
        found = [mesh.snapshot(agent.data / SNAPSHOT_FILE) for agent in mesh.nodes.values()]
        return all(one and "gone" in one.removed for one in found)

    await until(told)
    await mesh.plane.kill()
    agent = mesh.nodes["one"]
    await agent.kill()
    (agent.data / "wanted.pb").unlink()
    await agent.start()
    routes = route_pb2_grpc.RouteServiceStub(agent.channel(credentials=credentials))
    with pytest.raises(grpc.aio.AioRpcError, match="was removed"):
        await routes.Resolve(route_pb2.ResolveRequest(model=MODEL, region=REGION))
