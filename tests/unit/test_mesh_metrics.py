"""The control plane's page for Prometheus: each figure, and that reading it decides nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.peers.role import Alone, Self
from nearmesh_controlplane.prices.feed import FeedState
from nearmesh_controlplane.runs.folder import RoundRecord
from nearmesh_controlplane.runs.run import Asked, Run
from nearmesh_controlplane.runs.runs import Runs
from nearmesh_controlplane.web import metrics
from nearmesh_controlplane.web.metrics import MeshMetrics, Observed
from prometheus_client.parser import text_string_to_metric_families

from nearmesh.errors import NotLeader
from nearmesh.rpc import Identity
from nearmesh.v1 import node_pb2, route_pb2
from tests.control_plane_state import State, alone, replica, state

EUROPE, AMERICA = "europe-west1", "us-east1"
Labels = tuple[tuple[str, str], ...]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        await found.publish("m")
        await found.node("a", EUROPE)
        await found.join("door", EUROPE, kind="gateway")
        await found.reports("a", replica())
        yield found


def observed(mesh: State, **more: Any) -> Observed:
    parts = {"changes": mesh.changes, "registry": mesh.registry, "router": mesh.router}
    return Observed(**parts, measurements=mesh.measurements, **{"role": alone(), **more})


def read(source: Observed) -> dict[str, dict[Labels, float]]:
    """By name and labels, as Prometheus reads them."""
    made = MeshMetrics(source)
    page = made.written(made.read()).decode()
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def calls_of_m(answered: int) -> route_pb2.CallReport:
    return route_pb2.CallReport(model="m", answered=answered)


def labels(**values: str) -> Labels:
    return tuple(sorted(values.items()))


async def test_how_right_predictions_were(mesh: State) -> None:
    told = route_pb2.CallReport(model="m", answered=10, failed=1, compared=10, late=2)
    told.within_p50, told.within_p95, told.within_p99 = 4, 8, 9
    told.total_ms, told.predicted_ms = 1500.0, 1000.0
    report = route_pb2.ReportLatencyRequest(region=EUROPE, calls=[told])
    mesh.measurements.report(report, kind="gateway", reporter="door")
    report.calls[0].CopyFrom(calls_of_m(5))
    mesh.measurements.report(report, kind="clients", reporter="app")
    found, what = read(observed(mesh)), {"region": EUROPE, "model": "m", "objective": "cheapest-in-time"}
    gateway, clients = labels(**what, reporter="gateway"), labels(**what, reporter="clients")
    assert found["nearmesh_calls_answered_total"] == {gateway: 10, clients: 5}
    assert found["nearmesh_calls_failed_total"][gateway] == 1
    assert found["nearmesh_calls_late_total"][gateway] == 2
    # Whom nobody compared with a prediction has no share of anything.
    assert found["nearmesh_late_ratio"] == {gateway: 0.2}
    assert found["nearmesh_prediction_actual_ratio"] == {gateway: 1.5}
    by_quantile = {dict(key)["quantile"]: value for key, value in found["nearmesh_prediction_coverage_ratio"].items()}
    assert by_quantile == {"0.5": 0.4, "0.95": 0.8, "0.99": 0.9}


async def test_demand_is_summed_up_under_the_objective_that_counts(mesh: State) -> None:
    for second in range(30):
        mesh.clock.now_s += 1
        status = replica()
        status.answered = 100 * second
        mesh.measurements.node_status("a", node_pb2.NodeStatus(replicas=[status]))
        calls = [
            route_pb2.CallReport(model="m", answered=30, objective=objective) for objective in ("", "cheapest-in-time")
        ]
        report = route_pb2.ReportLatencyRequest(region=EUROPE, calls=calls)
        mesh.measurements.report(report, kind="gateway", reporter="door")
    found = read(observed(mesh))["nearmesh_demand_per_second"]
    assert found == {labels(region=EUROPE, model="m", objective="cheapest-in-time"): pytest.approx(60, rel=0.05)}


async def test_the_busiest_are_told_of_when_there_are_too_many(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 2)
    for number in range(4):
        report = route_pb2.ReportLatencyRequest(region=f"r{number}", calls=[calls_of_m(10 * number)])
        mesh.measurements.report(report, kind="clients", reporter="app")
    found = read(observed(mesh))["nearmesh_calls_answered_total"]
    assert sorted(dict(key)["region"] for key in found) == ["r2", "r3"]


async def test_a_scrape_plans_nothing(mesh: State) -> None:
    source = observed(mesh)
    assert read(source)["nearmesh_plans_total"] == {(): 0}
    mesh.router.decide("m", EUROPE)
    mesh.changes.bump()
    for _ in range(2):
        found = read(source)
        assert found["nearmesh_plans_total"] == {(): 1}
    assert 0 < found["nearmesh_plan_seconds"][()] == found["nearmesh_planning_seconds_total"][()]
    assert (found["nearmesh_moving"][()], found["nearmesh_unplaced_per_second"][()]) == (0, 0)
    assert found["nearmesh_generation"][()] == mesh.changes.value


async def test_machines_by_presence(mesh: State) -> None:
    await mesh.node("b", AMERICA)
    mesh.registry.session_closed("b")
    found = read(observed(mesh))["nearmesh_nodes"]
    assert {key: value for key, value in found.items() if value} == {
        labels(kind="node", presence="live"): 1,
        labels(kind="node", presence="suspect"): 1,
        labels(kind="gateway", presence="gone"): 1,
    }
    assert len(found) == 6, "also what there is none of: an alert needs a series"


async def test_federated_runs_by_what_they_are_at(mesh: State) -> None:
    runs = Runs(mesh.db, Audit(mesh.db))
    values = {"model": "m", "parent_version": "1", "parent_digest": "d", "actor": "me", "created_at_s": 1.0}
    for id in ("r1", "r2"):
        await runs.start(Run(id=id, asked=Asked(rounds=1), **values), b"", Identity("me", "data"))
    await runs.step(await runs.get("r2"), lambda run: dataclasses.replace(run, state="rolling out", resumed=3))
    await runs.take_round("r2", RoundRecord(number=0, began_at_s=0.0, ended_at_s=1.0), None)
    found = read(observed(mesh, runs=runs))
    counts = {dict(labels)["state"]: value for labels, value in found["nearmesh_runs"].items()}
    assert {state: value for state, value in counts.items() if value} == {"waiting": 1, "rolling_out": 1}
    assert (found["nearmesh_run_rounds_total"][()], found["nearmesh_runs_taken_up_again_total"][()]) == (1, 3)


async def test_delivery_the_feed_and_who_leads(mesh: State) -> None:
    bare = read(observed(mesh))
    assert bare["nearmesh_leading"] == {(): 1}
    assert not {name for name in bare if "xds" in name or "feed" in name or "load" in name}

    class Follower(Alone):
        def check_leads(self) -> None:
            raise NotLeader("another one leads")

    good = FeedState(source="prices.csv", read_at_s=5.0)
    feed = SimpleNamespace(state=good)
    source = observed(
        mesh,
        role=Follower(Self(id="b", incarnation="1", public="", mesh="", http=""), 1),
        feed=cast(Any, feed),
        discovery=cast(Any, SimpleNamespace(streams=3, pushed=7, refused=1)),
        load_reports=cast(Any, SimpleNamespace(streams=2)),
    )
    found = read(source)
    names = ("leading", "xds_streams", "xds_pushes_total", "xds_refused_total", "load_report_streams")
    assert [found[f"nearmesh_{name}"][()] for name in names] == [0, 3, 7, 1, 2]
    assert (found["nearmesh_price_feed_ok"][()], found["nearmesh_price_feed_read_time_seconds"][()]) == (1, 5)
    feed.state = dataclasses.replace(good, error="line 3")
    assert read(source)["nearmesh_price_feed_ok"] == {(): 0}
