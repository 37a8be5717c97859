"""Blocks on top of each other, over all nodes: the rows of one transportation problem, and the way back from it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nearmesh.routing.objectives import IN_TIME
from nearmesh.routing.times import LEVELS
from nearmesh_controlplane.routing import moves
from nearmesh_controlplane.routing.drafts import NO_ROOM, Draft
from nearmesh_controlplane.routing.facts import Facts, Key, NodeFacts, Standing
from nearmesh_controlplane.routing.offers import Offers
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

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.column = {node.id: at for at, node in enumerate(facts.nodes)}
        self._columns: dict[tuple[NodeFacts, ...], Ints] = {}
        self._sites: dict[tuple[NodeFacts, ...], list[Ints]] = {}
        self._young = {model for (_, model), age_s in facts.ready_for_s.items() if age_s < moves.JOINING_S}

    def columns(self, nodes: tuple[NodeFacts, ...]) -> Ints:
        """Where those nodes are."""
        if nodes not in self._columns:
            self._columns[nodes] = np.array([self.column[node.id] for node in nodes])
        return self._columns[nodes]

    def sites(self, nodes: tuple[NodeFacts, ...]) -> list[Ints]:
        """The places in `nodes` of those that share a site, where there are several."""
        if nodes not in self._sites:
            self._sites[nodes] = _sites(nodes)
        return self._sites[nodes]

    def joined(self, offers: Offers) -> Array:
        """The part of its capacity that each replica may use already."""
        if offers.model.name not in self._young:
            return np.ones(len(offers.nodes))
        since = self.facts.ready_for_s
        return moves.joined(np.array([since.get((node.id, offers.model.name), math.inf) for node in offers.nodes]))


class Stack:
    """Drafts, and who holds what of them."""

    def __init__(self, frame: Frame, drafts: list[Draft], held: dict[Key, dict[str, float]]) -> None:
        self._frame = frame
        self._facts = facts = frame.facts
        self.drafts = drafts
        self._at: dict[int, tuple[int, Ints]] = {}
        count = len(facts.regions)
        shape = (count * len(drafts), len(facts.nodes))
        cost, stay, load = np.full(shape, np.inf), np.full(shape, np.inf), np.full(shape, 1.0)
        self._broken: Mask = np.ones(shape, dtype=bool)
        for number, draft in enumerate(drafts):
            columns = frame.columns(draft.offers.nodes)
            self._at[id(draft)] = (number * count, columns)
            rows = slice(number * count, (number + 1) * count)
            cost[rows, columns], stay[rows, columns] = draft.cost, draft.stay_cost
            load[rows, columns] = draft.load / frame.joined(draft.offers)
            self._broken[rows, columns] = draft.broken
        # Where no node may answer there is nothing to place.
        self._open = np.isfinite(cost).any(axis=1)
        self._demand, self._held = self._asked(shape[0]), self._holding(shape, held)
        some = self._open
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

    def place(self, scarcity: dict[str, float]) -> Placement:
        """The cheapest placement; `scarcity` by node is that of the last one."""
        known = self._by_column(scarcity)
        if not self._open.any():
            return Placement(shares=np.zeros((0, len(known))), scarcity=np.zeros_like(known))
        return place(self.problem, known)

    def cheapest(self, scarcity: dict[str, float]) -> Array:
        """Each row for itself."""
        return cheapest(self.problem, self._by_column(scarcity))

    def unmoved(self, shares: Array) -> Array:
        """The same, but rows that nobody is known to ask for stay where they are, if nothing is wrong with that."""
        problem = self.problem
        at_odds = ((problem.held > 0) & self._broken[self._open]).any(axis=1)
        stays = (problem.demand == 0) & ~at_odds & (np.abs(problem.held.sum(axis=1) - 1) < _WHOLE)
        return np.where(stays[:, None], problem.held, shares)

    def _by_column(self, by_node: dict[str, float]) -> Array:
        return np.array([by_node.get(node.id, 0.0) for node in self._facts.nodes])

    def even(self, shares: Array) -> Array:
        """The same, with what twins at one site get shared among them; for all rows."""
        found = np.zeros_like(self._held)
        found[self._open] = shares
        for draft in self.drafts:
            first, columns = self._at[id(draft)]
            rows = slice(first, first + len(self._facts.regions))
            for twins in self._frame.sites(draft.offers.nodes):
                found[rows, columns[twins]] = _evenly(found[rows, columns[twins]], draft, twins)
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
        first, columns = self._at[id(draft)]
        return shares[first : first + len(self._facts.regions)][:, columns]

    def by_node(self, values: Array) -> dict[str, float]:
        return {node.id: float(value) for node, value in zip(self._facts.nodes, values, strict=True)}

    def _asked(self, rows: int) -> Array:
        found = np.zeros(rows)
        for draft in self.drafts:
            first, _ = self._at[id(draft)]
            for row, region in enumerate(self._facts.regions):
                found[first + row] = self._facts.demand.get((region, draft.offers.model.name, draft.objective), 0.0)
        return found

    def _holding(self, shape: tuple[int, int], held: dict[Key, dict[str, float]]) -> Array:
        found = np.zeros(shape)
        for draft in self.drafts:
            first, columns = self._at[id(draft)]
            there = set(columns.tolist())
            for row, region in enumerate(self._facts.regions):
                for node, share in held.get((region, draft.offers.model.name, draft.objective), {}).items():
                    at = self._frame.column.get(node)
                    if at is not None and at in there:
                        found[first + row, at] = share
        return found


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
