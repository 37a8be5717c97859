"""RouteService: the router's decisions for SDKs and people, what they report, and how right the decisions were."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from google.protobuf.message import Message

from nearmesh.errors import InvalidInput, MeshError, NotFound, PermissionDenied
from nearmesh.ids import check_label
from nearmesh.routing import Ranked, parse_objective
from nearmesh.routing.table import SHARE_STEP, Listener
from nearmesh.rpc import PEOPLE, caller
from nearmesh.snapshot.servicer import client_region
from nearmesh.v1 import route_pb2 as pb
from nearmesh.v1 import route_pb2_grpc
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.peers.relay import RELAYED_KEY
from nearmesh_controlplane.peers.role import Role
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.routing.accuracy import Accuracy
from nearmesh_controlplane.routing.demand import Claimant
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.router import Decision, Router
from nearmesh_controlplane.routing.snapshots import Snapshots

log = logging.getLogger(__name__)

# A watcher hears of a changed order or price at once, and of times that merely drifted this often.
REFRESH_S = 5.0
# How often a client is sent a new snapshot at most, and how much of them a machine is sent.
CLIENT_SNAPSHOT_S = 60.0
MACHINE_SNAPSHOT_BYTES_PER_S = 64 * 1024


async def nothing_sleeps(_model: str, _region: str) -> float:
    """Where no model is ever given up."""
    return 0.0


class RouteServicer(route_pb2_grpc.RouteServiceServicer):
    """Answers who asks for a route, or for the reason of one."""

    def __init__(
        self,
        router: Router,
        registry: Registry,
        catalog: Catalog,
        measurements: Measurements,
        changes: Generation,
        snapshots: Snapshots,
        role: Role,
        bring_back: Callable[[str, str], Awaitable[float]] = nothing_sleeps,
        allowed: Callable[[str], frozenset[str] | None] = lambda region: None,
    ) -> None:
        """`bring_back` a model that no node has, for a client's region: in how many milliseconds, 0 if not at all.

        `allowed` are the regions that may answer a region's clients; None: any.
        """
        self._allowed = allowed
        self._bring_back = bring_back
        self._router = router
        self._registry = registry
        self._catalog = catalog
        self._measurements = measurements
        self._changes = changes
        self._snapshots = snapshots
        self._role = role

    async def Resolve(self, request: pb.ResolveRequest, context: Any) -> pb.Route:
        route = self._answer(request, everyone=False)
        if route.candidates:
            return route
        # A client asks when it has found nobody: this is the request that a model which is asleep wakes for.
        told, _ = await self._ask_leader("Resolve", request, context)
        if told is not None:
            return cast(pb.Route, told)
        route.ready_in_ms = await self._bring_back(request.model, client_region(request))
        return route

    async def Explain(self, request: pb.ResolveRequest, context: Any) -> pb.Route:
        told, why_not = await self._ask_leader("Explain", request, context)
        if told is not None:
            return cast(pb.Route, told)
        route = self._answer(request, everyone=True)
        route.note = why_not and f"{why_not}; nodes that its last snapshot does not name are missing"
        return route

    async def Watch(self, request: pb.ResolveRequest, context: Any) -> AsyncIterator[pb.Route]:
        sent: tuple[Any, ...] = ()
        sent_at = 0.0
        while True:
            seen = self._changes.value
            route = self._answer(request, everyone=False)
            now = time.monotonic()
            if _gist(route) != sent or now - sent_at > REFRESH_S:
                sent, sent_at = _gist(route), now
                yield route
            await self._changes.above(seen)

    async def ReportLatency(self, request: pb.ReportLatencyRequest, context: Any) -> pb.ReportLatencyResponse:
        from_gateway = caller().role == "gateway"
        if not from_gateway and not _relayed(context) and await self._role.pass_on(request, caller().name):
            return pb.ReportLatencyResponse()
        # Whatever comes this far is for the leader.
        self._role.check_leads()
        if from_gateway:
            own = self._registry.get(caller().name).region
            if request.region != own:
                raise PermissionDenied(f"{caller()} joined for region {own!r}, and reports for {request.region!r}")
            self._registry.heard(caller().name)
        kind: Claimant = "gateway" if from_gateway else "clients"
        self._measurements.report(request, kind=kind, reporter=caller().name)
        self._changes.drift()
        return pb.ReportLatencyResponse()

    async def ListLatencies(self, request: pb.ListLatenciesRequest, context: Any) -> pb.ListLatenciesResponse:
        told, why_not = await self._ask_leader("ListLatencies", request, context)
        if told is not None:
            return cast(pb.ListLatenciesResponse, told)
        regions = [check_label("region", request.region)] if request.region else self._regions()
        listener: Listener = "mesh" if caller().role == "gateway" else "public"
        pairs = [(region, node) for region in regions for node in self._registry.serving_nodes()]
        found = [self._latency(region, node, listener) for region, node in pairs]
        note = why_not and f"{why_not}; it knows what was measured, here are estimates"
        return pb.ListLatenciesResponse(latencies=found, note=note)

    async def VectorNodes(self, request: pb.VectorNodesRequest, context: Any) -> pb.VectorNodesResponse:
        region = check_label("region", request.region) if request.region else ""
        rule = self._allowed(region) if region else None
        keepers = [node for node in self._registry.serving_nodes() if node.keeps_vectors]
        found = [self._keeper(region, node) for node in keepers if rule is None or node.region in rule]
        found.sort(key=lambda one: (not one.live, one.network_ms, one.node))
        return pb.VectorNodesResponse(nodes=found)

    def _keeper(self, region: str, node: Node) -> pb.VectorPlace:
        return pb.VectorPlace(
            node=node.id,
            site=node.site,
            region=node.region,
            address=self._router.address(region, node, "public") if region else node.public_address,
            server_name=self._router.server_name(node.id),
            live=self._registry.live(node),
            network_ms=self._router.network_time(region, node).p50_ms if region else 0.0,
        )

    async def ListAccuracy(self, request: pb.ListAccuracyRequest, context: Any) -> pb.ListAccuracyResponse:
        # Reports end up with the leader, whoever they were told.
        told, _ = await self._ask_leader("ListAccuracy", request, context)
        if told is not None:
            return cast(pb.ListAccuracyResponse, told)
        self._role.check_leads()
        if request.model:
            self._catalog.versions(request.model)
        return pb.ListAccuracyResponse(accuracy=map(_accuracy, self._measurements.accuracy_now(request.model)))

    async def WatchSnapshot(self, request: pb.WatchSnapshotRequest, context: Any) -> AsyncIterator[pb.SignedSnapshot]:
        if caller().role in PEOPLE and not request.region:
            raise InvalidInput("name the region that the client is in; only machines are told of all")
        async for signed in self._snapshots.watch(request.region):
            yield signed
            # Clients are many, and what they keep is for a bad day; of a large mesh it is much for machines, too.
            paced_s = len(signed.snapshot) / MACHINE_SNAPSHOT_BYTES_PER_S
            await asyncio.sleep(max(paced_s, CLIENT_SNAPSHOT_S) if caller().role in PEOPLE else paced_s)

    async def _ask_leader(self, method: str, request: Message, context: Any) -> tuple[Message | None, str]:
        """What the leader answers, where that is another control plane; else why it does not, if it should.

        Of people alone: a node and a gateway find it by themselves, and are told of addresses by any.
        """
        if caller().role not in PEOPLE or _relayed(context):
            return None, ""
        try:
            return await self._role.ask_leader(method, request, caller().name), ""
        except (NotFound, InvalidInput):
            raise
        except MeshError as error:
            log.info("the leader was not asked method=%s: %s", method, error.message)
            return None, f"the control plane that leads cannot be asked ({error.message})"

    def _regions(self) -> list[str]:
        return sorted({node.region for node in self._registry.all() if not node.removed})

    def _latency(self, region: str, node: Node, listener: Listener) -> pb.Latency:
        found = self._router.network_time(region, node)
        return pb.Latency(
            region=region,
            node=node.id,
            network_ms_p50=found.p50_ms,
            network_ms_p95=found.p95_ms,
            measured=found.measured,
            address=self._router.address(region, node, listener),
            server_name=self._router.server_name(node.id),
        )

    def _answer(self, request: pb.ResolveRequest, *, everyone: bool) -> pb.Route:
        region = client_region(request)
        route = self._decided(request, region, everyone=everyone)
        rule = self._router.may_answer(request.model, region)
        if rule is not None:
            # What another control plane decided may be older than the rule.
            left = [c for c in route.candidates if not c.ready or c.region in rule]
            del route.candidates[:]
            route.candidates.extend(left)
            route.bound = True
            route.allowed_regions.extend(sorted(rule))
        return route

    def _decided(self, request: pb.ResolveRequest, region: str, *, everyone: bool) -> pb.Route:
        followed = self._role.followed()
        # A model may have been published since the leader's routes were made.
        if followed is None or not followed.knows(request.model):
            return self._route(self._decide(request, region), everyone=everyone)
        # Another control plane decided; what it did not choose from, it alone can explain.
        objective = parse_objective(request.objective) if request.objective else ""
        route = followed.route(request.model, region, objective)
        # It comes from a control plane that is there.
        route.expires_at_s = 0.0
        return route

    def _decide(self, request: pb.ResolveRequest, region: str) -> Decision:
        objective = parse_objective(request.objective) if request.objective else None
        return self._router.decide(request.model, region, objective)

    def _route(self, decision: Decision, *, everyone: bool) -> pb.Route:
        # The version of the newest deployment; nodes on their way to it say their own in each receipt.
        deployed = next(iter(self._catalog.deployments(decision.model)), None)
        return pb.Route(
            model=decision.model,
            version=deployed.version if deployed else "",
            digest=deployed.digest if deployed else "",
            region=decision.region,
            objective=decision.objective,
            deadline_ms=decision.deadline_ms,
            candidates=[
                self._candidate(decision, ranked) for ranked in decision.ranking if everyone or ranked.candidate.ready
            ],
            generation=decision.generation,
            demand_per_s=decision.demand_per_s,
        )

    def _candidate(self, decision: Decision, ranked: Ranked) -> pb.Candidate:
        c = ranked.candidate
        node, region = self._registry.get(c.node), decision.region
        serves = c.service_times is not None
        return pb.Candidate(
            node=c.node,
            site=c.site,
            region=c.region,
            address=self._router.address(region, node, "public"),
            server_name=self._router.server_name(c.node),
            ready=c.ready,
            network_ms_p50=c.network_ms_p50,
            network_ms_p95=c.network_ms_p95,
            network_measured=c.network_measured,
            service_ms_p50=c.service_ms_p50,
            service_ms_p95=c.service_ms_p95,
            usd_per_hour=c.usd_per_hour,
            usd_per_1000=c.usd_per_1000,
            in_time=ranked.in_time,
            why=ranked.why,
            network_ms_quantiles=c.network.ms,
            service_ms_quantiles=c.service.ms if serves else (),
            p_in_time=c.p_in_time(decision.deadline_ms) if serves else 0.0,
            share=c.share,
            total_ms_p50=c.total.p50_ms if serves else 0.0,
            total_ms_p95=c.total.p95_ms if serves else 0.0,
            total_ms_p99=c.total.p99_ms if serves else 0.0,
            transfer_usd_per_1000=c.transfer_usd_per_1000,
            spot=c.spot,
            utilization=self._measurements.utilization(c.node),
            inferences_per_second=self._router.speed(decision.model, c.node),
        )


def _relayed(context: Any) -> bool:
    """Whether another control plane passed the call on, and takes this one for the leader."""
    return any(key == RELAYED_KEY for key, _ in context.invocation_metadata())


def _accuracy(found: Accuracy) -> pb.Accuracy:
    return pb.Accuracy(
        region=found.region,
        model=found.model,
        objective=found.objective,
        reporter=found.reporter,
        answered=found.answered,
        failed=found.failed,
        compared=found.compared,
        late=found.late,
        within_p50=found.within_p50,
        within_p95=found.within_p95,
        within_p99=found.within_p99,
        actual_over_predicted=found.actual_over_predicted,
    )


def _gist(route: pb.Route) -> tuple[Any, ...]:
    """What a watcher must hear of at once."""
    order = tuple(
        (c.node, c.address, c.in_time, float(f"{c.usd_per_1000:.2g}"), round(c.share / SHARE_STEP))
        for c in route.candidates
    )
    return route.digest, route.objective, route.deadline_ms, route.bound, tuple(route.allowed_regions), order
