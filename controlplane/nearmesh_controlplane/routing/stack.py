"""Blocks on top of each other, over all nodes: the rows of one transportation problem, and the way back from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearmesh.routing.objectives import IN_TIME
from nearmesh.routing.times import LEVELS
from nearmesh_controlplane.routing import moves
from nearmesh_controlplane.routing.drafts import NO_ROOM, Draft
from nearmesh_controlplane.routing.facts import Facts, NodeFacts, Standing
from nearmesh_controlplane.routing.held import Held
from nearmesh_controlplane.routing.placement import Placement, Problem, cheapest, place

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Costs at one site that differ by less are of twins, which share evenly.
TWINS = 1e-3
# Where all at one site are late, so are those whose chances and times differ by less than this: to fill one of them
# would make it later still.
LATE_TWINS = 0.1
# Shares that are within this of 1 are all of a row: they may have travelled.
_WHOLE = 1e-3
_P95 = LEVELS.index(0.95)


class Frame:
    """What all stacks of one plan share: where nodes are among the columns, which are twins, and which are young."""

    def __init__(self, facts: Facts, held: Held) -> None:
        self.facts = facts
        self._held = held
        self._column = {node.id: at for at, node in enumerate(facts.nodes)}
        self._places: dict[tuple[NodeFacts, ...], _Place] = {}
        self._young = {model for (_, model), age_s in facts.ready_for_s.items() if age_s < moves.JOINING_S}

    def place(self, nodes: tuple[NodeFacts, ...]) -> _Place:
        """Where those nodes are."""
        found = self._places.get(nodes)
        if found is None:
            columns = np.array([self._column[node.id] for node in nodes])
            found = self._places[nodes] = _Place(columns, tuple(node.id for node in nodes), _sites(nodes))
        return found

    def held(self, draft: Draft) -> Array:
        """Who is where now."""
        return self._held.shares(draft.key, self.facts.regions, self.place(draft.offers.nodes).ids)

    def load(self, draft: Draft) -> Array:
        """What one request per second takes of each node, of those that are young more."""
        offers = draft.offers
        if offers.model.name not in self._young:
            return draft.load
        since = self.facts.ready_for_s
        ready_for_s = np.array([since.get((node.id, offers.model.name), math.inf) for node in offers.nodes])
        found: Array = draft.load / moves.joined(ready_for_s)
        return found

    def by_column(self, by_node: Mapping[str, float]) -> Array:
        return np.array([by_node.get(node.id, 0.0) for node in self.facts.nodes])

    def by_node(self, values: Array) -> dict[str, float]:
        return dict(zip(self._column, values.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Place:
    """Some of the nodes: which columns they are, their names, and which places among them share a site."""

    columns: Ints
    ids: tuple[str, ...]
    sites: list[Ints]


class Stack:
    """Drafts, and who holds what of them."""

    def __init__(self, frame: Frame, drafts: list[Draft]) -> None:
        self._frame = frame
        self._facts = facts = frame.facts
        self.drafts = drafts
        count = len(facts.regions)
        self._at = {id(draft): number * count for number, draft in enumerate(drafts)}
        shape = (count * len(drafts), len(facts.nodes))
        cost, stay, load = np.full(shape, np.inf), np.full(shape, np.inf), np.full(shape, 1.0)
        self._broken: Mask = np.ones(shape, dtype=bool)
        self._held = np.zeros(shape)
        for draft in drafts:
            rows, columns = self._rows(draft), frame.place(draft.offers.nodes).columns
            cost[rows, columns], stay[rows, columns] = draft.cost, draft.stay_cost
            load[rows, columns], self._held[rows, columns] = frame.load(draft), frame.held(draft)
            self._broken[rows, columns] = draft.broken
        # Where no node may answer there is nothing to place.
        self._open = some = np.isfinite(cost).any(axis=1)
        self._demand = self._asked(shape[0])
        self.problem = Problem(
            cost=cost[some],
            stay_cost=stay[some],
            held=self._held[some],
            demand=self._demand[some],
            load=load[some],
            capacity=np.ones(shape[1]),
            # By the drafts' own measure: by another one, of what is asked for alone, a late node might not be worth it.
            overload_cost=NO_ROOM * max((draft.usual for draft in drafts), default=0.0),
        )

    def place(self, scarcity: Mapping[str, float]) -> Placement:
        """The cheapest placement; `scarcity` by node is that of the last one."""
        known = self._frame.by_column(scarcity)
        if not self._open.any():
            return Placement(shares=np.zeros((0, len(known))), scarcity=np.zeros_like(known))
        return place(self.problem, known)

    def unmoved(self, shares: Array) -> Array:
        """The same, but rows that nobody is known to ask for stay where they are, if nothing is wrong with that."""
        problem = self.problem
        quiet = (problem.demand == 0)[:, None]
        return np.where(quiet, unmoved(shares, problem.held, self._broken[self._open]), shares)

    def even(self, shares: Array) -> Array:
        """The same, with what twins at one site get shared among them; for all rows."""
        found = np.zeros_like(self._held)
        found[self._open] = shares
        for draft in self.drafts:
            rows, place = self._rows(draft), self._frame.place(draft.offers.nodes)
            for twins in place.sites:
                found[rows, place.columns[twins]] = _evenly(found[rows, place.columns[twins]], draft, twins)
        return found

    def advance(self, target: Array, elapsed_s: float) -> Array:
        """Where the requests go until the next plan."""
        found = np.zeros_like(target)
        some = self._open
        found[some] = moves.advance(
            self._held[some],
            target[some],
            self._broken[some],
            demand=self._demand[some],
            load=self.problem.load,
            capacity=self.problem.capacity,
            elapsed_s=elapsed_s,
        )
        return found

    def taken(self, shares: Array) -> Array:
        """What is taken of each node."""
        found: Array = (self.problem.demand[:, None] * self.problem.load * shares[self._open]).sum(axis=0)
        return found

    def of(self, draft: Draft, shares: Array) -> Array:
        """A block's part."""
        return shares[self._rows(draft)][:, self._frame.place(draft.offers.nodes).columns]

    def _rows(self, draft: Draft) -> slice:
        first = self._at[id(draft)]
        return slice(first, first + len(self._facts.regions))

    def _asked(self, rows: int) -> Array:
        found, row_of = np.zeros(rows), {region: row for row, region in enumerate(self._facts.regions)}
        first = {draft.key: self._at[id(draft)] for draft in self.drafts}
        for (region, model, objective), per_s in self._facts.demand.items():
            if (model, objective) in first and region in row_of:
                found[first[model, objective] + row_of[region]] = per_s
        return found


