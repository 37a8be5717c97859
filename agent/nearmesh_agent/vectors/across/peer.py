"""Who asks, as the agent tells the process that keeps its vectors: it has looked at the certificate."""

from __future__ import annotations

from typing import Any

from nearmesh.errors import InvalidInput
from nearmesh_agent.vectors.across.places import Here

# Metadata: node, site and region, which have no spaces.
KEY = "nearmesh-peer"


def told(peer: Here) -> tuple[str, str]:
    return KEY, f"{peer.node} {peer.site} {peer.region}"


def peer_of(context: Any) -> Here:
    """Raises InvalidInput where nobody is named."""
    for key, value in context.invocation_metadata() or ():
        if key == KEY and len(parts := str(value).split(" ")) == 3:
            return Here(node=parts[0], site=parts[1], region=parts[2])
    raise InvalidInput(f"metadata {KEY!r} is missing: which node asks?")
