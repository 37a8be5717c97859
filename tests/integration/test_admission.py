"""P8 with real processes: nobody does what is not theirs to do, on any listener, and a removed node is out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nearmesh_controlplane.registry.authority import Authority
from tritonclient.grpc import service_pb2_grpc

from nearmesh.errors import InvalidInput, JoinRefused, MeshError
from nearmesh.ids import Kind, MachineId
from nearmesh.membership import join
from nearmesh.tls import Credentials, certificate_request, key_to_pem, new_key
from nearmesh.tokens import TokenIssuer
from nearmesh.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    route_pb2,
    route_pb2_grpc,
)
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import MESH, REGION, ControlPlane, Node, control_plane, node, question
from tests.integration.refusals import nothing_changes, refused, request_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The promise; seconds are what it takes.
REMOVED_WITHIN_S = 30.0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agent(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node that serves `adder`, of whom others ask what is not theirs."""
    async with plane.operator() as operator:
        await operator.publish(adding(tmp_path_factory.mktemp("package"), "adder", "1", 1.0))
        await operator.deploy("adder", "1")
    async with node(plane, tmp_path_factory.mktemp("agent"), "agent") as found:
        await found.serves("adder", "1")
        # Nor does it ask for anything itself any more.
        await found.certified()
        yield found


# Connections


def _foreign(plane: ControlPlane, folder: Path, name: str) -> Credentials:
    """A machine certified by another authority of the same name, which knows our CA."""
    authority, key, who = Authority.open(MESH, folder), new_key(), MachineId(MESH, "node", name)
    signed = authority.sign(certificate_request(key, who), who, timedelta(hours=1))
    return Credentials(key_to_pem(key), signed, plane.authority.ca_pem)


async def _health(channel: grpc.aio.Channel) -> MeshError:
    async with channel:
        return await refused(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5))


@pytest.mark.parametrize("listener", ["public", "mesh"])
async def test_p8_a_plain_text_connection_gets_no_answer(plane: ControlPlane, agent: Node, listener: str) -> None:
    async with nothing_changes(plane):
        for server in (plane, agent):
            address = getattr(server, listener)
            error = await _health(grpc.aio.insecure_channel(address))
            assert error.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            host, _, port = address.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET / HTTP/1.1\r\nHost: mesh\r\n\r\n")
            async with asyncio.timeout(10):
                assert b"HTTP/1.1 200" not in await reader.read(-1)
            writer.close()
    await agent.serves("adder", "1")


@pytest.mark.parametrize("shown", ["nothing", "a certificate of another authority", "a certificate that signed itself"])
async def test_p8_the_mesh_listeners_want_a_certificate_of_this_mesh(
    plane: ControlPlane, agent: Node, tmp_path: Path, shown: str
) -> None:
    foreign = _foreign(plane, tmp_path, "agent")
    if shown == "nothing":
        tls = grpc.ssl_channel_credentials(plane.authority.ca_pem)
    elif shown == "a certificate of another authority":
        tls = foreign.channel_credentials()
    else:
        authority = Authority.open(MESH, tmp_path)
        tls = grpc.ssl_channel_credentials(plane.authority.ca_pem, key_to_pem(authority.key), authority.ca_pem)
    async with nothing_changes(plane):
        for server in (plane, agent):
            options = [("grpc.ssl_target_name_override", f"agent.{MESH}")] if server is agent else []
            error = await _health(grpc.aio.secure_channel(server.mesh, tls, options=options))
            assert error.status is grpc.StatusCode.UNAVAILABLE


# Roles

ADMIN, CATALOG = admin_pb2_grpc.AdminServiceStub, catalog_pb2_grpc.CatalogServiceStub
NODE, ROUTE = node_pb2_grpc.NodeServiceStub, route_pb2_grpc.RouteServiceStub


HELLO = node_pb2.NodeReport(hello=node_pb2.NodeHello(public_address="127.0.0.1:1", mesh_address="127.0.0.1:1"))


async def _silence() -> AsyncIterator[Any]:
    """For calls that are refused before a word is said: a client that is still writing may miss why it was."""
    await asyncio.get_running_loop().create_future()
    yield None


