"""Facts for the planner, gathered from a real registry and catalog."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from nearmesh_controlplane.routing.demand import Calls
from nearmesh_controlplane.routing.facts import Facts, ModelFacts
from nearmesh_controlplane.routing.gather import LOOK_AGAIN_S, Gatherer
from nearmesh_controlplane.routing.moves import JOINING_S
from nearmesh_controlplane.routing.replicas import MAX_MS, MAX_PER_S

from nearmesh.package import RoutePolicy
from nearmesh.routing import Times
from nearmesh.v1 import node_pb2, route_pb2
from tests.control_plane_state import LEASE_S, State, replica, state

EUROPE, AMERICA = "europe-west1", "us-east1"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        await found.publish("m", policy=RoutePolicy(objective="nearest", deadline_ms=120.0, regions=(EUROPE,)))
        for name, region in (("eu", EUROPE), ("us", AMERICA)):
            await found.node(name, region, usd=2.0, hardware="h")
            await found.reports(name, replica())
        yield found


def gatherer(mesh: State) -> Gatherer:
    return Gatherer(mesh.registry, mesh.catalog, mesh.measurements, mesh.residency, mesh.prices, mesh.clock)


def only(facts: Facts) -> ModelFacts:
    (model,) = facts.models
    return model


async def test_what_nodes_and_owners_said(mesh: State) -> None:
    facts = gatherer(mesh).facts(["asia-northeast1"])
    assert [(n.id, n.region, n.usd_per_hour, n.standing) for n in facts.nodes] == [
        ("eu", EUROPE, 2.0, "live"),
        ("us", AMERICA, 2.0, "live"),
    ]
    assert facts.regions == ("asia-northeast1", EUROPE, AMERICA)
    model = only(facts)
    assert (model.objective, model.deadline_ms, model.regions) == ("nearest", 120.0, {EUROPE})
    assert model.replicas["eu"].service == Times.certain(5.0) and model.replicas["eu"].per_s == 10.0
    assert set(facts.network) == {(region, n) for region in facts.regions for n in ("eu", "us")}


async def test_a_version_on_trial_is_not_what_a_node_is_measured_by(mesh: State) -> None:
    trial = replica("m", "2", service_ms=500.0, per_second=0.1)
    trial.on_trial = True
    for order in ((trial, replica()), (replica(), trial)):
        await mesh.reports("eu", *order)
        fact = only(gatherer(mesh).facts([])).replicas["eu"]
        assert (fact.service, fact.per_s) == (Times.certain(5.0), 10.0)
    await mesh.reports("eu", trial)
    assert "eu" not in only(gatherer(mesh).facts([])).replicas, "alone it serves nobody"


async def test_times_come_as_distributions_and_waiting_apart(mesh: State) -> None:
    found = replica()
    found.service_ms_quantiles[:] = [5, 6, 8, 10, 12, 15, 30]
    found.queue_ms_quantiles[:] = [0, 0, 1, 2, 4, 6, 20]
    await mesh.reports("eu", found)
    fact = only(gatherer(mesh).facts([])).replicas["eu"]
    assert fact.queue == Times((0.0, 0.0, 1.0, 2.0, 4.0, 6.0, 20.0))
    assert fact.service == Times((5.0, 6.0, 7.0, 8.0, 8.0, 9.0, 10.0))


@pytest.mark.parametrize("quantiles", [[5, 6, 8], [9, 8, 7, 6, 5, 4, 3], [-1, 6, 8, 10, 12, 15, float("nan")]])
async def test_what_is_no_distribution_is_passed_over(mesh: State, quantiles: list[float]) -> None:
    found = replica()
    found.service_ms_quantiles[:] = quantiles
    await mesh.reports("eu", found)
    assert only(gatherer(mesh).facts([])).replicas["eu"].service == Times.certain(5.0)


HUGE, NAN, INF = 1.7e308, float("nan"), float("inf")
NONSENSE: list[dict[str, object]] = [
    {"service_ms_p50": 1e-200, "service_ms_p95": 1e100},
    {"service_ms_p50": 1.0, "service_ms_p95": INF},
    {"service_ms_p50": NAN, "service_ms_p95": 5.0},
    {"service_ms_p50": -5.0, "service_ms_p95": -5.0},
    {"service_ms_quantiles": [HUGE] * 7},
    {"service_ms_quantiles": [0.0] * 6 + [HUGE], "queue_ms_quantiles": [HUGE] * 7},
    {"queue_ms_quantiles": [NAN] * 7},
    *({"cold": True, "load_ms": ms} for ms in (NAN, INF, -1e9, HUGE)),
    *({"inferences_per_second": per_s} for per_s in (NAN, INF, -1.0, HUGE, 1e-300)),
    {"answered": 1, "bytes_in": 2**63, "bytes_out": 2**63},
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("said", NONSENSE, ids=str)
async def test_a_nodes_nonsense_does_it_no_good_and_keeps_nobody_from_deciding(
    mesh: State, said: dict[str, object]
) -> None:
    await mesh.node("liar", AMERICA, usd=2.0, hardware="of its own")
    found = replica()
    for name, value in said.items():
        if isinstance(value, list):
            getattr(found, name)[:] = value
        else:
            setattr(found, name, value)
    await mesh.publish("anywhere", policy=RoutePolicy(objective="cheapest-in-time"))
    for node, status in (("liar", found), ("eu", replica())):
        status.model = "anywhere"
        await mesh.reports(node, status)
    calls = [Calls("anywhere", "", 5)]
    for second in range(4):
        mesh.measurements.demand.answered("eu", {"d": ("anywhere", 5 * second)}, now_s=mesh.clock())
        mesh.measurements.demand.report(EUROPE, calls, kind="gateway", reporter="g", now_s=mesh.clock())
        mesh.clock.now_s += 1
    for objective in ("cheapest-in-time", "nearest", "cheapest"):
        shares = mesh.router.plan.shares(EUROPE, "anywhere", objective)
        assert not shares or sum(shares.values()) == pytest.approx(1.0)
    fact = next(m for m in gatherer(mesh).facts([]).models if m.name == "anywhere").replicas["liar"]
    assert 0 <= fact.service.ms[0] <= fact.service.ms[-1] <= MAX_MS and 0 <= fact.load_ms <= MAX_MS
    assert 0 <= fact.per_s <= MAX_PER_S
    again = next(m for m in mesh.router.plan.facts.models if m.name == "anywhere").replicas["liar"]
    mesh.clock.now_s += 1
    mesh.changes.bump()
    assert next(m for m in mesh.router.plan.facts.models if m.name == "anywhere").replicas["liar"] is again


async def test_a_version_out_of_memory_takes_its_load_along(mesh: State) -> None:
    cold = replica()
    cold.cold, cold.load_ms = True, 700.0
    await mesh.reports("eu", cold)
    assert only(gatherer(mesh).facts([])).replicas["eu"].load_ms == 700.0


async def test_the_lost_count_where_there_is_nobody_else(mesh: State) -> None:
    mesh.registry.session_closed("us")
    facts = gatherer(mesh).facts([])
    assert [n.standing for n in facts.nodes] == ["live", "suspect"] and set(only(facts).replicas) == {"eu", "us"}
    mesh.clock.now_s += LEASE_S
    model = only(gatherer(mesh).facts([]))
    assert set(model.replicas) == {"eu"} and model.absent == {"us": "its session with the control plane is gone"}
    mesh.registry.session_closed("eu")
    mesh.clock.now_s += LEASE_S
    assert set(only(gatherer(mesh).facts([])).replicas) == {"eu", "us"}


async def test_who_leaves_or_failed_says_why(mesh: State) -> None:
    await mesh.registry.drain("eu", undo=False)
    await mesh.reports("us", replica(state=node_pb2.REPLICA_STATE_FAILED, detail="WARMUP_FAILED: off by one"))
    model = only(gatherer(mesh).facts([]))
    assert model.absent == {"eu": "it is being drained", "us": "WARMUP_FAILED: off by one"}


async def test_demand_is_by_the_objective_that_was_meant(mesh: State) -> None:
    for second in range(30):
        mesh.clock.now_s += 1
        calls = [Calls("m", "", 30), Calls("m", "cheapest", 10)]
        mesh.measurements.demand.report(EUROPE, calls, kind="gateway", reporter="door", now_s=mesh.clock.now_s)
        mesh.measurements.demand.answered("eu", {"d": ("m", 40 * second)}, now_s=mesh.clock.now_s)
    demand = gatherer(mesh).facts([]).demand
    assert set(demand) == {(EUROPE, "m", "nearest"), (EUROPE, "m", "cheapest")}
    assert demand[EUROPE, "m", "nearest"] == pytest.approx(30.0, rel=0.2)


async def test_how_long_a_replica_has_been_ready(mesh: State) -> None:
    facts = gatherer(mesh).facts([])
    assert facts.ready_for_s == {("eu", "m"): 0.0, ("us", "m"): 0.0}
    mesh.clock.now_s += 7
    assert gatherer(mesh).facts([]).ready_for_s["eu", "m"] == 7.0


async def test_what_has_hardly_changed_is_the_same_object(mesh: State) -> None:
    """Or everything that hangs on it would be worked out anew each second."""
    gathered = gatherer(mesh)
    before = gathered.facts([])
    mesh.clock.now_s += LOOK_AGAIN_S
    await mesh.reports("eu", replica(service_ms=5.1, per_second=10.2))
    after = gathered.facts([])
    assert only(after).replicas["eu"] is only(before).replicas["eu"]
    assert all(after.network[pair] is before.network[pair] for pair in before.network)
    await mesh.reports("eu", replica(service_ms=6.0))
    assert only(gathered.facts([])).replicas["eu"].service == Times.certain(6.0)


async def test_what_is_asked_about_other_regions_fills_no_memory(mesh: State) -> None:
    found = gatherer(mesh)
    found.facts(["asia-northeast1"])
    kept = len(found._network)
    eu = mesh.registry.get("eu")
    assert [found.network(f"region-{n}", eu)[1] for n in range(3)] == ["distance"] * 3
    assert len(found._network) == kept == 3 * 2
    found.facts([])
    assert len(found._network) == 2 * 2


async def test_network_times_are_looked_at_every_other_second(mesh: State) -> None:
    gathered, eu = gatherer(mesh), mesh.registry.get("eu")
    gathered.facts([])
    mesh.latencies.report(EUROPE, "eu", [40.0] * 9, kind="gateway", reporter="door", now_s=mesh.clock.now_s)
    assert gathered.network(EUROPE, eu)[0].p50_ms < 2.0
    mesh.clock.now_s += LOOK_AGAIN_S
    times, source = gathered.network(EUROPE, eu)
    assert times.p50_ms == pytest.approx(40.0, rel=0.02) and source == "gateway"


async def test_the_size_of_requests_is_what_nodes_counted_and_stays_until_it_moves(mesh: State) -> None:
    def moved(answered: int, bytes_in: int, bytes_out: int) -> node_pb2.ReplicaStatus:
        found = replica()
        found.answered, found.bytes_in, found.bytes_out = answered, bytes_in, bytes_out
        return found

    def sizes() -> tuple[float, float]:
        mesh.clock.now_s += LOOK_AGAIN_S
        model = only(gather.facts([]))
        return model.transfer_bytes, model.answer_bytes

    gather = gatherer(mesh)
    assert sizes() == (0, 0), "nobody knows it yet"
    # An agent that does not count bytes says nothing of them.
    await mesh.reports("eu", moved(1000, 0, 0))
    await mesh.reports("us", moved(10, 40_000, 10_000))
    assert sizes() == (5_000, 1_000)
    await mesh.reports("eu", moved(10, 43_000, 10_500))
    assert sizes() == (5_000, 1_000), "not noticeably another one"
    await mesh.reports("eu", moved(30, 200_000, 10_500))
    assert sizes() == (6_000 + 20_500 / 40, 20_500 / 40)
    # Both start anew; what was known is better than nothing.
    for name in ("eu", "us"):
        await mesh.reports(name, replica())
    assert sizes() == (6_000 + 20_500 / 40, 20_500 / 40)


async def test_a_model_about_which_nobody_says_anything_new_is_the_same_object(mesh: State) -> None:
    """Whatever is reported: of a hundred models on two hundred nodes a change concerns a few."""
    await mesh.publish("other")
    await mesh.reports("us", replica(), replica("other"))
    gathered = gatherer(mesh)
    before = gathered.facts([])
    await mesh.reports("us", replica(), replica("other"))
    await mesh.registry.set_price("eu", 7.0)
    mesh.clock.now_s += 10 * LOOK_AGAIN_S
    after = gathered.facts([])
    assert all(x is y for x, y in zip(before.models, after.models, strict=True))
    assert before.nodes[0] is not after.nodes[0] and before.nodes[1] is after.nodes[1]
    await mesh.reports("eu", replica(service_ms=50.0))
    m, other = gathered.facts([]).models
    assert m.replicas["eu"].service == Times.certain(50.0) and other is after.models[1]


async def test_a_model_is_another_one_when_a_rule_or_a_node_is(mesh: State) -> None:
    gathered = gatherer(mesh)
    assert set(only(gathered.facts([])).replicas) == {"eu", "us"}
    await mesh.catalog.set_policy("m", "cheapest", 500.0)
    assert only(gathered.facts([])).deadline_ms == 500.0
    await mesh.registry.drain("eu", undo=False)
    assert set(only(gathered.facts([])).replicas) == {"us"}
    await mesh.node("new", AMERICA, hardware="h")
    assert only(gathered.facts([])).absent["new"] == "it has no replica of this model"
    await mesh.reports("us")
    assert not only(gathered.facts([])).replicas


async def test_which_of_two_versions_counts_is_looked_up_each_time(mesh: State) -> None:
    await mesh.publish("m", "2")
    await mesh.reports("eu", replica(service_ms=5.0), replica(version="2", service_ms=50.0))
    gathered = gatherer(mesh)
    for version, service_ms in (("1", 5.0), ("2", 50.0), ("1", 5.0)):
        await mesh.catalog.deploy("m", version, (), "tester")
        assert only(gathered.facts([])).replicas["eu"].service == Times.certain(service_ms)


async def test_how_large_requests_are_is_looked_at_later_also_when_nodes_are_silent_since(mesh: State) -> None:
    gathered, found = gatherer(mesh), replica()
    gathered.facts([])
    found.answered, found.bytes_in, found.bytes_out = 10, 40_000, 10_000
    await mesh.reports("us", found)
    assert only(gathered.facts([])).transfer_bytes == 0
    mesh.clock.now_s += LOOK_AGAIN_S
    assert only(gathered.facts([])).transfer_bytes == 5_000


async def test_who_has_long_been_ready_is_left_out(mesh: State) -> None:
    mesh.clock.now_s += JOINING_S
    assert gatherer(mesh).facts([]).ready_for_s == {}


async def test_what_gateways_see_counts_where_a_node_says_less_than_it_takes(
    mesh: State, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that lies about its speed is not sent calls that it answers late."""
    await mesh.join("door", EUROPE, kind="gateway")
    found = gatherer(mesh)
    assert only(found.facts([])).replicas["eu"].service == Times.certain(5.0)

    def tells(kind: Literal["gateway", "clients"]) -> None:
        for _ in range(40):
            mesh.clock.now_s += 1.0
            calls = [
                route_pb2.CallReport(model="m", node="eu", answered=10, total_ms=4000.0),
                route_pb2.CallReport(model="m", node="us", answered=10, total_ms=1000.0),
            ]
            samples = [route_pb2.LatencySample(node=node, network_ms=[95.0]) for node in ("eu", "us")]
            request = route_pb2.ReportLatencyRequest(region=EUROPE, calls=calls, samples=samples)
            mesh.measurements.report(request, kind=kind, reporter="door")

    tells("clients")
    assert only(found.facts([])).replicas["eu"].service == Times.certain(5.0), "a client may say anything"
    tells("gateway")
    replicas = only(found.facts([])).replicas
    assert replicas["eu"].service.p50_ms == pytest.approx(305.0, abs=10.0)
    assert replicas["us"].service == Times.certain(5.0)
    assert "node=eu model=m: by what gateways see, calls take" in caplog.text
    large = replica()
    large.answered, large.bytes_in, large.bytes_out = 10, 10_000_000, 1_000
    await mesh.reports("eu", large)
    mesh.clock.now_s += LOOK_AGAIN_S
    assert only(found.facts([])).replicas["eu"].service == Times.certain(5.0), (
        "a body of a megabyte is on its way longer"
    )
