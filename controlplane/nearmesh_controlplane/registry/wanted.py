"""What each node should have loaded: the newest deployment of every model that covers the node's site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY, Registry


def wanted_versions(node: Node, replicas: Mapping[str, pb.ReplicaStatus], catalog: Catalog) -> list[pb.WantedVersion]:
    """By model name. A cordoned node is asked for nothing but what it has already."""
    found = []
    for model, deployment in catalog.wanted(node.site).items():
        digest, version = deployment.digest, deployment.version
        if node.cordoned:
            kept = _kept(model, replicas)
            if kept is None:
                continue
            digest, version = kept, catalog.version_of(kept)
        found.append(pb.WantedVersion(model=model, version=version, digest=digest))
    return found


def _kept(model: str, replicas: Mapping[str, pb.ReplicaStatus]) -> str | None:
    """The digest that the node serves, or is on its way to: after a restart it loads what it had."""
    has = [r for r in replicas.values() if r.model == model and r.state != pb.REPLICA_STATE_UNLOADING]
    return min(has, key=lambda r: r.state != READY).digest if has else None


def wanted_state(
    node_id: str,
    registry: Registry,
    catalog: Catalog,
    *,
    jwks_json: str,
    registry_url: str,
    peers: Iterable[pb.Peer] = (),
) -> pb.WantedState:
    """Everything that one node is told."""
    node = registry.get(node_id)
    return pb.WantedState(
        versions=wanted_versions(node, registry.replicas(node_id), catalog),
        removed_nodes=sorted(registry.removed_ids()),
        drain=node.draining,
        jwks_json=jwks_json,
        registry_url=registry_url,
        withdrawn=registry.leaving(node_id),
        peers=peers,
    )
