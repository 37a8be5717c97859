"""When a model that nobody asks for loses its replicas, who keeps it, and when all come back."""

from __future__ import annotations

import math
from typing import Any

import pytest
from nearmesh_controlplane.idle.decision import (
    BACK_PER_S,
    BACK_WAITING,
    PULL_BYTES_PER_S,
    SILENT_PER_S,
    UNKNOWN_LOAD_MS,
    Look,
    Place,
    decided,
    ready_ms,
    soonest,
)

from nearmesh.package import Idle

HOUR_S = 3600.0


def place(node: str, *, region: str = "eu", idle_s: float = 2 * HOUR_S, **more: Any) -> Place:
    return Place(node=node, region=region, ready=True, held=True, idle_s=idle_s, load_ms=500.0, **more)


def absent(node: str, **more: Any) -> Place:
    """One that has let it go, with its files still there."""
    return Place(node=node, region="eu", held=True, **more)


def look(*places: Place, keep: int = 1, after_s: float = HOUR_S, **more: Any) -> Look:
    policy = Idle(scale_to_zero_after_s=after_s, keep=keep)
    return Look(**{"policy": policy, "places": places, "awake_s": math.inf, **more})


THREE = (place("a"), place("b"), place("c"))


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (look(*THREE), ("a",)),
        (look(*THREE, keep=2), ("a", "b")),
        (look(*THREE, keep=0), ()),
        # The one that loads it fastest, then the cheapest.
        (look(place("a"), Place(node="b", region="eu", ready=True, idle_s=1e4, load_ms=100.0)), ("b",)),
        (look(place("a", usd_per_hour=2.0), place("b", usd_per_hour=1.0)), ("b",)),
        # One that never loaded it is not taken for fast.
        (look(Place(node="a", region="eu", ready=True, idle_s=1e4), place("b")), ("b",)),
        # No policy.
        (look(*THREE, after_s=0.0), None),
        # Somebody asked somewhere.
        (look(*THREE[:2], place("c", idle_s=HOUR_S - 1)), None),
        (look(*THREE[:2], place("c", in_flight=1)), None),
        (look(*THREE[:2], place("c", waiting=1)), None),
        (look(*THREE[:2], Place(node="c", region="eu", busy=True)), None),
        (look(*THREE, per_s=SILENT_PER_S), None),
        (look(*THREE, asked_s=HOUR_S - 1), None),
        # It was deployed, or woke, a moment ago: nodes may not have heard yet.
        (look(*THREE, awake_s=HOUR_S - 1), None),
        (look(*THREE, rolling=True), None),
        # There is nothing to give up.
        (look(place("a")), None),
        (look(*THREE, keep=3), None),
        (look(absent("a"), absent("b")), None),
        # Those who failed at it do not count.
        (look(*THREE[:2], Place(node="c", region="eu")), ("a",)),
        # Clients of a region that is bound are not left without.
        (look(*THREE, place("u", region="us"), bound=(frozenset({"us"}),)), ("a", "u")),
        (look(*THREE, place("u", region="us"), bound=(frozenset({"us"}),), keep=0), ()),
        (look(*THREE, bound=(frozenset({"us"}), frozenset({"eu", "us"}))), ("a",)),
    ],
)
def test_an_awake_model_falls_asleep_when_nobody_has_asked_for_long(found: Look, kept: tuple[str, ...] | None) -> None:
    assert decided(found) == kept


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (look(place("a"), absent("b"), kept=("a",)), ("a",)),
        # A single request is answered by the one that keeps it.
        (look(place("a", idle_s=0.0, in_flight=1, waiting=1), absent("b"), kept=("a",), per_s=0.05), ("a",)),
        # Several bring all back, and so does a queue.
        (look(place("a", idle_s=0.0), absent("b"), kept=("a",), per_s=BACK_PER_S), None),
        (look(place("a", idle_s=0.0, waiting=BACK_WAITING), absent("b"), kept=("a",)), None),
        (look(place("a"), absent("b"), kept=("a",), rolling=True), None),
        (look(place("a"), absent("b"), kept=("a",), after_s=0.0), None),
        # It needs nobody.
        (look(absent("a"), absent("b"), kept=(), keep=0), ()),
        # One that was brought back for a client goes again, but not before its time.
        (look(Place(node="a", region="eu"), kept=("a",), keep=0, asked_s=5.0), ("a",)),
        (look(Place(node="a", region="eu", busy=True), kept=("a",), keep=0), ("a",)),
        (look(place("a", idle_s=5.0), absent("b"), kept=("a",), keep=0), ("a",)),
        (
            look(place("a", idle_s=5.0), place("u", region="us"), kept=("a",), keep=0, bound=(frozenset({"us"}),)),
            ("a",),
        ),
        (look(place("a"), absent("b"), kept=("a",), keep=0), ()),
        # In the place of one that is gone another keeps it: one that has the files.
        (look(Place(node="b", region="eu"), absent("c"), kept=("a",)), ("c",)),
        (look(place("a"), absent("b"), kept=("a",), keep=2), ("a", "b")),
        (look(kept=("a",)), ()),
        # Nor is it kept by one that cannot load it, unless nobody can.
        (look(absent("a", failing=True, broken=True), absent("b"), kept=("a",)), ("b",)),
        (look(absent("a", failing=True), absent("b"), kept=("a",)), ("a",)),
        (look(absent("a", broken=True), absent("b", broken=True), kept=("b",)), ("b",)),
        # What was kept for a region that is bound stays, and is replaced.
        (look(place("a"), place("u", region="us"), kept=("a", "u"), bound=(frozenset({"us"}),)), ("a", "u")),
        (look(place("a"), place("u", region="us"), kept=("a",), bound=(frozenset({"us"}),)), ("a", "u")),
    ],
)
def test_one_that_is_asleep_is_kept_brought_back_or_repaired(found: Look, kept: tuple[str, ...] | None) -> None:
    assert decided(found) == kept


def test_what_falls_asleep_stays_asleep() -> None:
    found = look(*THREE, place("u", region="us"), bound=(frozenset({"us"}),))
    kept = decided(found)
    assert kept is not None
    after = [p if p.node in kept else absent(p.node) for p in found.places]
    assert decided(look(*after, kept=kept, bound=found.bound)) == kept


def test_who_is_ready_soonest() -> None:
    far = Place(node="far", region="us", ready=True, cold=True, load_ms=300.0, network_ms=120.0)
    near = Place(node="near", region="eu", ready=True, cold=True, load_ms=350.0, network_ms=5.0)
    warm = Place(node="warm", region="us", ready=True, load_ms=350.0, network_ms=120.0)
    held = Place(node="held", region="eu", held=True, load_ms=100.0)
    pull = Place(node="pull", region="eu", load_ms=10.0, size_bytes=int(PULL_BYTES_PER_S))
    unknown = Place(node="unknown", region="eu", held=True)
    assert [p.node for p in soonest([pull, far, unknown, held, near, warm])] == [
        "held",
        "warm",
        "near",
        "far",
        "unknown",
        "pull",
    ]
    assert [ready_ms(p) for p in (far, warm, pull, unknown)] == [420.0, 120.0, 1010.0, UNKNOWN_LOAD_MS]
