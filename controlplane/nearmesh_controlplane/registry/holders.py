"""Who has which version, so that nodes fetch it from each other: near ones first, and few.

A node's report says what lies on its disk, whole; a version that it pulls is there in parts. Of a node's own site all
are named that have it, pull it, or are about to: those share out what has to cross the WAN, from the first byte on. Of
its region, beyond the site, a few that have it all. Farther away the registry is as near as anybody.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry

# Named to one node of one version. At a larger site nodes find the others once those have it all.
MOST_NEAR, MOST_OTHERS = 12, 3

# What a node says of a version that it does not serve yet, and of one that did not come; for it, others are named.
_COMING = (pb.REPLICA_STATE_UNSPECIFIED, pb.REPLICA_STATE_PULLING)
_MISSING = (*_COMING, pb.REPLICA_STATE_FAILED)

# How the nodes of a region reach a node.
Reach = Callable[[str, Node], pb.Peer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node that is there, and what it has."""

    node: Node
    held: Collection[str]
    replicas: Mapping[str, pb.ReplicaStatus]
    # Digests of what it should have.
    wants: Collection[str]

    def state(self, digest: str) -> pb.ReplicaState:
        status = self.replicas.get(digest)
        return status.state if status else pb.REPLICA_STATE_UNSPECIFIED

    @property
    def id(self) -> str:
        return self.node.id


@dataclass(frozen=True, slots=True)
class Places:
    """Who can give a version to the nodes of one site, each in order of name."""

    whole: list[Node]
    parts: list[Node]
    others: list[Node]


def places(site: str, digest: str, candidates: Iterable[Candidate]) -> Places:
    """Of the nodes of one region."""
    found = Places([], [], [])
    for each in sorted(candidates, key=lambda candidate: candidate.id):
        if digest in each.held:
            (found.whole if each.node.site == site else found.others).append(each.node)
        elif each.node.site == site and digest in each.wants and each.state(digest) in _COMING:
            found.parts.append(each.node)
    return found


def chosen(asking: Node, found: Places) -> list[tuple[Node, bool, bool]]:
    """Whom one node is told of: each node, whether it is of the same site, and whether it has all of the version.

    Of many, those that follow it by name, so that not all ask the same.
    """
    near = [(node, True, True) for node in _after(asking.id, found.whole)]
    near += [(node, True, False) for node in _after(asking.id, found.parts)]
    return near[:MOST_NEAR] + [(node, False, True) for node in _after(asking.id, found.others)[:MOST_OTHERS]]


def _after(name: str, nodes: Sequence[Node]) -> list[Node]:
    at = bisect.bisect_right(nodes, name, key=lambda node: node.id)
    return [node for node in (*nodes[at:], *nodes[:at]) if node.id != name]


class Holders:
    """Looks at all nodes once for each change, however many of them ask."""

    def __init__(
        self, registry: Registry, changes: Generation, wants: Callable[[Node], Collection[str]], reach: Reach
    ) -> None:
        """`wants`: the digests of what a node should have."""
        self._registry = registry
        self._changes = changes
        self._wants = wants
        self._reach = reach
        self._seen = 0
        self._regions: dict[str, list[Candidate]] = {}
        self._places: dict[tuple[str, str, str], Places] = {}

    def of(self, node: Node, digest: str) -> list[pb.Holder]:
        """Whom a node can ask for a version; nobody where it has that itself."""
        status = self._registry.replicas(node.id).get(digest)
        if (status and status.state not in _MISSING) or digest in self._registry.held(node.id):
            return []
        self._look()
        key = node.region, node.site, digest
        if key not in self._places:
            self._places[key] = places(node.site, digest, self._regions.get(node.region, ()))
        return [
            _holder(self._reach(node.region, other), same_site, whole)
            for other, same_site, whole in chosen(node, self._places[key])
        ]

    def _look(self) -> None:
        if self._seen == self._changes.value:
            return
        self._seen = self._changes.value
        self._places.clear()
        self._regions = {}
        for node in self._registry.serving_nodes():
            if node.mesh_address and self._registry.presence(node.id) == "live":
                candidate = Candidate(
                    node=node,
                    held=self._registry.held(node.id),
                    replicas=self._registry.replicas(node.id),
                    wants=self._wants(node),
                )
                self._regions.setdefault(node.region, []).append(candidate)


def _holder(peer: pb.Peer, same_site: bool, whole: bool) -> pb.Holder:
    return pb.Holder(
        node=peer.node, address=peer.address, server_name=peer.server_name, same_site=same_site, whole=whole
    )
