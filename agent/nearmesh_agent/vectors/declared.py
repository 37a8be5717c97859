"""What a collection is said to be, by whoever makes, changes or offers it: checked, as a spec has it. Pure.

Raises InvalidInput.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nearmesh.ids import check_label
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors import limits, wire
from nearmesh_agent.vectors.collections import Generation


def whole(request: pb.CreateCollectionRequest) -> dict[str, Any]:
    """All but whose it is and where it was made."""
    for what, text in (("embedder", request.embedder), ("embedder_digest", request.embedder_digest)):
        limits.check_short(what, text)
    return {
        "name": limits.check_name(request.collection.name),
        "metric": wire.metric(request.metric).value,
        "fields": {name: kind.value for name, kind in wire.fields(request.fields).items()},
        "index_type": limits.check_short("index_type", request.index_type),
        "language": limits.check_language(request.language),
        "serving": Generation(
            embedder=request.embedder,
            digest=request.embedder_digest,
            dimension=limits.check_dimension(request.dimension),
        ),
        **terms(request),
    }


def terms(request: pb.CreateCollectionRequest) -> dict[str, Any]:
    """What may change of it."""
    return {
        "description": limits.check_description(request.description),
        "replicate_to": places("site", request.replicate_to),
        "regions": places("region", request.regions),
    }


def changed(request: pb.UpdateCollectionRequest) -> dict[str, Any]:
    """Those of its terms that are to be others."""
    found: dict[str, Any] = {}
    if request.HasField("description"):
        found["description"] = limits.check_description(request.description)
    if request.set_replicate_to:
        found["replicate_to"] = places("site", request.replicate_to)
    if request.set_regions:
        found["regions"] = places("region", request.regions)
    return found


def places(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Each once."""
    limits.check_count(f"{what}s", len(names), limits.MAX_PLACES)
    return tuple(dict.fromkeys(check_label(what, name) for name in names))
