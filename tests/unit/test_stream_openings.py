"""How streams and reports may begin: in time, with something that can be served, and for one's own region."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from nearmesh_controlplane.peers.role import Alone, Self
from nearmesh_controlplane.registry import servicer as sessions
from nearmesh_controlplane.registry.servicer import NodeServicer
from nearmesh_controlplane.routing.servicer import RouteServicer

from nearmesh import rpc
from nearmesh.errors import (
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    NotFound,
    NotLeader,
    PermissionDenied,
    Unreachable,
)
from nearmesh.gateway.metadata import GatewayMetadata
from nearmesh.rpc import Identity
from nearmesh.snapshot import SnapshotRoutes
from nearmesh.v1 import route_pb2
from nearmesh.xds import ads
from nearmesh.xds.ads import AggregatedDiscovery
from nearmesh.xds.resources import CLUSTER, LISTENER
from nearmesh.xds.subscription import MAX_NAME_CHARACTERS, MAX_NAMES
from tests.control_plane_state import State, alone, context, state
from tests.snapshots import snapshot

EUROPE, ASIA = "europe-west1", "asia-northeast1"
CLIENT, GATEWAY, NODE = Identity("app", "client"), Identity("door", "gateway"), Identity("n", "node")
METADATA = GatewayMetadata(host="127.0.0.1", port=8001, plaintext=True, certificate_sds="/c.json", ca_sds="/ca.json")
UNUSED = cast(Any, None)
FROM_OUTSIDE = context()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        await found.node("n", EUROPE)
        await found.join("door", EUROPE, kind="gateway")
        yield found


def discovery(mesh: State, **more: Any) -> AggregatedDiscovery:
    plain = {
        "source": mesh.router,
        "mesh": "mesh",
        "verifier": UNUSED,
        "jwks_json": lambda: '{"keys":[]}',
        "region_of": lambda gateway: mesh.registry.get(gateway).region,
    }
    return AggregatedDiscovery(**(plain | more))


def request(region: str, *names: str, kind: str = LISTENER) -> discovery_pb2.DiscoveryRequest:
    made = discovery_pb2.DiscoveryRequest(type_url=kind, resource_names=names)
    made.node.locality.region = region
    made.node.metadata.update(METADATA.to_struct())
    return made


async def one(item: Any) -> AsyncIterator[Any]:
    yield item


async def silence() -> AsyncIterator[Any]:
    await asyncio.get_running_loop().create_future()
    yield


async def ended(stream: AsyncIterator[Any]) -> MeshError:
    with pytest.raises(MeshError) as caught:
        async for _ in stream:
            pass
    return caught.value


async def answers(mesh: State, who: Identity, asked: discovery_pb2.DiscoveryRequest) -> list[Any]:
    rpc._caller.set(who)
    return [answer async for answer in discovery(mesh).StreamAggregatedResources(one(asked), None)]


@pytest.mark.parametrize("who", [CLIENT, GATEWAY])
async def test_who_asks_for_its_own_region_is_answered(mesh: State, who: Identity) -> None:
    assert await answers(mesh, who, request(EUROPE, kind=CLUSTER))


async def test_a_gateway_asks_for_the_region_that_it_joined_for(mesh: State) -> None:
    with pytest.raises(PermissionDenied, match="gateway/door joined for region 'europe-west1', and asks for 'asia"):
        await answers(mesh, GATEWAY, request(ASIA, kind=CLUSTER))
    assert await answers(mesh, CLIENT, request(ASIA, kind=CLUSTER)), "a client may be anywhere"


@pytest.mark.parametrize("region", ["", "Europe", "a b", "x" * 64, "../etc"])
async def test_a_clients_region_is_a_name(mesh: State, region: str) -> None:
    with pytest.raises(InvalidInput, match="region"):
        await answers(mesh, CLIENT, request(region))


async def test_what_one_request_may_ask_for_is_bounded(mesh: State) -> None:
    assert await answers(mesh, CLIENT, request(EUROPE, *(f"m{n}" for n in range(MAX_NAMES))))
    with pytest.raises(InvalidInput, match="1001 resource names"):
        await answers(mesh, CLIENT, request(EUROPE, *(f"m{n}" for n in range(MAX_NAMES + 1))))
    assert await answers(mesh, CLIENT, request(EUROPE, "m" * MAX_NAME_CHARACTERS))
    with pytest.raises(InvalidInput, match="254 characters"):
        await answers(mesh, CLIENT, request(EUROPE, "m" * (MAX_NAME_CHARACTERS + 1)))


async def test_a_discovery_stream_that_asks_for_nothing_ends(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ads, "ASK_WITHIN_S", 0.01)
    rpc._caller.set(CLIENT)
    error = await ended(discovery(mesh).StreamAggregatedResources(silence(), None))
    assert isinstance(error, DeadlineExceeded) and "asked for nothing" in error.message


async def test_a_dismissed_discovery_stream_is_told_why_it_ends(mesh: State) -> None:
    async def asks_once() -> AsyncIterator[Any]:
        yield request(EUROPE, kind=CLUSTER)
        await asyncio.get_running_loop().create_future()

    async def dismissal() -> MeshError:
        return Unreachable("ask the control plane")

    rpc._caller.set(CLIENT)
    service = discovery(mesh, dismissal=dismissal)
    stream = service.StreamAggregatedResources(asks_once(), None)
    error = await ended(stream)
    assert isinstance(error, Unreachable) and error.message == "ask the control plane"
    assert service.streams == 0


async def test_where_nobody_knows_a_gateways_region_its_word_counts(mesh: State) -> None:
    rpc._caller.set(GATEWAY)
    service = discovery(mesh, region_of=lambda gateway: None)
    assert [a async for a in service.StreamAggregatedResources(one(request(ASIA, kind=CLUSTER)), None)]


async def test_a_session_without_a_hello_ends(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "HELLO_WITHIN_S", 0.01)
    mesh.registry.session_closed("n")
    rpc._caller.set(NODE)
    servicer = NodeServicer(UNUSED, UNUSED, mesh.registry, mesh.changes, UNUSED, alone())
    error = await ended(servicer.Session(silence(), None))
    assert isinstance(error, DeadlineExceeded) and "no hello" in error.message
    assert mesh.registry.presence("n") == "suspect", "it never opened"


async def test_a_gateway_reports_for_its_own_region(mesh: State) -> None:
    servicer = RouteServicer(mesh.router, mesh.registry, mesh.catalog, mesh.measurements, mesh.changes, UNUSED, alone())
    samples = [route_pb2.LatencySample(node="n", network_ms=[5.0])]
    rpc._caller.set(GATEWAY)
    with pytest.raises(PermissionDenied, match="joined for region 'europe-west1', and reports for 'asia-northeast1'"):
        await servicer.ReportLatency(route_pb2.ReportLatencyRequest(region=ASIA, samples=samples), FROM_OUTSIDE)
    node = mesh.registry.get("n")
    assert not mesh.router.network_time(ASIA, node).measured and not mesh.registry.live(mesh.registry.get("door"))
    await servicer.ReportLatency(route_pb2.ReportLatencyRequest(region=EUROPE, samples=samples), FROM_OUTSIDE)
    assert mesh.registry.live(mesh.registry.get("door"))


async def test_a_rule_of_residency_holds_for_routes_that_were_decided_before_it(mesh: State) -> None:
    class Follower(Alone):
        def followed(self) -> Any:
            return SnapshotRoutes(snapshot())

    parts = (mesh.router, mesh.registry, mesh.catalog, mesh.measurements, mesh.changes, UNUSED)
    servicer = RouteServicer(*parts, Follower(Self(id="b", incarnation="1", public="", mesh="", http=""), 1))
    rpc._caller.set(CLIENT)
    asked = route_pb2.ResolveRequest(model="m", region=EUROPE)
    route = await servicer.Resolve(asked, None)
    assert len({c.region for c in route.candidates}) > 1 and not route.bound
    await mesh.residency.set(EUROPE, [EUROPE])
    route = await servicer.Resolve(asked, None)
    assert {c.region for c in route.candidates} == {EUROPE}
    assert (route.bound, list(route.allowed_regions)) == (True, [EUROPE])


async def test_only_machines_are_given_the_whole_snapshot(mesh: State) -> None:
    servicer = RouteServicer(mesh.router, mesh.registry, mesh.catalog, mesh.measurements, mesh.changes, UNUSED, alone())
    rpc._caller.set(CLIENT)
    with pytest.raises(InvalidInput, match="name the region"):
        await anext(servicer.WatchSnapshot(route_pb2.WatchSnapshotRequest(), None))


async def test_how_right_predictions_were_is_told_by_who_leads(mesh: State) -> None:
    class Follower(Alone):
        def check_leads(self) -> None:
            raise NotLeader("another one leads")

    rpc._caller.set(CLIENT)
    await mesh.publish("m")
    told = route_pb2.CallReport(model="m", answered=4, compared=4, within_p50=1, within_p95=4, within_p99=4, late=2)
    told.total_ms, told.predicted_ms = 30.0, 20.0
    mesh.measurements.report(
        route_pb2.ReportLatencyRequest(region=EUROPE, calls=[told]), kind="clients", reporter="app"
    )
    parts = (mesh.router, mesh.registry, mesh.catalog, mesh.measurements, mesh.changes, UNUSED)
    servicer = RouteServicer(*parts, alone())
    for model in ("", "m"):
        (row,) = (await servicer.ListAccuracy(route_pb2.ListAccuracyRequest(model=model), FROM_OUTSIDE)).accuracy
        assert (row.region, row.model, row.objective, row.reporter) == (EUROPE, "m", "cheapest-in-time", "clients")
        assert (row.answered, row.compared, row.late, row.within_p50, row.within_p95) == (4, 4, 0.5, 0.25, 1)
        assert row.actual_over_predicted == 1.5
    with pytest.raises(NotFound, match="'nope'"):
        await servicer.ListAccuracy(route_pb2.ListAccuracyRequest(model="nope"), FROM_OUTSIDE)
    following = RouteServicer(*parts, Follower(Self(id="b", incarnation="1", public="", mesh="", http=""), 1))
    with pytest.raises(NotLeader):
        await following.ListAccuracy(route_pb2.ListAccuracyRequest(), FROM_OUTSIDE)


async def test_a_client_that_is_in_no_region_is_told_of_the_one_near_it(mesh: State) -> None:
    servicer = RouteServicer(mesh.router, mesh.registry, mesh.catalog, mesh.measurements, mesh.changes, UNUSED, alone())
    rpc._caller.set(CLIENT)
    await mesh.publish("m")
    oxford = route_pb2.ResolveRequest(model="m", latitude=51.75, longitude=-1.26)
    assert (await servicer.Explain(oxford, FROM_OUTSIDE)).region == "europe-west2"
    # Who names a region is taken at its word.
    oxford.region = ASIA
    assert (await servicer.Explain(oxford, FROM_OUTSIDE)).region == ASIA
    with pytest.raises(InvalidInput, match="region"):
        await servicer.Explain(route_pb2.ResolveRequest(model="m", latitude=51.75), FROM_OUTSIDE)
