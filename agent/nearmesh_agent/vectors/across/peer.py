"""Which node asks, by its certificate, and what may go there; so the agent tells the process that has the vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nearmesh.errors import InvalidInput, PermissionDenied
from nearmesh.v1 import node_pb2
from nearmesh_agent.vectors.across import places
from nearmesh_agent.vectors.across.hits import RESIDENCY
from nearmesh_agent.vectors.across.places import Here

# Metadata: node, site and region, which have no spaces, and sites that it is barred from.
KEY = "nearmesh-peer"
# Sites of one region, or of some, have rules; more names than this do not fit into metadata.
MOST_BARRED = 200


def asking(name: str, nodes: Sequence[node_pb2.VectorNode]) -> Here:
    """A node among all that keep vectors, as the control plane said last. Raises PermissionDenied."""
    found = places.by_id(name, nodes)
    if found is None:
        raise PermissionDenied(f"node {name!r} is not among those that keep vectors, as this node was told last")
    barred = frozenset(node.site for node in nodes if node.region in found.barred_from)
    if found.barred or len(barred) > MOST_BARRED:
        raise PermissionDenied(f"{RESIDENCY}: what is of this region stays out of region {found.region!r}")
    return Here(node=found.node, site=found.site, region=found.region, barred=barred)


def told(peer: Here) -> tuple[str, str]:
    return KEY, " ".join((peer.node, peer.site, peer.region, *sorted(peer.barred)))


def peer_of(context: Any) -> Here:
    """Raises InvalidInput where nobody is named."""
    for key, value in context.invocation_metadata() or ():
        if key == KEY and len(parts := str(value).split(" ")) >= 3:
            return Here(node=parts[0], site=parts[1], region=parts[2], barred=frozenset(parts[3:]))
    raise InvalidInput(f"metadata {KEY!r} is missing: which node asks?")
