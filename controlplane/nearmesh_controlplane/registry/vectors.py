"""Who keeps vectors, so that a query finds its way to them, and rows to the sites that are to have them too.

That a node keeps some is a durable fact: one that is away is named all the same, and a query says that it is missing.
What it keeps is known as long as it says so.
"""

from __future__ import annotations

from collections.abc import Callable

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry

# Named to one node: those of its site first, then of its region. A query asks each of those that it is meant for.
MOST = 256
MAX_DETAIL_CHARACTERS = 500

# How the nodes of a region reach a node.
Reach = Callable[[str, Node], pb.Peer]
# The regions that may answer the clients of a region; None: any.
Allowed = Callable[[str], frozenset[str] | None]
# By region.
Rules = dict[str, frozenset[str] | None]


class Vectors:
    """Of all nodes. Looks at them once for each change; most are no change of who keeps vectors."""

    def __init__(self, registry: Registry, changes: Generation, reach: Reach, allowed: Allowed) -> None:
        self._registry = registry
        self._changes = changes
        self._reach = reach
        self._allowed = allowed
        self._said: dict[str, pb.VectorStatus] = {}
        self._seen = -1
        self._keepers: list[Node] = []
        # The regions that these are in.
        self._theirs: list[str] = []
        # As a region's nodes see them, and the rules that it was made under.
        self._regions: dict[str, tuple[Rules, list[pb.VectorNode]]] = {}

    def heard(self, node_id: str, status: pb.NodeStatus) -> None:
        """Takes over what a node says with a report; nobody but people acts on it."""
        if status.HasField("vectors"):
            said = status.vectors
            said.detail = said.detail[:MAX_DETAIL_CHARACTERS]
            self._said[node_id] = said
        else:
            self._said.pop(node_id, None)

    def status(self, node_id: str) -> pb.VectorStatus | None:
        """What a node that keeps vectors said last; None for one that keeps none, or was removed."""
        node = self._registry.get(node_id)
        if node.removed or not node.keeps_vectors:
            return None
        return self._said.get(node_id) or pb.VectorStatus(detail="" if self._registry.live(node) else "not there")

    def nodes_for(self, node: Node) -> list[pb.VectorNode]:
        """Whom it is told of."""
        self._look()
        rules = {region: self._allowed(region) for region in (node.region, *self._theirs)}
        known = self._regions.get(node.region)
        if known is None or known[0] != rules:
            known = self._regions[node.region] = rules, self._of_region(node.region, rules)
        found = known[1]
        if len(found) <= MOST:
            return found
        return sorted(found, key=lambda one: (one.site != node.site, one.region != node.region, one.node))[:MOST]

    def _look(self) -> None:
        if self._seen == self._changes.value:
            return
        self._seen = self._changes.value
        keepers = [node for node in self._registry.serving_nodes() if node.keeps_vectors and node.mesh_address]
        if list(map(_place, keepers)) != list(map(_place, self._keepers)):
            self._keepers, self._theirs = keepers, sorted({node.region for node in keepers})
            self._regions.clear()

    def _of_region(self, region: str, rules: Rules) -> list[pb.VectorNode]:
        return [self._named(region, node, rules) for node in self._keepers]

    def _named(self, region: str, node: Node, rules: Rules) -> pb.VectorNode:
        barred_from = sorted(of for of, rule in rules.items() if rule is not None and node.region not in rule)
        peer = self._reach(region, node)
        return pb.VectorNode(
            node=node.id,
            site=node.site,
            region=node.region,
            address=peer.address,
            server_name=peer.server_name,
            barred=region in barred_from,
            barred_from=barred_from,
        )


def _place(node: Node) -> tuple[str, str, str, str]:
    """What others are told of it."""
    return node.id, node.site, node.region, node.mesh_address
