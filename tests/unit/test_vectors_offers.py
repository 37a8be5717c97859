"""Which collections are to be where, and what a node makes of what another one offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from nearmesh_agent.vectors.across.offers import Decision, Known, Then, belongs, decide, offer_of
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.collections import CollectionSpec, Generation

from nearmesh.errors import MeshError

SPEC = CollectionSpec(
    namespace="default",
    name="docs",
    identity="i",
    site="left",
    replicate_to=("right",),
    updated=5,
    fields={"lang": "string"},
    language="german",
    serving=Generation(embedder="m", digest="sha256:1", dimension=2),
)
RIGHT = Here(node="b", site="right", region="us")


@pytest.mark.parametrize(
    ("spec", "site", "region", "from_site", "expected"),
    [
        ({}, "right", "us", "left", True),
        # It is where it was created, whoever has it.
        ({}, "left", "eu", "right", True),
        ({}, "far", "us", "left", False),
        ({"replicate_to": ()}, "right", "us", "left", False),
        ({"regions": ("eu",)}, "right", "us", "left", False),
        ({"regions": ("eu", "us")}, "right", "us", "left", True),
        # Between nodes of one site.
        ({}, "left", "eu", "left", False),
        ({"replicate_to": ("right", "left")}, "left", "eu", "left", True),
    ],
)
def test_where_a_collection_is_to_be(spec: Any, site: str, region: str, from_site: str, expected: bool) -> None:
    assert belongs(replace(SPEC, **spec), site, region, from_site=from_site) is expected


def decided(here: CollectionSpec | None = None, *, offered: CollectionSpec = SPEC, **more: Any) -> Decision:
    known: dict[str, Any] = {"here": here, "namesake": here, "dropped": False, "serves": lambda namespace: True}
    dropped = more.pop("offered_dropped", False)
    return decide(offer_of(offered, dropped=dropped), Known(**{**known, **more}), RIGHT, from_site="left")


def test_one_that_is_new_is_made_as_it_is_there() -> None:
    found = decided()
    assert (found.then, found.follow, found.refused) == (Then.CREATE, True, "")
    assert found.spec == SPEC


@pytest.mark.parametrize(
    ("here", "change", "then", "follow"),
    [
        ({}, {}, Then.NOTHING, True),
        ({}, {"updated": 6, "description": "new"}, Then.UPDATE, True),
        # What is said here is newer.
        ({"updated": 7}, {"updated": 6, "description": "new"}, Then.NOTHING, True),
        ({}, {"updated": 6, "replicate_to": ("far",)}, Then.LEAVE, False),
        ({}, {"updated": 6, "replicate_to": ()}, Then.LEAVE, False),
        ({}, {"updated": 6, "regions": ("eu",)}, Then.LEAVE, False),
        ({"updated": 7}, {"updated": 6, "replicate_to": ("far",)}, Then.NOTHING, True),
        # Of another version of the embedder, vectors are made anew.
        ({"serving": Generation(embedder="m", digest="sha256:2", dimension=3)}, {}, Then.NOTHING, True),
    ],
)
def test_who_said_so_last_counts(here: Any, change: Any, then: Then, follow: bool) -> None:
    found = decided(replace(SPEC, **here), offered=replace(SPEC, **change))
    assert (found.then, found.follow) == (then, follow)


def test_where_it_was_created_it_stays_although_it_is_replicated_no_more() -> None:
    at = Here(node="a", site="left", region="eu")
    known = Known(here=SPEC, namesake=SPEC, dropped=False, serves=lambda namespace: True)
    alone = replace(SPEC, replicate_to=(), updated=6)
    found = decide(offer_of(alone), known, at, from_site="right")
    assert (found.then, found.spec and found.spec.replicate_to, found.follow) == (Then.UPDATE, (), False)


def test_one_that_was_dropped_stays_so() -> None:
    assert decided(SPEC, offered_dropped=True).then is Then.DROP
    assert decided(None, offered_dropped=True).then is Then.NOTHING
    assert decided(None, dropped=True) == Decision(then=Then.NOTHING)


@pytest.mark.parametrize(
    ("here", "known", "why"),
    [
        (None, {"namesake": replace(SPEC, identity="another")}, "another collection of that name"),
        (None, {"serves": lambda namespace: False}, "namespace 'default' is not served"),
        (replace(SPEC, serving=Generation(dimension=3)), {}, "have 2 numbers"),
    ],
)
def test_why_one_is_not_taken(here: CollectionSpec | None, known: dict[str, Any], why: str) -> None:
    found = decided(here, **known)
    assert (found.then, found.follow) == (Then.NOTHING, False)
    assert why in found.refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"identity": ""},
        {"identity": "i" * 65},
        {"namespace": "a b"},
        {"name": ""},
        {"site": ""},
        {"replicate_to": ("right", "a b")},
        {"replicate_to": ("right", *(f"s{n}" for n in range(65)))},
        {"description": "x" * 2000},
        {"serving": Generation(dimension=0)},
        {"serving": Generation(dimension=2, digest="x" * 999)},
    ],
)
def test_what_no_node_offers_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MeshError):
        decided(offered=replace(SPEC, **wrong))
