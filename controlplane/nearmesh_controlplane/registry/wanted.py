"""What each node should have: the newest deployment of every model that covers it, and what rollouts make of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY, Registry
from nearmesh_controlplane.rollouts.rollout import Rollout
from nearmesh_controlplane.rollouts.wants import Want, want


def wanted_versions(
    node: Node, replicas: Mapping[str, pb.ReplicaStatus], catalog: Catalog, rollouts: Iterable[Rollout] = ()
) -> list[pb.WantedVersion]:
    """By model name, the standing version first. A cordoned node is asked for nothing but what it has already."""
    deployed = catalog.wanted(node.site, node.region, node.id)
    if node.cordoned:
        kept = {model: Want(_kept(model, replicas)) for model in deployed}
        return [version for model in kept for version in _versions(model, kept[model], catalog)]
    rolled = {r.model: r for r in rollouts if r.is_for(node.id, node.site, node.region)}
    found = [
        pb.WantedVersion(model=model, version=deployment.version, digest=deployment.digest)
        for model, deployment in deployed.items()
        if model not in rolled
    ]
    for model, rollout in rolled.items():
        standing = deployed[model].digest if model in deployed else ""
        found += _versions(model, want(rollout, node.id, standing), catalog)
    return sorted(found, key=lambda version: version.model) if rolled else found


def _versions(model: str, wanted: Want, catalog: Catalog) -> Iterator[pb.WantedVersion]:
    if wanted.standing:
        yield pb.WantedVersion(model=model, version=catalog.version_of(wanted.standing), digest=wanted.standing)
    if wanted.trial:
        trial = pb.Trial(share=wanted.trial.share, mirror_share=wanted.trial.mirror_share)
        version = catalog.version_of(wanted.trial.digest)
        yield pb.WantedVersion(model=model, version=version, digest=wanted.trial.digest, trial=trial)


def _kept(model: str, replicas: Mapping[str, pb.ReplicaStatus]) -> str:
    """The digest that the node serves, or is on its way to: after a restart it loads what it had. Empty: none."""
    has = [r for r in replicas.values() if r.model == model and r.state != pb.REPLICA_STATE_UNLOADING]
    return min(has, key=lambda r: (r.on_trial, r.state != READY)).digest if has else ""


def wanted_state(
    node_id: str,
    registry: Registry,
    catalog: Catalog,
    *,
    jwks_json: str,
    registry_url: str,
    peers: Iterable[pb.Peer] = (),
    rollouts: Iterable[Rollout] = (),
) -> pb.WantedState:
    """Everything that one node is told. `rollouts` are those that run."""
    node = registry.get(node_id)
    return pb.WantedState(
        versions=wanted_versions(node, registry.replicas(node_id), catalog, rollouts),
        removed_nodes=sorted(registry.removed_ids()),
        drain=node.draining,
        jwks_json=jwks_json,
        registry_url=registry_url,
        withdrawn=registry.leaving(node_id),
        peers=peers,
    )