CALLS: dict[str, Callable[[grpc.aio.Channel], Any]] = {
    "CreateJoinToken": lambda c: ADMIN(c).CreateJoinToken(
        admin_pb2.CreateJoinTokenRequest(kind=1, node="n", site="s", region="r", lifetime_s=60)
    ),
    "IssueToken": lambda c: ADMIN(c).IssueToken(
        admin_pb2.IssueTokenRequest(subject="me", role="operator", lifetime_s=9)
    ),
    "ListNodes": lambda c: ADMIN(c).ListNodes(admin_pb2.ListNodesRequest()),
    "DrainNode": lambda c: ADMIN(c).DrainNode(admin_pb2.DrainNodeRequest(node="agent")),
    "CordonNode": lambda c: ADMIN(c).CordonNode(admin_pb2.CordonNodeRequest(node="agent")),
    "RemoveNode": lambda c: ADMIN(c).RemoveNode(admin_pb2.RemoveNodeRequest(node="agent")),
    "SetPrice": lambda c: ADMIN(c).SetPrice(admin_pb2.SetPriceRequest(node="agent", usd_per_hour=9)),
    "ListPrices": lambda c: ADMIN(c).ListPrices(admin_pb2.ListPricesRequest()),
    "SetTransferPrice": lambda c: ADMIN(c).SetTransferPrice(
        admin_pb2.SetTransferPriceRequest(from_region="a", to_region="b", usd_per_gb=1)
    ),
    "SetResidency": lambda c: ADMIN(c).SetResidency(
        admin_pb2.SetResidencyRequest(client_region=REGION, regions=["mars"])
    ),
    "ListResidency": lambda c: ADMIN(c).ListResidency(admin_pb2.ListResidencyRequest()),
    "SetPolicy": lambda c: ADMIN(c).SetPolicy(admin_pb2.SetPolicyRequest(model="adder", objective="cheapest")),
    "ListAudit": lambda c: ADMIN(c).ListAudit(admin_pb2.ListAuditRequest()),
    "Publish": lambda c: CATALOG(c).Publish(_silence()),
    "Deploy": lambda c: CATALOG(c).Deploy(catalog_pb2.DeployRequest(model="adder", version="1")),
    "Rollback": lambda c: CATALOG(c).Rollback(catalog_pb2.RollbackRequest(model="adder")),
    "Get": lambda c: CATALOG(c).Get(catalog_pb2.GetModelRequest(model="adder")),
    "Renew": lambda c: NODE(c).Renew(node_pb2.RenewRequest(csr_pem=request_for("agent"))),
    "Session": lambda c: NODE(c).Session(_silence()),
    "Resolve": lambda c: ROUTE(c).Resolve(route_pb2.ResolveRequest(model="adder", region=REGION)),
    "Watch": lambda c: ROUTE(c).Watch(route_pb2.ResolveRequest(model="adder", region=REGION)),
    "ReportLatency": lambda c: ROUTE(c).ReportLatency(route_pb2.ReportLatencyRequest(region=REGION)),
}
OPERATORS_ONLY = [
    *("CreateJoinToken", "IssueToken", "ListNodes", "DrainNode", "CordonNode", "RemoveNode", "SetPrice", "SetPolicy"),
    *("ListPrices", "SetTransferPrice", "SetResidency", "ListResidency"),
    *("ListAudit", "Publish", "Deploy", "Rollback"),
]
MACHINES_ONLY = ["Renew", "Session"]


@pytest.mark.parametrize("role", ["client", "data"])
async def test_p8_people_do_not_do_what_operators_and_machines_do(plane: ControlPlane, agent: Node, role: str) -> None:
    async with nothing_changes(plane):
        for name in [*OPERATORS_ONLY, *MACHINES_ONLY]:
            error = await refused(CALLS[name](plane.channel(role)))
            assert (name, error.status) == (name, grpc.StatusCode.PERMISSION_DENIED)
            assert f"{role}/tester may not call" in error.message
            await plane.logged(f"/{name} reason={role}/tester may not call")


