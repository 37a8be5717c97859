"""Two control planes over one PostgreSQL: any of them answers, one leads, and what one was told the other knows."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio

from nearmesh import signature
from nearmesh.client import connect
from nearmesh.client.admin import AdminClient
from nearmesh.errors import InvalidInput, Unreachable
from nearmesh.membership import Membership
from nearmesh.oci import digest_bytes
from nearmesh.packaging.build import build
from nearmesh.rpc import from_rpc_error
from nearmesh.v1 import run_pb2
from nearmesh.v1.route_pb2 import ReportLatencyRequest, ResolveRequest
from nearmesh.v1.route_pb2_grpc import RouteServiceStub
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import REGION, ControlPlane, Pair, node, pair, until
from tests.postgres import Postgres
from tests.trainable import trainable

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory, database_server: Postgres) -> AsyncIterator[Pair]:
    async with pair(tmp_path_factory.mktemp("pair"), database_server.new_database()) as found:
        yield found


async def test_one_leads_and_both_say_so(both: Pair) -> None:
    leader = await both.leader()
    for plane in both.planes.values():
        async with plane.operator() as operator:

            async def listed() -> bool:
                found = await operator.control_planes()
                return [one.id for one in found] == ["a", "b"] and sum(one.leader for one in found) == 1

            await until(listed, what=f"both are listed by {plane.public}")
            (one,) = [one for one in await operator.control_planes() if one.leader]
            assert (one.public_address, one.mesh_address, one.http_address) == (leader.public, leader.mesh, leader.http)
            assert one.term >= 1


async def test_an_operator_reaches_whichever_is_there(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = await both.leader()
    for known in (f"127.0.0.1:1,{leader.public}", f"{leader.public}, 127.0.0.1:1"):
        async with AdminClient(known, leader.authority.ca_pem, leader.token("operator")) as operator:
            assert len(await operator.control_planes()) == 2
    monkeypatch.setattr("nearmesh.client.connection.REACH_S", 0.3)
    with pytest.raises(Unreachable, match=r"at any of 127\.0\.0\.1:1, 127\.0\.0\.1:2"):
        async with AdminClient("127.0.0.1:1,127.0.0.1:2", leader.authority.ca_pem, leader.token("operator")):
            pass


async def test_a_node_is_sent_on_to_the_leader_and_keeps_the_list(both: Pair, tmp_path: Path) -> None:
    leader = await both.leader()
    follower = both.other(leader)
    async with node(follower, tmp_path, "sent-on") as agent:
        # It was refused by the one that it knew first; gRPC does not always let it see the reason.
        await agent.logged("session lost")
        membership = Membership.read(agent.data)
        assert membership and set(membership.control_plane_mesh.split(",")) == {leader.mesh, follower.mesh}


@pytest.mark.parametrize("by", ["leader", "follower"])
async def test_what_one_was_told_the_other_knows(both: Pair, tmp_path: Path, by: str) -> None:
    leader = await both.leader()
    plane = leader if by == "leader" else both.other(leader)
    await plane.machine(tmp_path / by, by)
    async with plane.operator() as told, both.other(plane).operator() as asked:
        await told.set_price(by, 2.5)
        await told.publish(adding(tmp_path / f"p-{by}", f"p-{by}", "1", 1.0))
        await told.set_policy(f"p-{by}", objective="nearest", deadline_ms=70.0)
        await told.deploy(f"p-{by}", "1")

        async def known() -> bool:
            prices = {node.id: node.usd_per_hour for node in await asked.nodes()}
            models = {model.name: model for model in await asked.models()}
            model = models.get(f"p-{by}")
            if prices.get(by) != 2.5 or model is None:
                return False
            return (model.objective, model.deadline_ms, len(model.deployments)) == ("nearest", 70.0, 1)

        await until(known, within_s=5, what=f"what the {by} was told, the other knows")


async def test_what_was_published_is_on_every_disk_when_it_is_acknowledged(both: Pair, tmp_path: Path) -> None:
    leader = await both.leader()
    for plane in (leader, both.other(leader)):
        other = both.other(plane)
        made = adding(tmp_path / plane.name, f"copied-{plane.name}", "1", 1.0)
        async with plane.operator() as operator:
            await operator.publish(made)
        for digest in (made.digest, *made.blobs):
            assert digest_bytes(_blob(other, digest).read_bytes()) == digest
        # What one of them lost since, it finds again when somebody asks for it.
        weights = next(file.digest for file in made.manifest.files if file.title == "fp32.onnx")
        _blob(other, weights).unlink()
        context = ssl.create_default_context(cadata=plane.authority.ca_pem.decode())
        async with httpx.AsyncClient(verify=context, headers={"Authorization": f"Bearer {plane.token()}"}) as client:
            address = f"https://{other.http}/v2/{made.manifest.model}/blobs/{weights}"
            assert (await client.get(address, headers={"nearmesh-asked-by": "test"})).status_code == 404
            assert digest_bytes((await client.get(address)).content) == weights
            # Each signs by itself, and both alike.
            tag = f"/v2/{made.manifest.model}/manifests/{signature.tag(made.digest)}"
            one, two = [(await client.get(f"https://{each.http}{tag}")).content for each in (plane, other)]
            ((payload, signed),) = signature.signatures(one)
            text = (await client.get(f"https://{other.http}/v2/{made.manifest.model}/blobs/{payload.digest}")).content
            signature.check([plane.authority.model_key_pem], made.digest, text, signed)
            assert one == two


async def test_a_run_is_one_run_whichever_is_asked_and_only_the_leader_goes_on_with_it(
    both: Pair, tmp_path: Path
) -> None:
    leader = await both.leader()
    follower = both.other(leader)
    asked = run_pb2.StartRunRequest(model="linear", rounds=1, idempotency_key="k")
    async with leader.operator() as one, follower.operator() as other:
        await one.publish(build(trainable(tmp_path / "linear", more=""), tmp_path / "cache"))
        begun = await other.runs.start(asked)
        assert (await one.runs.start(asked)).id == begun.id
        seen: list[run_pb2.Run] = []

        async def watched() -> None:
            async for run in other.runs.watch(begun.id):
                seen.append(run)

        watching = asyncio.create_task(watched())

        async def waits() -> bool:
            return bool(seen) and seen[-1].reason == "0 of 2 sites are there that have data for linear"

        await until(waits, within_s=5, what="the follower tells what the leader found")
        assert (await one.runs.stop(begun.id)).state == run_pb2.RUN_STATE_STOPPED
        async with asyncio.timeout(5):
            await watching
        assert seen[-1].state == run_pb2.RUN_STATE_STOPPED
        assert [run.id for run in await other.runs.list("linear")] == [begun.id]
        with pytest.raises(InvalidInput, match="has no setting 'epoch'; it has epochs"):
            await one.runs.start(run_pb2.StartRunRequest(model="linear", rounds=1, settings={"epoch": "1"}))


def _blob(plane: ControlPlane, digest: str) -> Path:
    return plane.data / "oci" / "blobs" / "sha256" / digest.removeprefix("sha256:")


async def test_a_client_keeps_to_one_and_its_reports_reach_the_leader(both: Pair, tmp_path: Path) -> None:
    leader = await both.leader()
    follower = both.other(leader)
    async with leader.operator() as operator:
        await operator.publish(adding(tmp_path / "package", "adder", "1", 1.0))
        await operator.deploy("adder", "1")
    async with node(leader, tmp_path / "node", "reported") as agent:
        await agent.serves("adder", "1")
        settings = {"ca": leader.authority.ca_pem, "token": leader.token(), "region": REGION, "state": False}

        async def known() -> bool:
            try:
                route = await RouteServiceStub(follower.channel("client")).Resolve(
                    ResolveRequest(model="adder", region=REGION)
                )
            except grpc.aio.AioRpcError:
                return False
            return [candidate.node for candidate in route.candidates] == ["reported"]

        await until(known, what="the follower gives out the leader's route")
        # The first that it knows is not there.
        async with connect(control_plane=f"127.0.0.1:1,{follower.public}", **settings) as client:
            answer = await client.infer("adder", {"x": np.array([1.0, 2.0], np.float32)})
            assert answer.receipt.node == "reported"
            async with leader.operator() as operator:

                async def measured() -> bool:
                    found = await operator.latencies()
                    return any((p.node, p.region, p.measured) == ("reported", REGION, True) for p in found)

                await until(measured, what="the leader heard what the client measured")


async def test_gateways_look_for_the_leader_and_nobody_reports_in_anothers_name(both: Pair, tmp_path: Path) -> None:
    leader = await both.leader()
    follower = both.other(leader)
    gateway = await leader.machine(tmp_path, "gateway", kind="gateway")
    request = ReportLatencyRequest(region=REGION)

    async def told_of() -> bool:
        async with follower.operator() as operator:
            return any(one.id == "gateway" for one in await operator.nodes())

    await until(told_of, what="the follower knows the gateway")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await RouteServiceStub(follower.mesh_channel(gateway.channel_credentials())).ReportLatency(request)
    assert from_rpc_error(refused.value).reason == "NOT_LEADER"
    await RouteServiceStub(leader.mesh_channel(gateway.channel_credentials())).ReportLatency(request)


async def test_a_change_of_the_leader_moves_no_traffic(both: Pair, tmp_path: Path) -> None:
    leader = await both.leader()
    survivor = both.other(leader)
    async with leader.operator() as operator:
        await operator.publish(adding(tmp_path / "package", "steady", "1", 1.0))
        await operator.deploy("steady", "1")
    async with (
        node(leader, tmp_path / "dear", "dear", usd_per_hour=2.0) as dear,
        node(leader, tmp_path / "cheap", "cheap", usd_per_hour=1.0) as cheap,
    ):
        for agent in (dear, cheap):
            await agent.serves("steady", "1")
        told: list[list[str]] = []
        stub = RouteServiceStub(survivor.channel("client"))

        async def watch() -> None:
            async for route in stub.Watch(ResolveRequest(model="steady", region=REGION)):
                told.append([candidate.node for candidate in route.candidates])

        async def heard() -> bool:
            return bool(told) and told[-1] == ["cheap", "dear"]

        await until(_answers(stub, "steady"), what="the follower knows the model")
        watching = asyncio.create_task(watch())
        try:
            await until(heard, what="the follower gives out both, the cheap one first")
            before = len(told)
            await leader.kill()
            await survivor.logged("decides term", within_s=20)
            await until(_is_live(survivor, "cheap", "dear"), what="the nodes came to the new leader")
            # What it measured and heard itself is the same as what it was told.
            seen = len(told)
            await until(_more(told, seen), what="the new leader's own routes")
            assert [route for route in told[before:] if route != ["cheap", "dear"]] == []
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await leader.start()


def _answers(stub: RouteServiceStub, model: str) -> Callable[[], Awaitable[bool]]:
    async def answers() -> bool:
        try:
            return bool((await stub.Resolve(ResolveRequest(model=model, region=REGION))).candidates)
        except grpc.aio.AioRpcError:
            return False

    return answers


def _is_live(plane: ControlPlane, *names: str) -> Callable[[], Awaitable[bool]]:
    async def live() -> bool:
        async with plane.operator() as operator:
            return {one.id for one in await operator.nodes() if one.live} >= set(names)

    return live


def _more(told: list[list[str]], than: int) -> Callable[[], Awaitable[bool]]:
    async def more() -> bool:
        return len(told) > than

    return more
