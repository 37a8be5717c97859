"""The nodes of a rollout as the registry knows them, and for how long each has stood still or been away."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.rollouts.rollout import Rollout
from nearmesh_controlplane.rollouts.views import NOTHING, View

# How far a version has come on a node. A node that fails and tries again has come no further than it had.
_RANKS = {
    pb.REPLICA_STATE_PULLING: 1,
    pb.REPLICA_STATE_LOADING: 2,
    pb.REPLICA_STATE_READY: 3,
    pb.REPLICA_STATE_UNLOADED: 3,
}


class Watched:
    """Of one rollout; remembers what it saw in this process alone, so that a restart accuses nobody."""

    def __init__(self, registry: Registry, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._catalog = catalog
        self._clock = clock
        # By node: how far it has come, what it was told to do then, and since when that is so.
        self._furthest: dict[str, tuple[tuple[bool, int, int], float]] = {}
        # When each was seen live last.
        self._seen: dict[str, float] = {}
        # The 95th percentile of what each served before.
        self._standing_ms: dict[str, float] = {}

    def views(self, rollout: Rollout) -> list[View]:
        return [
            self._view(rollout, node)
            for node in self._registry.serving_nodes()
            if not node.cordoned and rollout.is_for(node.id, node.site, node.region)
        ]

    def _view(self, rollout: Rollout, node: Node) -> View:
        now_s = self._clock()
        deployed = self._catalog.deployed(rollout.model, node.site, node.region, node.id)
        standing = deployed.digest if deployed else ""
        said = self._registry.replicas(node.id)
        new, old = said.get(rollout.digest, NOTHING), said.get(standing, NOTHING)
        presence, leaving = self._registry.presence(node.id), self._registry.leaving(node.id)
        live = presence == "live"
        if live or leaving:
            self._seen[node.id] = now_s
        told = node.id in rollout.changing or node.id in rollout.changed
        return View(
            node=node.id,
            site=node.site,
            expected=presence != "gone" and not leaving,
            live=live,
            standing=standing,
            new=new,
            old=old,
            standing_ms=self._before(node.id, old),
            still_s=now_s - self._further(node.id, (told, _RANKS.get(new.state, 0), new.pulled_bytes), now_s),
            lost_s=now_s - self._seen.get(node.id, now_s),
        )

    def _before(self, node: str, old: pb.ReplicaStatus) -> float:
        if old.state == pb.REPLICA_STATE_READY and old.service_ms_p95 > 0:
            self._standing_ms[node] = old.service_ms_p95
        return self._standing_ms.get(node, 0.0)

    def _further(self, node: str, reached: tuple[bool, int, int], now_s: float) -> float:
        """When it came to where it is."""
        furthest, at_s = self._furthest.get(node, ((False, -1, 0), now_s))
        if reached > furthest:
            furthest, at_s = reached, now_s
        self._furthest[node] = furthest, at_s
        return at_s


def demand_by_region(model: str, demand: Mapping[tuple[str, str, str], float]) -> dict[str, float]:
    """Requests per second for one model, by the clients' region."""
    found: dict[str, float] = {}
    for (region, name, _), per_s in demand.items():
        if name == model:
            found[region] = found.get(region, 0.0) + per_s
    return found
