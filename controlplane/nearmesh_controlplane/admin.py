"""AdminService: what operators do to the mesh. Every change is audited, also when who made it has gone away."""

from __future__ import annotations

import time
from typing import Any

from nearmesh.errors import InvalidInput
from nearmesh.ids import Kind
from nearmesh.rpc import caller
from nearmesh.v1 import admin_pb2 as pb
from nearmesh.v1 import admin_pb2_grpc
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.database import whole
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.join import Admission
from nearmesh_controlplane.registry.nodes import READY, Node, Registry

MAX_TOKEN_LIFETIME_S = 366 * 24 * 3600.0
MAX_AUDIT_ENTRIES = 1000

_KINDS: dict[int, Kind] = {pb.NODE_KIND_NODE: "node", pb.NODE_KIND_GATEWAY: "gateway"}


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Answers operators."""

    def __init__(
        self, authority: Authority, admission: Admission, registry: Registry, catalog: Catalog, audit: Audit
    ) -> None:
        self._authority = authority
        self._admission = admission
        self._registry = registry
        self._catalog = catalog
        self._audit = audit

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
        token = self._authority.issuer.access(request.subject, request.role, now_s=now_s, lifetime_s=request.lifetime_s)
        await self._audit.record(caller(), "token", request.subject, request.role)
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
        node = await self._registry.set_price(request.node, request.usd_per_hour)
        await self._audit.record(caller(), "price", node.id, f"{node.usd_per_hour} USD per hour")
        return self._message(node)

    @whole
    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Any) -> pb.Policy:
        policy = await self._catalog.set_policy(request.model, request.objective, request.deadline_ms)
        await self._audit.record(caller(), "policy", request.model, f"{policy.objective}, {policy.deadline_ms} ms")
        return pb.Policy(model=request.model, objective=policy.objective, deadline_ms=policy.deadline_ms)

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
            live=self._registry.live(node),
            draining=node.draining,
            cordoned=node.cordoned,
            removed=node.removed,
            last_seen_s=self._registry.last_seen_s(node.id),
            ready_replicas=sum(replica.state == READY for replica in replicas),
        )
