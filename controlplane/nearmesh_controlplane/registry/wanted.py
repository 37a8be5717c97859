"""What each node should have loaded: the newest deployment of every model that covers the node's site."""

from __future__ import annotations

from collections.abc import Mapping

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.registry.nodes import READY, Node, Registry


def wanted_versions(node: Node, replicas: Mapping[str, pb.ReplicaStatus], catalog: Catalog) -> list[pb.WantedVersion]:
    """By model name. A cordoned node is asked for nothing but what it serves already."""
    found = []
    for model in catalog.models():
        deployment = catalog.deployed(model, node.site)
        if deployment is None:
            continue
        digest, version = deployment.digest, deployment.version
        if node.cordoned:
            kept = next((r.digest for r in replicas.values() if r.model == model and r.state == READY), None)
            if kept is None:
                continue
            digest, version = kept, catalog.version_of(kept)
        found.append(pb.WantedVersion(model=model, version=version, digest=digest))
    return found


def wanted_state(
    node_id: str, registry: Registry, catalog: Catalog, *, jwks_json: str, registry_url: str
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
    )
