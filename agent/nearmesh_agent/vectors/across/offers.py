"""Which collections are to be at which sites, and what a node makes of one that another node offers. Pure.

A collection belongs to the site at which it was created and to those that it is replicated to, all alike: each takes
writes and deletes, and each follows the others. Its sites, its regions and its end are settled by whoever said so last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from nearmesh.errors import InvalidInput
from nearmesh.ids import check_label
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors import declared, wire
from nearmesh_agent.vectors.across.places import Here, admits
from nearmesh_agent.vectors.collections import CollectionSpec
from nearmesh_agent.vectors.model import Metric

_MOST_IDENTITY = 64


def sites_of(spec: CollectionSpec) -> set[str]:
    """All that have it; its own alone where it is not replicated."""
    return {spec.site, *spec.replicate_to}


def belongs(spec: CollectionSpec, site: str, region: str, *, from_site: str) -> bool:
    """Whether a node at that place is to have what a node at `from_site` keeps.

    Nodes of one site have one collection only where its own site is among those that it is replicated to.
    """
    if not spec.replicate_to or not admits(spec.regions, region):
        return False
    return site in spec.replicate_to if site == from_site else site in sites_of(spec)


def offer_of(spec: CollectionSpec, *, dropped: bool = False, updated: int = 0) -> pb.OfferedResponse.Offer:
    """What another node is told of it."""
    return pb.OfferedResponse.Offer(
        collection=pb.CreateCollectionRequest(
            collection=pb.CollectionRef(namespace=spec.namespace, name=spec.name),
            dimension=spec.serving.dimension,
            metric=wire.metric_number(Metric(spec.metric)),
            embedder=spec.serving.embedder,
            embedder_digest=spec.serving.digest,
            fields=wire.field_messages(spec.kinds),
            description=spec.description,
            replicate_to=spec.replicate_to,
            regions=spec.regions,
            index_type=spec.index_type,
            language=spec.language,
        ),
        embedder_digest=spec.serving.digest,
        identity=spec.identity,
        generation=spec.serving.number,
        dropped=dropped,
        site=spec.site,
        updated=updated or spec.updated,
        placed=spec.placed,
    )


class Then(Enum):
    """What is to be done about an offer."""

    NOTHING = "nothing"
    CREATE = "create"
    UPDATE = "update"
    # It is to be here no more; others keep it.
    LEAVE = "leave"
    # It is to be nowhere any more.
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`spec` as it is from then on; `refused` says why the offering node is not followed although it is asked for."""

    then: Then
    spec: CollectionSpec | None = None
    refused: str = ""
    follow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a node has, as its decision needs it."""

    # Of the same identity, and of the same name, if there are any.
    here: CollectionSpec | None
    namesake: CollectionSpec | None
    # It was dropped here.
    dropped: bool
    serves: Callable[[str], bool]


def decide(offer: pb.OfferedResponse.Offer, known: Known, at: Here, *, from_site: str) -> Decision:
    """Raises InvalidInput for an offer that no node makes."""
    if known.dropped:
        return Decision(then=Then.NOTHING)
    if offer.dropped:
        return Decision(then=Then.DROP if known.here else Then.NOTHING, spec=known.here)
    here = known.here
    spec = newest(offer, here) if here else _spec(offer)
    if not belongs(spec, at.site, at.region, from_site=from_site):
        mine = here is not None and _may_be_here(spec, at)
        if here is None or (mine and spec is here):
            return Decision(then=Then.NOTHING)
        return Decision(then=Then.UPDATE if mine else Then.LEAVE, spec=spec)
    if why := _refusal(spec, offer, known, at):
        return Decision(then=Then.NOTHING, refused=why)
    then = Then.CREATE if here is None else Then.UPDATE if spec is not here else Then.NOTHING
    return Decision(then=then, spec=spec, follow=True)


def _may_be_here(spec: CollectionSpec, at: Here) -> bool:
    return at.site in sites_of(spec) and admits(spec.regions, at.region)


def newest(offer: pb.OfferedResponse.Offer, here: CollectionSpec) -> CollectionSpec:
    """What both together say; `here` itself where the offer is no news to it."""
    placed = offer.placed or offer.updated
    described, moved = offer.updated > here.updated, placed > placed_at(here)
    if not (described or moved):
        return here
    terms = declared.terms(offer.collection)
    taken = (["description"] if described else []) + (["replicate_to", "regions"] if moved else [])
    return replace(
        here,
        updated=max(offer.updated, here.updated),
        placed=max(placed, placed_at(here)),
        **{name: terms[name] for name in taken},
    )


def placed_at(spec: CollectionSpec) -> int:
    """When its sites or regions were changed last: what was changed elsewhere since does not undo it."""
    return spec.placed or spec.updated


def _spec(offer: pb.OfferedResponse.Offer) -> CollectionSpec:
    there = offer.collection
    if not 1 <= len(offer.identity) <= _MOST_IDENTITY:
        raise InvalidInput(f"an offer of {there.collection.name[:64]!r} with the identity {offer.identity[:64]!r}")
    return CollectionSpec(
        namespace=check_label("namespace", there.collection.namespace),
        identity=offer.identity,
        site=check_label("site", offer.site),
        updated=offer.updated,
        placed=offer.placed,
        **declared.whole(there),
    )


def _refusal(spec: CollectionSpec, offer: pb.OfferedResponse.Offer, known: Known, at: Here) -> str:
    """Why it cannot be taken, though it is meant to be here; empty: it can."""
    if not known.serves(spec.namespace):
        return f"namespace {spec.namespace!r} is not served on node {at.node}; `allow` in its node.toml"
    if known.namesake and known.namesake.identity != offer.identity:
        return f"node {at.node} has another collection of that name; drop one of them"
    # Of another version of an embedder they are made anew here, from the texts.
    same = offer.collection.dimension == spec.serving.dimension or spec.serving.embedder
    return (
        "" if same else f"its vectors have {offer.collection.dimension} numbers, those on node {at.node} another count"
    )
