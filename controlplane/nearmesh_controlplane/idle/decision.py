"""Whether a model that nobody asks for keeps its replicas, who keeps it otherwise, and when all come back. Pure.

Going and coming are far apart: replicas leave when nobody has asked for as long as the policy says, and come back when
requests follow each other or wait, not for a single one, which the node that keeps it answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nearmesh.package import Idle

# Requests per second, averaged over some fifteen seconds, from which all replicas come back: three within a few
# seconds, or one every ten. Below the second there is no demand any more that a model would have to stay for.
BACK_PER_S, SILENT_PER_S = 0.12, 0.06
# So many that wait on a node that keeps it, for a load or an engine call, bring them back at once.
BACK_WAITING = 3
# What loading takes where it was never measured, and what a pull gets through.
UNKNOWN_LOAD_MS = 2000.0
PULL_BYTES_PER_S = 25e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node that the model is deployed to, and that is there and stays."""

    node: str
    region: str
    usd_per_hour: float = 0.0
    # It can answer, if need be after a load.
    ready: bool = False
    # It pulls or loads it.
    busy: bool = False
    # It could not load it, now; and that has been so for long, or was lately.
    failing: bool = False
    broken: bool = False
    # Its files are on the disk.
    held: bool = False
    # Not in memory.
    cold: bool = False
    # What a load takes there, 0 where that is not known, and what has to be pulled before.
    load_ms: float = 0.0
    size_bytes: int = 0
    # Round trip from whoever asks.
    network_ms: float = 0.0
    idle_s: float = 0.0
    waiting: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that is known of one model at a moment."""

    policy: Idle
    places: Sequence[Place]
    # Asleep: the nodes that keep it.
    kept: tuple[str, ...] | None = None
    # Since it woke or was deployed.
    awake_s: float = 0.0
    # Requests per second, as nodes counted them.
    per_s: float = 0.0
    # Since a client asked for it that found nobody who has it.
    asked_s: float = math.inf
    # A rollout needs all of its nodes.
    rolling: bool = False
    # For clients of regions that are bound to others: the regions that may answer them.
    bound: tuple[frozenset[str], ...] = ()


def decided(look: Look) -> tuple[str, ...] | None:
    """The nodes that keep it, from now on; None: it is awake, and all have it."""
    if not look.policy.scale_to_zero_after_s or look.rolling:
        return None
    if look.kept is None:
        return _given_up(look)
    if _comes_back(look):
        return None
    return _repaired(look, look.kept)


def ready_ms(place: Place) -> float:
    """How long until the first answer from there, network included, but for the model's own time."""
    load_ms = place.load_ms or UNKNOWN_LOAD_MS
    if place.ready:
        return place.network_ms + (load_ms if place.cold else 0.0)
    pull_ms = 0.0 if place.held else 1000 * place.size_bytes / PULL_BYTES_PER_S
    return place.network_ms + load_ms + pull_ms


def soonest(places: Sequence[Place]) -> list[Place]:
    """Those first that have the files, of them those that are ready sooner, of equals the cheaper."""
    return sorted(places, key=lambda p: (p.failing, not (p.ready or p.held), ready_ms(p), p.usd_per_hour, p.node))


def keepers(look: Look) -> tuple[str, ...]:
    """Where the model would be ready soonest once all have let it out of memory: so many as the policy keeps, and one
    more for clients whose regions may be answered by none of those."""
    # Also where it is in memory at the moment it will have to be loaded.
    order = sorted(look.places, key=lambda p: (not p.ready, p.load_ms or UNKNOWN_LOAD_MS, p.usd_per_hour, p.node))
    return _covering(look, order, order[: look.policy.keep])


def _covering(look: Look, order: Sequence[Place], found: Sequence[Place]) -> tuple[str, ...]:
    """With one more for each rule of residency that leaves none of them."""
    more = list(found)
    for regions in look.bound if look.policy.keep else ():
        able = [place for place in order if place.region in regions]
        if able and not any(place.region in regions for place in more):
            more.append(able[0])
    return tuple(sorted(place.node for place in more))


def _given_up(look: Look) -> tuple[str, ...] | None:
    ready = [place for place in look.places if place.ready]
    after_s = look.policy.scale_to_zero_after_s
    if not ready or look.awake_s < after_s or not _silent(look, look.places):
        return None
    found = keepers(look)
    # Where all would stay there is nothing to give up.
    return None if len(found) >= len(ready) else found


def _silent(look: Look, places: Sequence[Place]) -> bool:
    """Nobody has asked for as long as the policy says, and nothing is on its way."""
    after_s = look.policy.scale_to_zero_after_s
    asked = look.asked_s < after_s or any(p.ready and p.idle_s < after_s for p in places)
    at_work = any(p.busy or p.waiting or p.in_flight for p in places)
    return not asked and not at_work and look.per_s < SILENT_PER_S


def _comes_back(look: Look) -> bool:
    kept = [place for place in look.places if place.node in (look.kept or ())]
    return look.per_s >= BACK_PER_S or any(place.waiting >= BACK_WAITING for place in kept)


def _repaired(look: Look, kept: tuple[str, ...]) -> tuple[str, ...]:
    """In the place of nodes that are gone others keep it; one that was brought back for a request goes again."""
    able = [place for place in look.places if not place.broken] or look.places
    there = [place for place in able if place.node in kept]
    more = len(there) > look.policy.keep
    if more and _silent(look, there):
        return keepers(replace(look, places=there))
    order = soonest(able)
    others = [place for place in order if place not in there]
    return _covering(look, order, [*there, *others[: max(0, look.policy.keep - len(there))]])
