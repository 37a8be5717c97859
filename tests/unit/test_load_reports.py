"""Load reports of plain xDS clients: who may send them, and what is taken from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from envoy.service.load_stats.v3 import lrs_pb2
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.routing import load_reports
from nearmesh_controlplane.routing.load_reports import MAX_CLUSTERS, LoadReports, calls_of

from nearmesh import rpc
from nearmesh.errors import DeadlineExceeded, InvalidInput, MeshError, PermissionDenied, Unauthenticated
from nearmesh.rpc import NOBODY, Identity
from tests.control_plane_state import State, replica, state

REGION = "europe-west1"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path / "state") as found:
        await found.publish("m")
        await found.node("n")
        yield found


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open("mesh", tmp_path / "authority")


def request(*clusters: dict[str, Any], token: str = "", region: str = REGION) -> lrs_pb2.LoadStatsRequest:
    made = lrs_pb2.LoadStatsRequest()
    made.node.locality.region = region
    if token:
        made.node.metadata["token"] = token
    for cluster in clusters:
        made.cluster_stats.add(**cluster).load_report_interval.FromSeconds(1)
    return made


def cluster(name: str, *, node: str = "n", good: int = 0, bad: int = 0, service: str = "") -> dict[str, Any]:
    locality = {
        "locality": {"region": "r", "zone": "z", "sub_zone": node},
        "total_successful_requests": good,
        "total_error_requests": bad,
    }
    return {"cluster_name": name, "cluster_service_name": service, "upstream_locality_stats": [locality]}


def access_token(authority: Authority, role: str = "client") -> str:
    return authority.issuer.access("app", role, now_s=time.time(), lifetime_s=600)


async def run(mesh: State, authority: Authority, *requests: lrs_pb2.LoadStatsRequest) -> list[Any]:
    async def coming() -> AsyncIterator[lrs_pb2.LoadStatsRequest]:
        for one in requests:
            yield one

    service = LoadReports(mesh.measurements, authority.verifier())
    try:
        return [answer async for answer in service.StreamLoadStats(coming(), None)]
    finally:
        assert service.streams == 0


def test_a_clusters_name_tells_model_and_objective() -> None:
    stats = request(
        cluster("m", good=3, bad=1), cluster("m/nearest", node="o", good=2), cluster("x", service="m")
    ).cluster_stats
    found = [(c.model, c.objective, c.node, c.answered, c.failed) for c in calls_of(stats)]
    assert found == [("m", "", "n", 3, 1), ("m", "nearest", "o", 2, 0), ("m", "", "n", 0, 0)]


def test_a_report_is_bounded() -> None:
    stats = request(*[cluster("m")] * (MAX_CLUSTERS + 1)).cluster_stats
    with pytest.raises(InvalidInput, match="1000 clusters"):
        list(calls_of(stats))


async def test_reports_are_demand_from_the_clients_region(
    mesh: State, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_reports, "LEAST_BETWEEN_S", 0.0)
    rpc._caller.set(NOBODY)
    for second in range(2):
        mesh.clock.now_s += 1
        status = replica()
        status.answered = 10 * second
        mesh.measurements.demand.answered("n", {"d": ("m", status.answered)}, now_s=mesh.clock())
    token = access_token(authority)
    answers = await run(mesh, authority, request(token=token), request(cluster("m", good=10), cluster("gone", good=5)))
    assert [(a.send_all_clusters, a.load_reporting_interval.seconds) for a in answers] == [(True, 10)]
    assert set(mesh.measurements.demand.demand(mesh.clock())) == {(REGION, "m", "")}


async def test_an_interval_beyond_all_times_is_no_failure(
    mesh: State, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_reports, "LEAST_BETWEEN_S", 0.0)
    rpc._caller.set(NOBODY)
    endless = request(cluster("m", good=10))
    endless.cluster_stats[0].load_report_interval.seconds = 2**62
    assert len(await run(mesh, authority, request(token=access_token(authority)), endless)) == 1


@pytest.mark.parametrize(
    ("who", "role", "region", "error"),
    [
        (NOBODY, "", REGION, Unauthenticated),
        (Identity("n", "node"), "", REGION, PermissionDenied),
        (NOBODY, "client", "No where", InvalidInput),
        (NOBODY, "client", "", InvalidInput),
    ],
)
async def test_strangers_and_nonsense_are_refused(
    mesh: State, authority: Authority, who: Identity, role: str, region: str, error: type[MeshError]
) -> None:
    rpc._caller.set(who)
    token = access_token(authority, role) if role else ""
    with pytest.raises(error):
        await run(mesh, authority, request(token=token, region=region))


async def test_a_stream_that_says_nothing_ends(
    mesh: State, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_reports, "ASK_WITHIN_S", 0.01)

    async def silence() -> AsyncIterator[lrs_pb2.LoadStatsRequest]:
        await asyncio.Event().wait()
        yield request()

    rpc._caller.set(NOBODY)
    service = LoadReports(mesh.measurements, authority.verifier())
    with pytest.raises(DeadlineExceeded, match="said nothing"):
        await anext(aiter(service.StreamLoadStats(silence(), None)))
    assert await run(mesh, authority) == []
