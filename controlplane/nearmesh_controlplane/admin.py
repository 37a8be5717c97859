"""AdminService: what operators do to the mesh. Every change is audited, also when who made it has gone away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nearmesh.errors import InvalidInput
from nearmesh.ids import Kind
from nearmesh.rpc import caller
from nearmesh.v1 import admin_pb2 as pb
from nearmesh.v1 import admin_pb2_grpc
from nearmesh.v1.node_pb2 import TrainingStatus, VectorStatus
from nearmesh.whole import whole
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.peers.role import Peer, Role
from nearmesh_controlplane.prices import messages
from nearmesh_controlplane.prices.book import Prices
from nearmesh_controlplane.prices.currencies import USD
from nearmesh_controlplane.prices.rules import moment
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.join import Admission
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY, Registry
from nearmesh_controlplane.routing.residency import ResidencyRules

MAX_TOKEN_LIFETIME_S = 366 * 24 * 3600.0
MAX_AUDIT_ENTRIES = 1000
# For longer, a price is set without an end.
MAX_PRICE_S = 366 * 24 * 3600.0

_KINDS: dict[int, Kind] = {pb.NODE_KIND_NODE: "node", pb.NODE_KIND_GATEWAY: "gateway"}


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Answers operators."""

    def __init__(
        self,
        authority: Authority,
        admission: Admission,
        registry: Registry,
        catalog: Catalog,
        audit: Audit,
        role: Role,
        *,
        prices: Prices,
        residency: ResidencyRules,
        training: Callable[[str], TrainingStatus | None] = lambda node: None,
        vectors: Callable[[str], VectorStatus | None] = lambda node: None,
    ) -> None:
        self._authority = authority
        self._admission = admission
        self._registry = registry
        self._catalog = catalog
        self._audit = audit
        self._prices = prices
        self._residency = residency
        self._role = role
        self._training = training
        self._vectors = vectors

    @whole
    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: Any) -> pb.CreateJoinTokenResponse:
        kind = _KINDS.get(request.kind)
        if kind is None:
            raise InvalidInput("a join token is for a node or a gateway; `kind` is neither")
        token, expires_at_s = await self._admission.create_token(
            kind, request.node, request.site, request.region, request.lifetime_s
        )
        await self._audit.record(caller(), "join-token", request.node, f"{kind} at {request.site}, {request.region}")
        return pb.CreateJoinTokenResponse(token=token, expires_at_s=expires_at_s)

    @whole
    async def IssueToken(self, request: pb.IssueTokenRequest, context: Any) -> pb.IssueTokenResponse:
        if request.lifetime_s > MAX_TOKEN_LIFETIME_S:
            raise InvalidInput(f"a token lives at most {MAX_TOKEN_LIFETIME_S:.0f} s, not {request.lifetime_s:.0f}")
        now_s = time.time()
        token = self._authority.issuer.access(
            request.subject, request.role, now_s=now_s, lifetime_s=request.lifetime_s, namespace=request.namespace
        )
        bound = f", namespace {request.namespace}" if request.namespace else ""
        await self._audit.record(caller(), "token", request.subject, request.role + bound)
        return pb.IssueTokenResponse(token=token, expires_at_s=now_s + request.lifetime_s)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        return pb.ListNodesResponse(nodes=[self._message(node) for node in self._registry.all()])

    @whole
    async def DrainNode(self, request: pb.DrainNodeRequest, context: Any) -> pb.Node:
        node = await self._registry.drain(request.node, undo=request.undo)
        await self._audit.record(caller(), "undrain" if request.undo else "drain", node.id)
        return self._message(node)

    @whole
    async def CordonNode(self, request: pb.CordonNodeRequest, context: Any) -> pb.Node:
        node = await self._registry.cordon(request.node, undo=request.undo)
        await self._audit.record(caller(), "uncordon" if request.undo else "cordon", node.id)
        return self._message(node)

    @whole
    async def RemoveNode(self, request: pb.RemoveNodeRequest, context: Any) -> pb.Node:
        node = await self._registry.remove(request.node)
        await self._audit.record(caller(), "remove", node.id)
        return self._message(node)

    @whole
    async def SetPrice(self, request: pb.SetPriceRequest, context: Any) -> pb.Node:
        if request.unset:
            node = await self._registry.unset_price(request.node)
            await self._audit.record(caller(), "price", node.id, "taken back")
            return self._message(node)
        if not 0 <= request.valid_for_s <= MAX_PRICE_S:
            raise InvalidInput(
                f"a price holds 0 to {MAX_PRICE_S:.0f} s, not {request.valid_for_s}; 0 is without an end"
            )
        money = self._prices.currencies.money(request.usd_per_hour, request.currency or USD)
        until_s = time.time() + request.valid_for_s if request.valid_for_s else 0.0
        node = await self._registry.set_price(request.node, money, until_s)
        said = f"{money.amount} {money.currency} per hour" + (f" until {moment(until_s)}" if until_s else "")
        await self._audit.record(caller(), "price", node.id, said)
        return self._message(node)

    async def ListPrices(self, request: pb.ListPricesRequest, context: Any) -> pb.ListPricesResponse:
        return messages.prices(self._registry.serving_nodes(), self._prices)

    @whole
    async def SetTransferPrice(self, request: pb.SetTransferPriceRequest, context: Any) -> pb.TransferPrice:
        ends = request.from_region, request.to_region
        if request.unset:
            found = await self._prices.unset_transfer(*ends)
        else:
            found = await self._prices.set_transfer(*ends, request.usd_per_gb)
        said = "taken back" if request.unset else f"{found.usd_per_gb} USD per GB"
        await self._audit.record(caller(), "transfer-price", f"{ends[0]} -> {ends[1]}", said)
        return messages.transfer(found)

    @whole
    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Any) -> pb.Policy:
        if request.regions and request.any_region:
            raise InvalidInput("`regions` and `any_region` exclude each other; give one of them")
        regions = tuple(request.regions) if request.regions or request.any_region else None
        policy = await self._catalog.set_policy(request.model, request.objective, request.deadline_ms, regions)
        said = f"{policy.objective}, {policy.deadline_ms} ms, {', '.join(policy.regions) or 'any region'}"
        await self._audit.record(caller(), "policy", request.model, said)
        return pb.Policy(
            model=request.model,
            objective=policy.objective,
            deadline_ms=policy.deadline_ms,
            regions=policy.regions,
        )

    @whole
    async def SetResidency(self, request: pb.SetResidencyRequest, context: Any) -> pb.Residency:
        regions = sorted(await self._residency.set(request.client_region, request.regions))
        said = f"only {', '.join(regions)}" if regions else "any region"
        await self._audit.record(caller(), "residency", request.client_region, said)
        return pb.Residency(client_region=request.client_region, regions=regions)

    async def ListResidency(self, request: pb.ListResidencyRequest, context: Any) -> pb.ListResidencyResponse:
        rules = [pb.Residency(client_region=region, regions=sorted(bound)) for region, bound in self._residency.all()]
        return pb.ListResidencyResponse(rules=rules)

    async def ListControlPlanes(
        self, request: pb.ListControlPlanesRequest, context: Any
    ) -> pb.ListControlPlanesResponse:
        return pb.ListControlPlanesResponse(control_planes=map(_control_plane, await self._role.look()))

    async def ListAudit(self, request: pb.ListAuditRequest, context: Any) -> pb.ListAuditResponse:
        entries = await self._audit.latest(min(request.limit or 100, MAX_AUDIT_ENTRIES))
        return pb.ListAuditResponse(
            entries=[
                pb.AuditEntry(at_s=e.at_s, actor=e.actor, action=e.action, subject=e.subject, detail=e.detail)
                for e in entries
            ]
        )

    def _message(self, node: Node) -> pb.Node:
        replicas = self._registry.replicas(node.id).values()
        notice, notice_s = self._registry.notice(node.id)
        in_flight, sequences, drained = self._registry.under_way(node.id)
        return pb.Node(
            id=node.id,
            kind=pb.NODE_KIND_NODE if node.kind == "node" else pb.NODE_KIND_GATEWAY,
            site=node.site,
            region=node.region,
            public_address=node.public_address,
            mesh_address=node.mesh_address,
            metrics_address=node.metrics_address,
            hardware=node.hardware,
            agent_version=node.agent_version,
            usd_per_hour=node.usd_per_hour,
            spot=node.spot,
            price_source=node.price.source if node.kind == "node" else "",
            live=self._registry.live(node),
            draining=node.draining,
            cordoned=node.cordoned,
            removed=node.removed,
            last_seen_s=self._registry.last_seen_s(node.id),
            ready_replicas=sum(replica.state == READY for replica in replicas),
            notice=notice,
            notice_s=notice_s,
            in_flight=in_flight,
            sequences=sequences,
            drained=drained,
            training=self._training(node.id),
            vectors=self._vectors(node.id),
        )


def _control_plane(peer: Peer) -> pb.ControlPlane:
    return pb.ControlPlane(
        id=peer.id,
        public_address=peer.public,
        mesh_address=peer.mesh,
        http_address=peer.http,
        leader=peer.term > 0,
        seen_at_s=peer.seen_at_s,
        term=peer.term,
    )
