"""What a control plane that follows another one says of routes: the leader's word, or what is missing in its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.message import Message
from nearmesh_controlplane.peers.relay import RELAYED_KEY
from nearmesh_controlplane.peers.role import Alone, Self
from nearmesh_controlplane.routing.servicer import RouteServicer

from nearmesh import rpc
from nearmesh.errors import MeshError, NotFound, NotLeader, Unreachable
from nearmesh.rpc import Identity
from nearmesh.snapshot import SnapshotRoutes
from nearmesh.v1 import route_pb2 as pb
from tests.control_plane_state import State, alone, context, replica, state
from tests.snapshots import EUROPE, snapshot

OPERATOR, GATEWAY = Identity("ann", "operator"), Identity("door", "gateway")
ASKED = pb.ResolveRequest(model="m", region=EUROPE)


class Follower(Alone):
    """One whose leader answers this, or not at all."""

    def __init__(self, answer: Message | MeshError) -> None:
        super().__init__(Self(id="b", incarnation="1", public="", mesh="", http=""), 0)
        self._answer = answer
        self.asked: list[tuple[str, Message, str]] = []

    def check_leads(self) -> None:
        raise NotLeader("control plane 'b' does not lead")

    def followed(self) -> Any:
        return SnapshotRoutes(snapshot())

    async def pass_on(self, request: pb.ReportLatencyRequest, reporter: str) -> bool:
        return await self.ask_leader("ReportLatency", request, reporter) is not None

    async def ask_leader(self, method: str, request: Message, asker: str) -> Any:
        self.asked.append((method, request, asker))
        if isinstance(self._answer, MeshError):
            raise self._answer
        return self._answer


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        await found.publish("m")
        await found.node("eu", EUROPE)
        rpc._caller.set(OPERATOR)
        yield found


def servicer(mesh: State, role: Follower) -> RouteServicer:
    unused = cast(Any, None)
    return RouteServicer(mesh.router, mesh.registry, mesh.catalog, mesh.measurements, mesh.changes, unused, role)


ANSWERS: dict[str, tuple[Message, Message]] = {
    "Explain": (ASKED, pb.Route(model="m", candidates=[pb.Candidate(node="lost", why="too late")])),
    "ListLatencies": (pb.ListLatenciesRequest(), pb.ListLatenciesResponse(latencies=[pb.Latency(measured=True)])),
    "ListAccuracy": (pb.ListAccuracyRequest(), pb.ListAccuracyResponse(accuracy=[pb.Accuracy(answered=3)])),
}


@pytest.mark.parametrize("method", ANSWERS)
async def test_people_hear_what_the_leader_knows_whomever_they_ask(mesh: State, method: str) -> None:
    request, answer = ANSWERS[method]
    role = Follower(answer)
    rpc._caller.set(OPERATOR)
    assert await getattr(servicer(mesh, role), method)(request, context()) == answer
    assert role.asked == [(method, request, "ann")]


@pytest.mark.parametrize("error", [Unreachable("gone"), NotLeader("nobody leads")])
async def test_without_the_leader_they_hear_what_is_missing(mesh: State, error: MeshError) -> None:
    following = servicer(mesh, Follower(error))
    rpc._caller.set(OPERATOR)
    route = await following.Explain(ASKED, context())
    assert [c.node for c in route.candidates] == ["eu", "us"]
    assert route.note == (
        f"the control plane that leads cannot be asked ({error.message}); "
        "nodes that its last snapshot does not name are missing"
    )
    found = await following.ListLatencies(pb.ListLatenciesRequest(), context())
    assert [latency.node for latency in found.latencies] == ["eu"]
    assert found.note.endswith("it knows what was measured, here are estimates")
    with pytest.raises(NotLeader):
        await following.ListAccuracy(pb.ListAccuracyRequest(), context())


async def test_what_the_leader_finds_wrong_is_wrong(mesh: State) -> None:
    rpc._caller.set(OPERATOR)
    with pytest.raises(NotFound, match="no model"):
        await servicer(mesh, Follower(NotFound("no model 'm'"))).Explain(ASKED, context())


async def test_machines_are_answered_here_and_nothing_is_passed_on_twice(mesh: State) -> None:
    role = Follower(Unreachable("not to be asked"))
    following = servicer(mesh, role)
    rpc._caller.set(GATEWAY)
    found = await following.ListLatencies(pb.ListLatenciesRequest(region=EUROPE), context())
    assert (found.latencies[0].address, found.note) == ("eu:8003", "")
    rpc._caller.set(OPERATOR)
    again = context((RELAYED_KEY, "1"))
    assert (await following.Explain(ASKED, again)).note == ""
    with pytest.raises(NotLeader):
        await following.ReportLatency(pb.ReportLatencyRequest(region=EUROPE), again)
    assert role.asked == []


async def test_a_client_that_found_nobody_has_the_model_brought_back(mesh: State) -> None:
    asked: list[tuple[str, str]] = []

    async def bring_back(model: str, region: str) -> float:
        asked.append((model, region))
        return 700.0

    unused = cast(Any, None)
    parts = (mesh.router, mesh.registry, mesh.catalog, mesh.measurements, mesh.changes, unused)
    leading = RouteServicer(*parts, alone(), bring_back)
    found = await leading.Resolve(ASKED, context())
    assert (list(found.candidates), found.ready_in_ms, asked) == ([], 700.0, [("m", EUROPE)])
    # People who look wake nobody, nor do those who follow a route.
    await leading.Explain(ASKED, context())
    await anext(leading.Watch(ASKED, context()))
    assert len(asked) == 1
    await mesh.reports("eu", replica("m"))
    assert (await leading.Resolve(ASKED, context())).ready_in_ms == 0 and len(asked) == 1


async def test_who_follows_has_the_leader_bring_it_back(mesh: State) -> None:
    answer = pb.Route(model="rare", ready_in_ms=400.0)
    role = Follower(answer)
    await mesh.publish("rare")
    request = pb.ResolveRequest(model="rare", region=EUROPE)
    assert await servicer(mesh, role).Resolve(request, context()) == answer
    assert role.asked == [("Resolve", request, "ann")]


async def test_nodes_that_keep_vectors_are_told_to_any_client_the_nearest_first(mesh: State) -> None:
    rpc._caller.set(Identity("app", "client"))
    parts = (mesh.router, mesh.registry, mesh.catalog, mesh.measurements, mesh.changes, cast(Any, None))
    answering = RouteServicer(*parts, alone())
    assert not (await answering.VectorNodes(pb.VectorNodesRequest(), None)).nodes
    await mesh.node("us", "us-east1", keeps_vectors=True)
    await mesh.node("eu-2", EUROPE, keeps_vectors=True)
    found = (await answering.VectorNodes(pb.VectorNodesRequest(region=EUROPE), None)).nodes
    assert [(one.node, one.region, one.live) for one in found] == [("eu-2", EUROPE, True), ("us", "us-east1", True)]
    assert found[0].network_ms < found[1].network_ms and found[0].address and found[0].server_name
    bound = RouteServicer(*parts, alone(), allowed=lambda region: frozenset({"us-east1"}))
    found = (await bound.VectorNodes(pb.VectorNodesRequest(region=EUROPE), None)).nodes
    assert [one.node for one in found] == ["us"]
