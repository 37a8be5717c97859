"""Decides which node serves whom: the registry's facts in, ranked candidates and route tables out.

Everything is computed anew after a change and kept until the next one: asking is cheap, and who asks why hears the
decision that gateways and clients were given, not one of a moment later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from nearmesh.ids import node_server_name
from nearmesh.routing import OBJECTIVES, Candidate, Objective, Ranked, parse_objective, rank, usd_per_1000
from nearmesh.routing.table import Endpoint, Listener, ModelRoutes, RouteTable
from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.config import EndpointOverride
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.nodes import READY, Node, Presence, Registry
from nearmesh_controlplane.routing.latency import LatencyBook

K = TypeVar("K")
V = TypeVar("V")

# Clients say which region they are in; whatever they say, no more than this is remembered of each kind.
MAX_KEPT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The ranking of one model for one client region, and what it was decided by."""

    model: str
    region: str
    objective: Objective
    deadline_ms: float
    ranking: tuple[Ranked, ...]


class Router:
    """The present routes. Implements `RouteSource` for xDS."""

    def __init__(
        self,
        mesh: str,
        registry: Registry,
        catalog: Catalog,
        latencies: LatencyBook,
        changes: Generation,
        overrides: Iterable[EndpointOverride],
        clock: Callable[[], float],
    ) -> None:
        self._mesh = mesh
        self._registry = registry
        self._catalog = catalog
        self._latencies = latencies
        self._changes = changes
        self._overrides = {(o.client_region, o.node, o.listener): o.address for o in overrides}
        self._clock = clock
        self._tables: dict[tuple[str, Listener], tuple[int, RouteTable]] = {}
        self._decisions: dict[tuple[str, str, str], tuple[int, Decision]] = {}
        # The present choice per region, model and objective, which keeps a near tie.
        self._current: dict[tuple[str, str, str], str] = {}

    async def changed(self, after: int) -> int:
        return await self._changes.above(after)

    def table(self, region: str, listener: Listener) -> RouteTable:
        seen = self._changes.value
        known = self._tables.get((region, listener))
        if known is None or known[0] != seen:
            known = (seen, self._table(region, listener))
            _keep(self._tables, (region, listener), known)
        return known[1]

    def decide(self, model: str, region: str, objective: Objective | None = None) -> Decision:
        """Every node of the mesh, ranked for `model`; those that cannot serve stand last. Raises NotFound."""
        self._catalog.versions(model)
        wanted = objective or self._catalog.policy(model).objective
        seen, key = self._changes.value, (region, model, wanted)
        known = self._decisions.get(key)
        if known is None or known[0] != seen:
            known = (seen, self._decide(model, region, wanted))
            _keep(self._decisions, key, known)
        return known[1]

    def _decide(self, model: str, region: str, objective: Objective) -> Decision:
        deadline_ms, key = self._catalog.policy(model).deadline_ms, (region, model, objective)
        candidates = self._candidates(model, region)
        firm = [c for c in candidates if not c.unready_why]
        ranking = rank(firm, objective, deadline_ms, current=self._current.get(key))
        if ranking and ranking[0].candidate.ready:
            _keep(self._current, key, ranking[0].candidate.node)
        # Whose session just broke is tried after everyone who is certain, whoever cannot serve is only explained.
        doubtful = [c for c in candidates if c.unready_why and c.ready]
        ranking += [_doubted(r) for r in rank(doubtful, objective, deadline_ms)]
        ranking += rank([c for c in candidates if not c.ready], objective, deadline_ms)
        return Decision(
            model=model, region=region, objective=objective, deadline_ms=deadline_ms, ranking=tuple(ranking)
        )

    def address(self, region: str, node: Node, listener: Listener) -> str:
        """Where clients of `region` reach the node."""
        own = node.public_address if listener == "public" else node.mesh_address
        return self._overrides.get((region, node.id, listener), own)

    def server_name(self, node: str) -> str:
        return node_server_name(self._mesh, node)

    def network_time(self, region: str, node: Node) -> tuple[float, float, bool]:
        """Median and 95th percentile of the round trip, milliseconds, and whether it was measured."""
        found = self._latencies.estimate(region, node.id, node.region, now_s=self._clock())
        return found.p50_ms, found.p95_ms, found.measured

    def _table(self, region: str, listener: Listener) -> RouteTable:
        return RouteTable(
            region=region,
            models={model: self._routes(model, region, listener) for model in self._catalog.models()},
            nearest=self._nearest(region, listener),
        )

    def _routes(self, model: str, region: str, listener: Listener) -> ModelRoutes:
        by_objective: dict[str, tuple[Endpoint, ...]] = {}
        for objective in map(parse_objective, OBJECTIVES):
            ranking = self.decide(model, region, objective).ranking
            ready = [self._registry.get(r.candidate.node) for r in ranking if r.candidate.ready]
            by_objective[objective] = tuple(self._endpoint(region, node, listener) for node in ready)
        return ModelRoutes(default_objective=self._catalog.policy(model).objective, by_objective=by_objective)

    def _nearest(self, region: str, listener: Listener) -> tuple[Endpoint, ...]:
        staying = [node for node in self._registry.serving_nodes() if not self._registry.leaving(node.id)]
        up = [node for node in staying if self._registry.presence(node.id) != "gone"] or staying
        up.sort(key=lambda n: (self._registry.presence(n.id) != "live", self.network_time(region, n)[0], n.id))
        return tuple(self._endpoint(region, node, listener) for node in up)

    def _endpoint(self, region: str, node: Node, listener: Listener) -> Endpoint:
        return Endpoint(node=node.id, site=node.site, region=node.region, address=self.address(region, node, listener))

    def _candidates(self, model: str, region: str) -> list[Candidate]:
        nodes = self._registry.serving_nodes()
        speeds = _speeds(model, nodes, self._registry)
        replicas = [self._replica(model, node) for node in nodes]
        if not any(replica for replica, _ in replicas):
            # For this model alone, whatever else is live: to try a node that was lost, and may only be cut off from the
            # control plane, is better than an empty route.
            replicas = [self._replica(model, node, gone_too=True) for node in nodes]
        return [
            self._candidate(region, node, replica, why, speeds)
            for node, (replica, why) in zip(nodes, replicas, strict=True)
        ]

    def _candidate(
        self,
        region: str,
        node: Node,
        replica: pb.ReplicaStatus | None,
        why: str,
        speeds: Mapping[tuple[str, str], float],
    ) -> Candidate:
        p50, p95, measured = self.network_time(region, node)
        speed = speeds.get((node.hardware, replica.variant), 0.0) if replica else 0.0
        return Candidate(
            node=node.id,
            site=node.site,
            region=node.region,
            ready=replica is not None,
            unready_why=why,
            network_ms_p50=p50,
            network_ms_p95=p95,
            network_measured=measured,
            service_ms_p50=replica.service_ms_p50 if replica else math.nan,
            service_ms_p95=replica.service_ms_p95 if replica else math.inf,
            usd_per_hour=node.usd_per_hour,
            usd_per_1000=usd_per_1000(node.usd_per_hour, speed) if speed else math.inf,
        )

    def _replica(self, model: str, node: Node, *, gone_too: bool = False) -> tuple[pb.ReplicaStatus | None, str]:
        """The node's ready replica, and a doubt or the reason why there is none."""
        presence = self._registry.presence(node.id)
        known = [r for r in self._registry.replicas(node.id).values() if r.model == model]
        ready = [r for r in known if r.state == READY]
        if presence == "gone" and not gone_too:
            return None, "its session with the control plane is gone"
        if self._registry.leaving(node.id):
            return None, "it is being drained"
        if not ready:
            return None, next((r.detail for r in known if r.detail), "it has no replica of this model")
        # While versions change, both the old and the new one may be ready; the deployed one is what serves.
        deployed = self._catalog.deployed(model, node.site)
        replica = next((r for r in ready if deployed and r.digest == deployed.digest), ready[0])
        return replica, _DOUBTS[presence]


_DOUBTS: dict[Presence, str] = {
    "live": "",
    "suspect": "its session just broke",
    "gone": "its session is gone, but no live node serves this model",
}


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Keeps a value instead of the one that was set longest ago, once there are too many."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > MAX_KEPT:
        del kept[next(iter(kept))]


def _speeds(model: str, nodes: Iterable[Node], registry: Registry) -> dict[tuple[str, str], float]:
    """Inferences per second by hardware and variant: the median over like nodes.

    Twins are equally fast, so that a price decides between them and not whose stopwatch was disturbed.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for node in nodes:
        for replica in registry.replicas(node.id).values():
            if replica.model == model and replica.state == READY and replica.inferences_per_second > 0:
                found.setdefault((node.hardware, replica.variant), []).append(replica.inferences_per_second)
    return {key: sorted(values)[len(values) // 2] for key, values in found.items()}


def _doubted(ranked: Ranked) -> Ranked:
    return Ranked(ranked.candidate, ranked.in_time, f"tried last: {ranked.candidate.unready_why}")
