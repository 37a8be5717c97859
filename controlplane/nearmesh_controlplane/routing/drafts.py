"""What speaks for and against each node under one objective, as costs: what the placement minimises.

A cost in US dollars per 1,000 requests, or what stands for it, plus what it weighs to be late or not surely there. Who
stays where it is has a lower one, by as much as a difference has to be before it moves anybody.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearmesh.routing.objectives import (
    BROKEN_BELOW,
    HYSTERESIS,
    IN_TIME,
    Objective,
    distance_ms,
    staying_distance_ms,
)
from nearmesh_controlplane.routing.facts import NodeFacts
from nearmesh_controlplane.routing.offers import Offers

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# In multiples of the usual cost: what it weighs to be late for everyone, to be asked although a session just broke or
# broke longer ago, and to have no room. Each outweighs all that come before it.
LATE, STANDING, NO_ROOM = 1e3, {"live": 0.0, "suspect": 3e3, "gone": 6e3}, 1e4
# To be later by a whole deadline, where nobody is in time; as much as one request of a hundred more that is late.
SOONER, MOST_DEADLINES = 10.0, 50.0
# The usual cost is no less than this part of the dearest: else the penalties above would be small beside prices.
DEAREST_PARTS = 50
# A node whose speed nobody knows, in multiples of the usual cost.
UNKNOWN = 10.0
# What is not in memory has to be cheaper by so much than what is, even where its load leaves time enough: else requests
# that another node answers at once would wait for it.
COLD = 1.25
# What the whole deadline weighs between nodes that cost the same, in multiples of the cheapest: less than prices that
# differ at all. Of the usual cost it would outweigh them, as soon as one node somewhere is far dearer than all others.
EQUALLY_DEAR = 1e-3
# For `nearest`, the distance that weighs as much as the usual cost.
USUAL_MS = 50.0

# How full a node may be for those who do not ask for an answer in time: as long as its queue does not grow without end,
# and for `nearest` as long as waiting there is no longer than the way to the next one. (In replayed days with slow
# nodes the 99th percentile of `nearest` is 2 % longer at 0.8.)
FULL: dict[Objective, float] = {"cheapest": 0.8, "nearest": 0.7}


@dataclass(frozen=True, slots=True)
class Draft:
    """A block before anybody is placed."""

    objective: Objective
    offers: Offers
    cost: Array
    stay_cost: Array
    broken: Mask
    # What one request per second takes of each node.
    load: Array
    # What costs are in multiples of, where they stand for something else; the same for all drafts of one plan.
    usual: float

    @property
    def key(self) -> tuple[str, Objective]:
        return self.offers.model.name, self.objective


def usual_cost(offers: list[Offers]) -> float:
    """A cost to compare others with; US dollars per 1,000.

    Of all that is offered, not of the cheapest: nodes that are nearly free would make it cheap to be late everywhere.
    """
    by_node = [found.usd_per_1000.mean(axis=0) for found in offers]
    known = [costs[(costs > 0) & np.isfinite(costs)] for costs in by_node]
    known = [costs for costs in known if costs.size]
    if not known:
        return 1e-6
    dearest = max(float(costs.max()) for costs in known)
    return max(float(np.median([np.median(costs) for costs in known])), dearest / DEAREST_PARTS)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Of one model, what depends on times alone: in multiples of the usual cost where it speaks against a node."""

    # The chances that they were worked out from: as long as these are the same object, nothing is another.
    p_in_time: Array
    # Where it is late, and where so late that also those leave who are there.
    late: Array
    staying_late: Array
    # Late for many.
    ill: Mask
    # How long an answer takes, in deadlines, and the round trip in steps in which it counts.
    takes: Array
    way_ms: Array


class Drafter:
    """Makes drafts; remembers what no price changes."""

    def __init__(self) -> None:
        self._weights: dict[str, _Weights] = {}
        # Of the nodes of one plan.
        self._standing: dict[tuple[NodeFacts, ...], Array] = {}

    def draft(self, offers: Offers, objective: Objective, usual: float) -> Draft:
        weights = self._weights.get(offers.model.name)
        if weights is None or weights.p_in_time is not offers.p_in_time:
            weights = self._weights[offers.model.name] = _weighed(offers)
        standing = self._standing.get(offers.nodes)
        if standing is None:
            standing = np.array([STANDING[node.standing] for node in offers.nodes])
            self._standing[offers.nodes] = standing
        return _drafted(offers, objective, usual, weights, standing * usual)

    def begin(self, models: Collection[str]) -> None:
        """Before the drafts of a plan: forgets models that are gone, and the nodes of the last one."""
        self._standing.clear()
        self._weights = {name: weights for name, weights in self._weights.items() if name in models}


def _drafted(offers: Offers, objective: Objective, usual: float, weights: _Weights, standing: Array) -> Draft:
    usd = np.where(np.isfinite(offers.usd_per_1000), offers.usd_per_1000, UNKNOWN * usual)
    if offers.cold.any():
        usd = np.where(offers.cold[None, :], COLD * usd, usd)
    broken = (standing > 0)[None, :] | ~offers.allowed
    if objective == "nearest":
        # Of nodes equally far the cheaper one.
        way = weights.way_ms
        base = way * (usual / USUAL_MS) + 1e-6 * usd
        stay = staying_distance_ms(way) * (usual / USUAL_MS) + 1e-6 * usd
        # Near, but late for many while another node is not: `nearest` means one that works.
        ill = weights.ill & (~weights.ill & offers.allowed).any(axis=1, keepdims=True)
        against = staying_against = standing[None, :] + (usual * LATE) * ill
        broken = broken | ill
    else:
        # Of nodes equally dear the sooner one.
        sooner = EQUALLY_DEAR * usd.min(where=usd > 0, initial=usual)
        base, stay = usd + sooner * weights.takes, usd * (1 - HYSTERESIS)
        against = staying_against = standing[None, :]
        if objective == "cheapest-in-time":
            against, staying_against = against + usual * weights.late, staying_against + usual * weights.staying_late
            broken = broken | weights.ill
    cost = np.where(offers.allowed, base + against, np.inf)
    stay_cost = np.minimum(np.where(offers.allowed, stay + staying_against, np.inf), cost)
    return Draft(objective, offers, cost, stay_cost, broken, _load(offers, objective), usual)


def _load(offers: Offers, objective: Objective) -> Array:
    """Who does not ask for an answer in time may fill a node further than a deadline would allow."""
    if objective == "cheapest-in-time":
        return offers.load
    found: Array = offers.load * offers.utilization / np.maximum(offers.utilization, FULL[objective])
    return found


def _weighed(offers: Offers) -> _Weights:
    way_ms, deadline_ms = offers.network[:, :, 2], offers.model.deadline_ms
    takes = np.minimum((way_ms + offers.service[None, :, 5]) / deadline_ms, MOST_DEADLINES)
    return _Weights(
        p_in_time=offers.p_in_time,
        late=_lateness(offers.p_in_time, takes),
        staying_late=_lateness(offers.p_staying, takes),
        ill=offers.p_in_time < BROKEN_BELOW,
        takes=np.minimum((way_ms + offers.service[None, :, 2]) / deadline_ms, MOST_DEADLINES),
        way_ms=distance_ms(way_ms),
    )


def _lateness(p: Array, takes: Array) -> Array:
    """What speaks against a node that is late, in multiples of the usual cost; nothing where it is in time."""
    late = LATE * np.maximum(0.0, IN_TIME - p) / IN_TIME + SOONER * takes
    return np.where(p < IN_TIME, late, 0.0)