async def test_p8_an_operator_is_no_machine(plane: ControlPlane, agent: Node) -> None:
    async with nothing_changes(plane):
        for name in MACHINES_ONLY:
            error = await refused(CALLS[name](plane.channel("operator")))
            assert (error.status, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


async def test_p8_who_shows_nothing_may_do_nothing(plane: ControlPlane, agent: Node) -> None:
    async with nothing_changes(plane):
        for name, call in CALLS.items():
            error = await refused(call(plane.channel()))
            assert (name, error.status, error.reason) == (name, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    stub = service_pb2_grpc.GRPCInferenceServiceStub(agent.channel())
    assert (await refused(stub.ModelInfer(question("adder")))).status is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("kind", ["node", "gateway"])
async def test_p8_a_machine_does_not_do_what_operators_do(
    plane: ControlPlane, agent: Node, tmp_path: Path, kind: Kind
) -> None:
    credentials = await plane.machine(tmp_path, f"curious-{kind}", kind=kind)
    channel = plane.mesh_channel(credentials.channel_credentials())
    async with nothing_changes(plane):
        for name in OPERATORS_ONLY + (["Session"] if kind == "gateway" else []):
            assert (await refused(CALLS[name](channel))).status is grpc.StatusCode.PERMISSION_DENIED
        error = await refused(CALLS["Renew"](channel))
        assert error.reason == "JOIN_REFUSED" and "not spiffe" in error.message


async def test_p8_a_bearer_token_that_does_not_hold_is_refused(plane: ControlPlane, agent: Node) -> None:
    tokens = {
        "expired": plane.token("operator", now_s=time.time() - 4000),
        "not signed by this mesh": TokenIssuer(new_key(), MESH).access(
            "x", "operator", now_s=time.time(), lifetime_s=60
        ),
        "does not hold": await plane.join_token("bearer"),
    }
    async with nothing_changes(plane):
        for why, token in tokens.items():
            stub = service_pb2_grpc.GRPCInferenceServiceStub(agent.channel(token))
            for call in (CALLS["ListNodes"](plane.channel(token=token)), stub.ModelInfer(question("adder"))):
                error = await refused(call)
                assert (error.status, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
                assert why in error.message
            for server in (plane, agent):
                await server.logged(why)


# Removal


async def test_p8_a_removed_node_is_out_everywhere_on_open_streams_too(
    plane: ControlPlane, agent: Node, tmp_path: Path
) -> None:
    credentials = await plane.machine(tmp_path, "outcast")
    channel = plane.mesh_channel(credentials.channel_credentials())
    talk: asyncio.Queue[node_pb2.NodeReport] = asyncio.Queue()
    session = NODE(channel).Session(_from(talk))
    await talk.put(HELLO)
    assert (await session.read()).versions[0].model == "adder"
    watch = CALLS["Watch"](channel)
    await watch.read()
    others = service_pb2_grpc.GRPCInferenceServiceStub(agent.channel(credentials=credentials))
    questions: asyncio.Queue[Any] = asyncio.Queue()
    stream = others.ModelStreamInfer(_from(questions))
    await questions.put(question("adder"))
    assert not (await stream.read()).error_message

    # All are read all the time: gRPC's client may lose the answer of a call that it sends on and does not read.
    ended = {
        call: asyncio.create_task(asyncio.wait_for(refused(_read_on(call)), REMOVED_WITHIN_S))
        for call in (session, watch, stream)
    }
    async with plane.operator() as operator:
        assert (await operator.remove("outcast")).removed
    removed_at = time.monotonic()
    await talk.put(node_pb2.NodeReport(status=node_pb2.NodeStatus()))
    # Until the other agent has heard of it, it may still answer.
    asking = asyncio.create_task(_every(0.1, lambda: questions.put_nowait(question("adder"))))
    try:
        for open_call in (session, watch, stream):
            assert (await ended[open_call]).status is grpc.StatusCode.PERMISSION_DENIED
    finally:
        asking.cancel()
    assert time.monotonic() - removed_at < REMOVED_WITHIN_S
    calls = [CALLS[name](channel) for name in ("Renew", "Session", "Resolve")]
    for call in [*calls, others.ModelInfer(question("adder"))]:
        error = await refused(call)
        assert error.status is grpc.StatusCode.PERMISSION_DENIED and "was removed" in error.message
    await agent.logged("node/outcast was removed")
    await _stays_out_of_the_registry(plane, credentials, tmp_path)


async def _read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def _every(seconds: float, act: Callable[[], None]) -> None:
    while True:
        act()
        await asyncio.sleep(seconds)


async def _from(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while True:
        yield await queue.get()


async def _stays_out_of_the_registry(plane: ControlPlane, credentials: Credentials, folder: Path) -> None:
    async with httpx.AsyncClient(base_url=f"https://{plane.http}", verify=credentials.ssl_context(folder)) as http:
        assert (await http.get("/v2/")).status_code == httpx.codes.FORBIDDEN
    async with plane.operator() as operator:
        with pytest.raises(InvalidInput, match="was removed"):
            await operator.join_token("outcast", "site-outcast", REGION)
        listed = {one.id: one for one in await operator.nodes()}
    assert listed["outcast"].removed and not listed["outcast"].live


async def test_p8_a_join_token_made_before_the_removal_does_not_lead_back_in(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await plane.machine(tmp_path / "first", "returner")
    token = await plane.join_token("returner")
    async with plane.operator() as operator:
        await operator.remove("returner")
    async with nothing_changes(plane):
        with pytest.raises(JoinRefused, match="removed"):
            await join(token, "node", tmp_path / "second")


async def test_p8_a_removed_agent_loses_its_session_and_its_place_in_the_routes(
    plane: ControlPlane, agent: Node, tmp_path: Path
) -> None:
    async with node(plane, tmp_path, "leaver") as leaver, plane.operator() as operator:
        await leaver.serves("adder", "1")
        await operator.remove("leaver")
        await leaver.logged("session lost: node/leaver was removed", within_s=REMOVED_WITHIN_S)
        route = await operator.explain("adder", REGION)
        assert "leaver" not in {candidate.node for candidate in route.candidates}
        assert not any(one.live for one in await operator.nodes() if one.id == "leaver")
        # It would wait for the control plane to let it go.
        await leaver.kill()
