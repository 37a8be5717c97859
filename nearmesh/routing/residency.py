"""Where data may go: a model may be bound to regions, and so may the clients of a region. Such a rule never yields.

Pure. The rules themselves are the operators' and the packages'; a node that they exclude is no candidate, however cheap
or near it is, and also when it is the only one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nearmesh.errors import InvalidInput
from nearmesh.ids import check_label

# Of one model or client region; the largest clouds have half as many.
MAX_REGIONS = 200


def check_regions(what: str, regions: Iterable[str]) -> tuple[str, ...]:
    """The regions in order, each once. Raises InvalidInput."""
    found = tuple(sorted({check_label(what, region) for region in regions}))
    if len(found) > MAX_REGIONS:
        raise InvalidInput(f"{what}: {len(found)} regions are named; at most {MAX_REGIONS}")
    return found


def common(model_regions: Collection[str], client_regions: Collection[str] | None) -> frozenset[str] | None:
    """The regions that both leave; None for any."""
    if client_regions is None:
        return frozenset(model_regions) or None
    return frozenset(client_regions) & frozenset(model_regions) if model_regions else frozenset(client_regions)


def allowed(node_region: str, model_regions: Collection[str], client_regions: Collection[str] | None) -> bool:
    """Whether a node there may answer.

    `model_regions` are those that may serve the model, none for any; `client_regions` those that may answer the
    client's region, None for any.
    """
    return not refusal(node_region, model_regions, client_regions)


def refusal(node_region: str, model_regions: Collection[str], client_regions: Collection[str] | None) -> str:
    """Why a node there may not answer, for people; empty when it may."""
    if model_regions and node_region not in model_regions:
        return f"the model may only be served in {', '.join(sorted(model_regions))}"
    if client_regions is not None and node_region not in client_regions:
        return f"clients of this region may only be answered from {', '.join(sorted(client_regions)) or 'nowhere'}"
    return ""
