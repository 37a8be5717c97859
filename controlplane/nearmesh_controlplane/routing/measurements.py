"""Where measurements come in: who may say what is checked here, and then believed as far as `LatencyBook` and
`DemandBook` do; `AccuracyBook` keeps how right predictions were, `CallersWord` what gateways see of nodes. It also
tells each node whom to measure."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from nearmesh.errors import InvalidInput
from nearmesh.routing import parse_objective
from nearmesh.v1 import node_pb2, route_pb2
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY, Registry
from nearmesh_controlplane.routing import accuracy, demand
from nearmesh_controlplane.routing.accuracy import Accuracy, AccuracyBook
from nearmesh_controlplane.routing.callers import CallersWord
from nearmesh_controlplane.routing.coordinates import Coordinates, Point
from nearmesh_controlplane.routing.demand import Claimant, DemandBook
from nearmesh_controlplane.routing.latency import LatencyBook
from nearmesh_controlplane.routing.peers import TURN_S, peers
from nearmesh_controlplane.routing.replicas import claimed

log = logging.getLogger(__name__)

# Bounds of one report: every model, objective and node of a large mesh, and no more.
MAX_NODES = 2_000
MAX_CALL_REPORTS = 5_000
MAX_PEER_SAMPLES = 64
# How often pairs that nobody measured are inferred anew, and what is gone is forgotten; and the part by which some
# pair must have changed to be worth it.
LEARN_EVERY_S = 10.0
NOTICEABLE = 0.05

# Where a node's mesh listener is for nodes of a region.
Reach = Callable[[str, Node], node_pb2.Peer]


class Measurements:
    """Takes reports over; `tick` twice a second, and `run` beside it."""

    def __init__(self, registry: Registry, catalog: Catalog, clock: Callable[[], float]) -> None:
        self.latencies = LatencyBook()
        self.demand = DemandBook()
        self.accuracy = AccuracyBook()
        self.callers = CallersWord()
        # Of whom gateways were last believed more than itself: for the log.
        self._contradicted: set[tuple[str, str]] = set()
        self._registry = registry
        self._catalog = catalog
        self._clock = clock
        self._peers: dict[str, tuple[node_pb2.Peer, ...]] = {}
        # By node, as it said last.
        self._utilization: dict[str, float] = {}
        self._learned: dict[tuple[Point, Point], float] = {}
        self._chosen_for: tuple[int, dict[str, str]] = (-1, {})

    def report(
        self, request: route_pb2.ReportLatencyRequest, *, kind: Claimant, reporter: str, over_s: float = 1.0
    ) -> None:
        """Takes over what a gateway or a client measured, calls of the last `over_s`. Raises InvalidInput.

        Nodes and models that are not there (any more) are passed over.
        """
        if len(request.samples) > MAX_NODES or len(request.calls) > MAX_CALL_REPORTS:
            raise InvalidInput(
                f"a report of {len(request.samples)} nodes and {len(request.calls)} kinds of calls; "
                f"at most {MAX_NODES} and {MAX_CALL_REPORTS} are taken"
            )
        now_s, known = self._clock(), {node.id for node in self._registry.serving_nodes()}
        calls = list(self._calls(request.calls))
        for sample in request.samples:
            if sample.node in known:
                self.latencies.report(
                    request.region, sample.node, sample.network_ms, kind=kind, reporter=reporter, now_s=now_s
                )
        if request.calls:
            asked = [demand.Calls(found.model, found.objective, found.answered + found.failed) for found in calls]
            self.demand.report(request.region, asked, kind=kind, reporter=reporter, now_s=now_s, over_s=over_s)
            named = [found if found.objective else self._by_policy(found) for found in calls]
            self.accuracy.report(request.region, named, kind=kind, now_s=now_s)
            if kind == "gateway":
                self._hold_against_claims(request, known, reporter, now_s)

    def node_status(self, node_id: str, status: node_pb2.NodeStatus) -> None:
        """Takes over what a node counted, and what it measured of others."""
        now_s, node = self._clock(), self._registry.get(node_id)
        # What a version on trial fails the standing one answers, and is counted there.
        counted = {r.digest: (r.model, r.answered + (0 if r.on_trial else r.failed)) for r in status.replicas}
        self.demand.answered(node_id, counted, now_s=now_s)
        if math.isfinite(status.utilization):
            self._utilization[node_id] = min(max(status.utilization, 0.0), 1.0)
        if not status.peers:
            return
        known = {other.id for other in self._registry.serving_nodes()}
        for sample in status.peers[:MAX_PEER_SAMPLES]:
            if sample.node not in known:
                continue
            try:
                self.latencies.report(
                    node.region, sample.node, sample.network_ms, kind="nodes", reporter=node_id, now_s=now_s
                )
            except InvalidInput as error:
                log.warning("node=%s measured nonsense of node=%s: %s", node_id, sample.node, error.message)

    def beyond_claim_ms(self, node_id: str, replica: node_pb2.ReplicaStatus) -> float:
        """By how much longer than it says a node takes, as far as gateways prove it."""
        pair = (replica.model, node_id)
        extra_ms = self.callers.extra_ms(pair, claimed(replica), now_s=self._clock())
        if (extra_ms > 0) != (pair in self._contradicted):
            self._contradicted ^= {pair}
            if extra_ms > 0:
                said = "node=%s model=%s: by what gateways see, calls take %.0f ms longer than the node says"
                log.warning(said, node_id, replica.model, extra_ms)
            else:
                log.info("node=%s model=%s: its own word on its speed counts again", node_id, replica.model)
        return extra_ms

    def utilization(self, node_id: str) -> float:
        """Share of the node that is taken by all it serves, 0 to 1, as it said last; 0 before it said anything."""
        return self._utilization.get(node_id, 0.0)

    def accuracy_now(self, model: str = "") -> Sequence[Accuracy]:
        """How right predictions were for the calls of late; of one model or of all."""
        return self.accuracy.accuracy(self._clock(), model)

    def demand_now(self) -> Mapping[demand.Key, float]:
        """Requests per second by client region, model and objective, on average."""
        models, found = frozenset(self._catalog.models()), dict[demand.Key, float]()
        for (region, model, wanted), per_s in self.demand.demand(self._clock(), forecast=False).items():
            if model in models:
                key = (region, model, wanted or self._catalog.policy(model).objective)
                found[key] = found.get(key, 0.0) + per_s
        return found

    def peers(self, node_id: str) -> Sequence[node_pb2.Peer]:
        """Whom a node measures at present."""
        return self._peers.get(node_id, ())

    def tick(self, reach: Reach) -> bool:
        """Turns to the next peers; True when some node's are others now."""
        serving = self._registry.serving_nodes()
        there = {node.id: node for node in serving if node.mesh_address and self._registry.presence(node.id) == "live"}
        turn = int(self._clock() // TURN_S)
        chosen_for = turn, {node.id: node.region for node in there.values()}
        if chosen_for == self._chosen_for:
            return False
        self._chosen_for, before = chosen_for, self._peers
        found = peers(chosen_for[1], turn)
        self._peers = {
            node: tuple(reach(there[node].region, there[other]) for other in others) for node, others in found.items()
        }
        return self._peers != before

    async def run(self) -> None:
        """For ever: learns from what was measured."""
        while True:
            await asyncio.sleep(LEARN_EVERY_S)
            await self.learn()

    async def learn(self) -> None:
        """Infers the pairs that nobody measured, and forgets what is gone."""
        serving = self._registry.serving_nodes()
        self.demand.forget((node.id for node in serving), self._catalog.models())
        self.accuracy.forget(self._catalog.models())
        here = {node.id for node in serving}
        self.callers.forget(self._catalog.models(), here, now_s=self._clock())
        regions = {node.id: node.region for node in serving}
        self._utilization = {node: share for node, share in self._utilization.items() if node in regions}
        measured = self.latencies.between_regions(regions, now_s=self._clock())
        if _alike(measured, self._learned):
            return
        self._learned = measured
        # A tenth of a second of arithmetic is nothing that the loop should wait for.
        self.latencies.infer_by(await asyncio.to_thread(Coordinates, measured))

    def _hold_against_claims(
        self, request: route_pb2.ReportLatencyRequest, known: Collection[str], gateway: str, now_s: float
    ) -> None:
        for calls in request.calls:
            ready = [
                claimed(replica)
                for replica in (self._registry.replicas(calls.node).values() if calls.node in known else ())
                if replica.model == calls.model and replica.state == READY
            ]
            if not ready or not calls.answered:
                continue
            region = self._registry.get(calls.node).region
            way = self.latencies.estimate(request.region, calls.node, region, now_s=now_s).times
            self.callers.report(
                (calls.model, calls.node),
                gateway,
                own_ms=calls.total_ms / calls.answered - way.p95_ms,
                calls=calls.answered,
                # Of several versions the slowest: it is not known which one answered.
                claim=max(ready, key=lambda times: times.p95_ms),
                now_s=now_s,
            )

    def _calls(self, reports: Iterable[route_pb2.CallReport]) -> Iterable[accuracy.Calls]:
        models = frozenset(self._catalog.models())
        for report in reports:
            if report.objective:
                parse_objective(report.objective)
            if report.model in models:
                yield _calls(report)

    def _by_policy(self, calls: accuracy.Calls) -> accuracy.Calls:
        return dataclasses.replace(calls, objective=self._catalog.policy(calls.model).objective)


def _calls(report: route_pb2.CallReport) -> accuracy.Calls:
    return accuracy.Calls(
        model=report.model,
        objective=report.objective,
        answered=report.answered,
        failed=report.failed,
        compared=report.compared,
        late=report.late,
        within_p50=report.within_p50,
        within_p95=report.within_p95,
        within_p99=report.within_p99,
        total_ms=report.total_ms,
        predicted_ms=report.predicted_ms,
    )


def _alike(a: Mapping[tuple[Point, Point], float], b: Mapping[tuple[Point, Point], float]) -> bool:
    return a.keys() == b.keys() and all(abs(ms - b[pair]) <= NOTICEABLE * b[pair] for pair, ms in a.items())