def by_itself(frame: Frame, draft: Draft, scarcity: Array, *, resumed: bool) -> Array:
    """The shares of a draft that nobody asks for: they are felt by nobody, and need no more than the prices of those
    who do ask. `scarcity` is by column."""
    place, held = frame.place(draft.offers.nodes), frame.held(draft)
    extra = frame.load(draft) * scarcity[place.columns]
    if extra.any():
        shares = cheapest(draft.cost + extra, draft.stay_cost + extra, held)
    else:
        shares = cheapest(draft.cost, draft.stay_cost, held)
    if resumed:
        shares = unmoved(shares, held, draft.broken)
    for twins in place.sites:
        shares[:, twins] = _evenly(shares[:, twins], draft, twins)
    # Where no node may answer nobody is placed.
    shares[~np.isfinite(draft.cost).any(axis=1)] = 0.0
    return shares


def unmoved(shares: Array, held: Array, broken: Mask) -> Array:
    """The same, but rows stay where they are, if nothing is wrong with that."""
    at_odds = ((held > 0) & broken).any(axis=1)
    stays = ~at_odds & (np.abs(held.sum(axis=1) - 1) < _WHOLE)
    return np.where(stays[:, None], held, shares)


def _sites(nodes: tuple[NodeFacts, ...]) -> list[Ints]:
    """The places in `nodes` of those that share a site, where there are several."""
    by_site: dict[tuple[str, str, Standing], list[int]] = {}
    for at, node in enumerate(nodes):
        by_site.setdefault((node.region, node.site, node.standing), []).append(at)
    return [np.array(found) for found in by_site.values() if len(found) > 1]


def _evenly(shares: Array, draft: Draft, twins: Ints) -> Array:
    """A site's part of each row, given to the cheapest of its nodes alike: by what each can do."""
    cost = draft.cost[:, twins]
    alike = (cost <= cost.min(axis=1, keepdims=True) * (1 + TWINS)) | _late_alike(draft, twins)
    able = np.where(alike & np.isfinite(cost), 1 / draft.load[twins], 0.0)
    whole = np.where(alike, shares, 0.0).sum(axis=1, keepdims=True)
    spread = whole * able / np.maximum(able.sum(axis=1, keepdims=True), 1e-12)
    return np.where(alike, spread, shares)


def _late_alike(draft: Draft, twins: Ints) -> Mask:
    """Where all of them are late and time is what counts: those that are hardly later than the best."""
    if draft.objective != "cheapest-in-time":
        return np.zeros((len(draft.cost), len(twins)), dtype=bool)
    chance, takes = draft.offers.p_in_time[:, twins], draft.offers.service[twins, _P95]
    best = chance.max(axis=1, keepdims=True)
    found: Mask = (best < IN_TIME) & (chance >= best - LATE_TWINS) & (takes <= takes.min() * (1 + LATE_TWINS))
    return found
