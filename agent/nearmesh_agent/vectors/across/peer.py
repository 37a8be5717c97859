"""Who asks, as the agent tells the process that keeps its vectors: it has looked at the certificate."""

from __future__ import annotations

from typing import Any

from nearmesh.errors import InvalidInput, PermissionDenied
from nearmesh_agent.vectors.across import hits
from nearmesh_agent.vectors.across.places import Here, admits
from nearmesh_agent.vectors.collections import CollectionSpec

# Metadata: node, site and region, which have no spaces.
KEY = "nearmesh-peer"
# Metadata of a query that has travelled: the region of the node that asks on behalf of its caller.
REGION_KEY = "nearmesh-asking-region"


def told(peer: Here) -> tuple[str, str]:
    return KEY, f"{peer.node} {peer.site} {peer.region}"


def peer_of(context: Any) -> Here:
    """Raises InvalidInput where nobody is named."""
    for key, value in context.invocation_metadata() or ():
        if key == KEY and len(parts := str(value).split(" ")) == 3:
            return Here(node=parts[0], site=parts[1], region=parts[2])
    raise InvalidInput(f"metadata {KEY!r} is missing: which node asks?")


def check_asked_from(context: Any, spec: CollectionSpec) -> None:
    """A query that has travelled: may the collection be asked from there? Raises PermissionDenied."""
    if not spec.regions:
        return
    for key, value in context.invocation_metadata() or ():
        if key == REGION_KEY and not admits(spec.regions, str(value)):
            raise PermissionDenied(
                f"{hits.RESIDENCY}: collection {spec.name!r} may be asked from {', '.join(spec.regions)}, "
                f"not from {str(value)[:64]!r}"
            )
