"""What each node should have: the newest deployment of every model that covers it, and what rollouts make of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog, Deployment
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY, Registry
from nearmesh_controlplane.rollouts.rollout import Rollout
from nearmesh_controlplane.rollouts.wants import want

# The nodes that are to have a model which is asleep; None: all that it is deployed to.
Kept = Callable[[str], Collection[str] | None]


def wanted_versions(
    node: Node,
    replicas: Mapping[str, pb.ReplicaStatus],
    catalog: Catalog,
    rollouts: Iterable[Rollout] = (),
    kept: Kept = lambda model: None,
) -> list[pb.WantedVersion]:
    """By model name, the standing version first. A cordoned node is asked for nothing but what it has already."""
    rolled = {r.model: r for r in rollouts if r.is_for(node.id, node.site, node.region)}
    everything = catalog.wanted(node.site, node.region, node.id)
    # What a rollout is about is not asleep.
    let_go = {m for m in everything if m not in rolled and (own := kept(m)) is not None and node.id not in own}
    deployed = {m: d for m, d in everything.items() if m not in let_go} if let_go else everything
    if node.cordoned:
        has = {model: digest for model in deployed if (digest := _kept(model, replicas))}
        return [_version(model, digest, catalog, deployed[model].asked_by) for model, digest in has.items()]
    found = [
        pb.WantedVersion(model=model, version=deployment.version, digest=deployment.digest, rollout=deployment.asked_by)
        for model, deployment in deployed.items()
        if model not in rolled
    ]
    for model, rollout in rolled.items():
        found += _on_its_way(rollout, node, deployed.get(model), catalog)
    return sorted(found, key=lambda version: version.model) if rolled else found


def _on_its_way(
    rollout: Rollout, node: Node, deployed: Deployment | None, catalog: Catalog
) -> Iterator[pb.WantedVersion]:
    """What a rollout makes of what a node has."""
    before = deployed.digest if deployed else ""
    wanted = want(rollout, node.id, before)
    if wanted.standing:
        asked_by = deployed.asked_by if deployed and wanted.standing == before else rollout.asked_by
        yield _version(rollout.model, wanted.standing, catalog, asked_by)
    if wanted.trial:
        trial = _version(rollout.model, wanted.trial.digest, catalog, rollout.asked_by)
        trial.trial.share, trial.trial.mirror_share = wanted.trial.share, wanted.trial.mirror_share
        # Also where both are 0.
        trial.trial.SetInParent()
        yield trial


def _version(model: str, digest: str, catalog: Catalog, asked_by: str) -> pb.WantedVersion:
    return pb.WantedVersion(model=model, version=catalog.version_of(digest), digest=digest, rollout=asked_by)


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
    holders: Callable[[Node, str], Iterable[pb.Holder]] = lambda node, digest: (),
    kept: Kept = lambda model: None,
    unload_after_s: Callable[[str], float] = lambda model: 0.0,
    training: Callable[[str], str | None] = lambda node: None,
    vector_nodes: Callable[[Node], Iterable[pb.VectorNode]] = lambda node: (),
) -> pb.WantedState:
    """Everything that one node is told. `rollouts` are those that run; `holders` are whom it can ask for a version.

    `unload_after_s` is when a model leaves memory that nobody asks for, 0 for the node's own rule. `training` is where
    the node finds the SuperLink of a federated run that asks for it; None: no run does. `vector_nodes` are those
    that keep vectors.
    """
    node = registry.get(node_id)
    versions = wanted_versions(node, registry.replicas(node_id), catalog, rollouts, kept)
    for version in versions:
        version.idle_unload_s = unload_after_s(version.model)
        version.holders.extend(holders(node, version.digest))
    superlink = training(node_id)
    return pb.WantedState(
        versions=versions,
        removed_nodes=sorted(registry.removed_ids()),
        drain=node.draining,
        jwks_json=jwks_json,
        registry_url=registry_url,
        withdrawn=registry.leaving(node_id),
        peers=peers,
        training=pb.WantedTraining(superlink=superlink) if superlink and not node.removed else None,
        vector_nodes=() if node.removed else vector_nodes(node),
    )
