"""Reports as they come in: whose they are, of what is there, and within bounds."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.routing.measurements import MAX_CALL_REPORTS, MAX_NODES
from nearmesh_controlplane.routing.peers import TURN_S

from nearmesh.errors import InvalidInput
from nearmesh.v1 import node_pb2, route_pb2
from tests.control_plane_state import State, replica, state

EUROPE, AMERICA, ASIA = "europe-west1", "us-east1", "asia-northeast1"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        await found.publish("m")
        for name, region in (("eu", EUROPE), ("us", AMERICA), ("asia", ASIA)):
            await found.node(name, region)
        yield found


def reach(region: str, node: Node) -> node_pb2.Peer:
    return node_pb2.Peer(node=node.id, address=f"{region}.{node.id}:1", server_name=node.id)


def calls(model: str = "m", *, answered: int, failed: int = 0, objective: str = "") -> route_pb2.CallReport:
    return route_pb2.CallReport(model=model, node="eu", objective=objective, answered=answered, failed=failed)


def report(*reports: route_pb2.CallReport, region: str = EUROPE) -> route_pb2.ReportLatencyRequest:
    return route_pb2.ReportLatencyRequest(region=region, calls=reports)


async def test_nodes_measure_each_other_for_their_regions(mesh: State) -> None:
    status = node_pb2.NodeStatus(
        peers=[
            node_pb2.PeerSample(node="us", network_ms=[92.0] * 5),
            # Neither of these ends a session.
            node_pb2.PeerSample(node="nobody", network_ms=[1.0] * 5),
            node_pb2.PeerSample(node="asia", network_ms=[-1.0]),
        ]
    )
    mesh.measurements.node_status("eu", status)
    now_s = mesh.clock()
    found = mesh.latencies.estimate(EUROPE, "us", AMERICA, now_s=now_s)
    assert (found.source, found.p50_ms) == ("nodes", pytest.approx(92.0, rel=0.01))
    assert mesh.latencies.estimate(EUROPE, "asia", ASIA, now_s=now_s).source == "distance"
    assert mesh.latencies.estimate(AMERICA, "eu", EUROPE, now_s=now_s).source == "distance"


async def test_what_was_measured_lets_infer_the_rest(mesh: State) -> None:
    status = node_pb2.NodeStatus(peers=[node_pb2.PeerSample(node="us", network_ms=[92.0] * 5)])
    mesh.measurements.node_status("eu", status)
    assert mesh.latencies.estimate("europe-west4", "us", AMERICA, now_s=mesh.clock()).source == "distance"
    await mesh.measurements.learn()
    assert mesh.latencies.estimate("europe-west4", "us", AMERICA, now_s=mesh.clock()).source == "coordinates"
    # What hardly changed is not worth the work.
    known = mesh.latencies._coordinates
    mesh.measurements.node_status("eu", status)
    await mesh.measurements.learn()
    assert mesh.latencies._coordinates is known
    # It is the same way back.
    assert mesh.latencies.estimate(AMERICA, "eu", EUROPE, now_s=mesh.clock()).p50_ms == pytest.approx(92, rel=0.05)


async def test_peers_are_told_by_turns_and_as_their_region_reaches_them(mesh: State) -> None:
    assert mesh.measurements.peers("eu") == ()
    assert mesh.measurements.tick(reach)
    assert not mesh.measurements.tick(reach), "nothing new"
    assert [peer.address for peer in mesh.measurements.peers("eu")] == [f"{EUROPE}.asia:1", f"{EUROPE}.us:1"]
    mesh.clock.now_s += TURN_S
    assert {peer.node for peer in mesh.measurements.peers("eu")} == {"asia", "us"}
    # Who is gone is measured no longer.
    mesh.registry.session_closed("asia")
    assert mesh.measurements.tick(reach)
    assert [peer.node for peer in mesh.measurements.peers("eu")] == ["us"]


async def test_demand_is_what_nodes_counted_and_comes_from_where_it_is_claimed(mesh: State) -> None:
    for second in range(30):
        mesh.clock.now_s += 1
        status = replica()
        status.answered, status.failed = 90 * second, 10 * second
        mesh.measurements.node_status("eu", node_pb2.NodeStatus(replicas=[status]))
        mesh.measurements.report(report(calls(answered=18, failed=2)), kind="gateway", reporter="door")
        many = report(calls(answered=10**5), calls("nobody's", answered=5), region=ASIA)
        mesh.measurements.report(many, kind="clients", reporter="liar")
    found = mesh.measurements.demand.demand(mesh.clock(), forecast=False)
    assert found == {(EUROPE, "m", ""): pytest.approx(20, rel=0.05), (ASIA, "m", ""): pytest.approx(80, rel=0.05)}


async def test_what_a_version_on_trial_fails_is_counted_where_it_is_answered(mesh: State) -> None:
    for second in range(30):
        mesh.clock.now_s += 1
        standing, trial = replica(), replica("m", "2")
        standing.answered, trial.answered = 90 * second, 10 * second
        trial.failed, trial.on_trial = 40 * second, True
        mesh.measurements.node_status("eu", node_pb2.NodeStatus(replicas=[standing, trial]))
    assert mesh.measurements.demand.total("m", now_s=mesh.clock()) == pytest.approx(100, rel=0.05)


async def test_a_model_that_was_taken_away_is_forgotten(mesh: State) -> None:
    for second in range(3):
        mesh.clock.now_s += 1
        status = replica("gone")
        status.answered = 100 * second
        mesh.measurements.node_status("eu", node_pb2.NodeStatus(replicas=[status]))
    assert mesh.measurements.demand.total("gone", now_s=mesh.clock()) > 0
    await mesh.measurements.learn()
    assert mesh.measurements.demand.total("gone", now_s=mesh.clock()) == 0


@pytest.mark.parametrize(("said", "believed"), [(0.25, 0.25), (3.0, 1.0), (-0.1, 0.0), (math.nan, 0.5)])
async def test_how_much_of_a_node_is_taken(mesh: State, said: float, believed: float) -> None:
    assert mesh.measurements.utilization("eu") == 0
    for share in (0.5, said):
        mesh.measurements.node_status("eu", node_pb2.NodeStatus(utilization=share))
    assert mesh.measurements.utilization("eu") == believed
    await mesh.measurements.learn()
    assert mesh.measurements.utilization("eu") == believed


async def test_how_right_predictions_were_is_kept_under_the_policys_objective(mesh: State) -> None:
    told = route_pb2.CallReport(
        model="m", node="eu", answered=10, compared=10, within_p50=4, within_p95=9, within_p99=10, late=1
    )
    told.total_ms, told.predicted_ms = 1200.0, 1000.0
    mesh.measurements.report(report(told), kind="clients", reporter="c")
    mesh.measurements.report(report(calls("nobody's", answered=5)), kind="clients", reporter="c")
    (found,) = mesh.measurements.accuracy_now()
    assert (found.region, found.model, found.objective, found.reporter) == (EUROPE, "m", "cheapest-in-time", "clients")
    assert (found.within_p50, found.within_p95, found.late, found.actual_over_predicted) == (0.4, 0.9, 0.1, 1.2)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (report(*[calls(answered=1)] * (MAX_CALL_REPORTS + 1)), "kinds of calls"),
        (
            route_pb2.ReportLatencyRequest(
                region=EUROPE, samples=[route_pb2.LatencySample(node="n")] * (MAX_NODES + 1)
            ),
            "2001 nodes",
        ),
        (report(calls(answered=1, objective="soon")), "objective 'soon'"),
        (report(calls(answered=10**9)), "1000000000 calls"),
        (report(route_pb2.CallReport(model="m", answered=1, within_p50=2)), "cannot be"),
        (report(calls(answered=1), region="No where"), "region"),
    ],
)
async def test_reports_are_checked(mesh: State, request_: route_pb2.ReportLatencyRequest, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        mesh.measurements.report(request_, kind="clients", reporter="c")
