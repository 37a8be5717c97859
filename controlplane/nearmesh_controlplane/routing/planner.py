"""Decides all routes at once, and remembers who was placed where, so that small differences move nobody.

`Planner.plan` takes facts and gives a `Plan`: for each client region, model and objective the shares of its requests
that go to each node, and the order in which the others follow. Pure: no clock, no sockets; `now_s` is any clock that
never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nearmesh.routing.objectives import IN_TIME, Objective
from nearmesh.routing.rule import HYSTERESIS, NEAR_MS
from nearmesh_controlplane.routing import moves
from nearmesh_controlplane.routing.facts import Facts, Key, NodeFacts, Standing
from nearmesh_controlplane.routing.offers import OfferBook, Offers, pressures
from nearmesh_controlplane.routing.placement import Placement, Problem, place

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# In multiples of the usual cost: what it weighs to be late for everyone, to be asked although a session just broke or
# broke longer ago, and to have no room. Each outweighs all that come before it.
LATE, STANDING, NO_ROOM = 1e3, {"live": 0.0, "suspect": 3e3, "gone": 6e3}, 1e4
# To be later by a whole deadline, where nobody is in time; as much as one request of a hundred more that is late.
SOONER, MOST_DEADLINES = 10.0, 50.0
# A node whose speed nobody knows, in multiples of the usual cost.
UNKNOWN = 10.0
# What the whole deadline weighs between nodes that cost the same.
EQUALLY_DEAR = 1e-3
# For `nearest`, the distance that weighs as much as the usual cost.
USUAL_MS = 50.0
# A node that is in time for fewer than this is left at once, without a ramp.
BROKEN_BELOW = 0.9
# Costs at one site that differ by less are of twins, which share evenly.
TWINS = 1e-3


@dataclass(frozen=True, slots=True)
class Block:
    """One model under one objective: rows are client regions, columns the nodes that serve the model."""

    objective: Objective
    offers: Offers
    # What a request costs, in US dollars per 1,000 or in what stands for them, with all that speaks against a node;
    # infinite where it must not go. The second is for requests that stay where they are.
    cost: Array
    stay_cost: Array
    # Of each region's requests: where they are to go, and where they go for now.
    target: Array
    shares: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All routes of one moment."""

    facts: Facts
    blocks: dict[tuple[str, Objective], Block]
    # By node: what a little more of its capacity would be worth to others, and what of it is taken.
    scarcity: dict[str, float]
    taken: dict[str, float]
    # Traffic is still on its way to its target: plan again within a second.
    moving: bool = False
    # Requests per second that no node has room for.
    unplaced_per_s: float = 0.0
    # Linear programs that had to be solved.
    rounds: int = 0
    regions: dict[str, int] = field(default_factory=dict)

    def shares(self, region: str, model: str, objective: Objective) -> dict[str, float]:
        """Of the region's requests, what each node gets; empty when no node may answer."""
        block = self.blocks.get((model, objective))
        if block is None or region not in self.regions:
            return {}
        row = block.shares[self.regions[region]]
        return {block.offers.nodes[at].id: float(row[at]) for at in np.flatnonzero(row > 0)}

    def order(self, region: str, model: str, objective: Objective) -> list[NodeFacts]:
        """Every node that may answer, best first: those with shares, then the others by their cost."""
        block = self.blocks.get((model, objective))
        if block is None or region not in self.regions:
            return []
        row = self.regions[region]
        scarcity = np.array([self.scarcity.get(node.id, 0.0) for node in block.offers.nodes])
        cost = block.cost[row] + block.offers.load * scarcity
        shares = np.round(block.shares[row], 2)
        by_cost = sorted(range(len(cost)), key=lambda at: (-shares[at], cost[at], block.offers.nodes[at].id))
        return [block.offers.nodes[at] for at in by_cost if math.isfinite(cost[at])]


class Planner:
    """Plans again and again. Not for several threads."""

    def __init__(self) -> None:
        self._offers = OfferBook()
        self._held: dict[Key, dict[str, float]] = {}
        self._scarcity: dict[str, float] = {}
        self._planned_s = -math.inf

    def plan(self, facts: Facts, now_s: float, also: Iterable[Key] = ()) -> Plan:
        """The routes as of now: of every model under its own objective, and of what is asked for or in demand."""
        elapsed_s, self._planned_s = now_s - self._planned_s, now_s
        drafts = self._drafts(facts, {*facts.demand, *also})
        stack = _Stack(facts, drafts, self._held)
        found = stack.place(self._scarcity)
        target = stack.even(found.shares)
        shares = stack.advance(target, elapsed_s)
        blocks = {
            (draft.offers.model.name, draft.objective): Block(
                draft.objective,
                draft.offers,
                draft.cost,
                draft.stay_cost,
                stack.of(draft, target),
                stack.of(draft, shares),
            )
            for draft in drafts
        }
        self._remember(facts, blocks)
        self._scarcity = stack.by_node(found.scarcity)
        return Plan(
            facts=facts,
            blocks=blocks,
            scarcity=self._scarcity,
            taken=stack.by_node(stack.taken(shares)),
            moving=bool(np.abs(target - shares).max(initial=0.0) > TWINS),
            unplaced_per_s=found.unplaced_per_s,
            rounds=found.rounds,
            regions={region: row for row, region in enumerate(facts.regions)},
        )

    def _drafts(self, facts: Facts, asked: set[Key]) -> list[_Draft]:
        wanted = {(model, objective) for _, model, objective in asked}
        pressure = pressures(facts)
        offers = [(model, self._offers.offers(facts, model, pressure)) for model in facts.models]
        self._offers.keep_only(facts.models)
        usual = _usual([found for _, found in offers if found])
        drafts = []
        for model, found in offers:
            if found is None:
                continue
            objectives = [o for o in ("cheapest-in-time", "nearest", "cheapest") if (model.name, o) in wanted]
            for objective in dict.fromkeys([model.objective, *objectives]):
                drafts.append(_draft(found, objective, usual))  # type: ignore[arg-type]
        return drafts

    def _remember(self, facts: Facts, blocks: dict[tuple[str, Objective], Block]) -> None:
        """A model that nobody serves for a moment comes back to where it was."""
        models = {model.name for model in facts.models}
        self._held = {key: held for key, held in self._held.items() if key[1] in models and key[0] in facts.regions}
        for (model, objective), block in blocks.items():
            rows, nodes = np.nonzero(block.shares)
            for region in facts.regions:
                self._held[region, model, objective] = {}
            for row, node in zip(rows, nodes, strict=True):
                held = self._held[facts.regions[row], model, objective]
                held[block.offers.nodes[node].id] = float(block.shares[row, node])


@dataclass(frozen=True, slots=True)
class _Draft:
    """A block before anybody is placed."""

    objective: Objective
    offers: Offers
    cost: Array
    stay_cost: Array
    broken: Mask


def _usual(offers: list[Offers]) -> float:
    """A cost to compare others with; US dollars per 1,000."""
    costs = np.concatenate([found.usd_per_1000.min(axis=1) for found in offers]) if offers else np.zeros(0)
    known = costs[np.isfinite(costs) & (costs > 0)]
    return float(np.median(known)) if len(known) else 1e-6


def _draft(offers: Offers, objective: Objective, usual: float) -> _Draft:
    standing = np.array([STANDING[node.standing] for node in offers.nodes]) * usual
    usd = np.where(np.isfinite(offers.usd_per_1000), offers.usd_per_1000, UNKNOWN * usual)
    if objective == "nearest":
        way = offers.network[:, :, 2]
        base, stay = way, np.maximum(0.0, way - np.maximum(NEAR_MS, HYSTERESIS * way))
        base, stay = base * usual / USUAL_MS, stay * usual / USUAL_MS
        # Of nodes equally far the cheaper one.
        base, stay = base + 1e-6 * usd, stay + 1e-6 * usd
        against = staying_against = standing[None, :]
    else:
        # Of nodes equally dear the sooner one.
        takes = (offers.network[:, :, 2] + offers.service[None, :, 2]) / offers.model.deadline_ms
        base, stay = usd + EQUALLY_DEAR * usual * takes, usd * (1 - HYSTERESIS)
        against = staying_against = standing[None, :]
        if objective == "cheapest-in-time":
            against = against + usual * _lateness(offers, offers.p_surely)
            staying_against = staying_against + usual * _lateness(offers, offers.p_in_time)
    cost = np.where(offers.allowed, base + against, np.inf)
    stay_cost = np.minimum(np.where(offers.allowed, stay + staying_against, np.inf), cost)
    broken = (standing > 0)[None, :] | ~offers.allowed
    if objective == "cheapest-in-time":
        broken = broken | (offers.p_in_time < BROKEN_BELOW)
    return _Draft(objective, offers, cost, stay_cost, broken)


def _lateness(offers: Offers, p: Array) -> Array:
    """What speaks against a node that is late, in multiples of the usual cost; nothing where it is in time."""
    takes = (offers.network[:, :, 2] + offers.service[None, :, 5]) / offers.model.deadline_ms
    late = LATE * np.maximum(0.0, IN_TIME - p) / IN_TIME + SOONER * np.minimum(takes, MOST_DEADLINES)
    return np.where(p < IN_TIME, late, 0.0)


class _Stack:
    """All blocks on top of each other, over all nodes: the rows of one transportation problem."""

    def __init__(self, facts: Facts, drafts: list[_Draft], held: dict[Key, dict[str, float]]) -> None:
        self._facts = facts
        self._drafts = drafts
        self._column = {node.id: at for at, node in enumerate(facts.nodes)}
        self._at: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}
        count = len(facts.regions)
        shape = (count * len(drafts), len(facts.nodes))
        cost, stay, load = np.full(shape, np.inf), np.full(shape, np.inf), np.full(shape, 1.0)
        self._broken: Mask = np.ones(shape, dtype=bool)
        for number, draft in enumerate(drafts):
            columns = np.array([self._column[node.id] for node in draft.offers.nodes])
            self._at[id(draft)] = (number * count, columns)
            rows = slice(number * count, (number + 1) * count)
            cost[rows, columns], stay[rows, columns] = draft.cost, draft.stay_cost
            load[rows, columns] = draft.offers.load / self._joined(draft.offers)
            self._broken[rows, columns] = draft.broken
        # Where no node may answer there is nothing to place.
        self._open = np.isfinite(cost).any(axis=1)
        self._demand, self._held = self._asked(shape[0]), self._holding(shape, held)
        usual = _usual([draft.offers for draft in drafts])
        some = self._open
        self.problem = Problem(
            cost=cost[some],
            stay_cost=stay[some],
            held=self._held[some],
            demand=self._demand[some],
            load=load[some],
            capacity=np.ones(shape[1]),
            overload_cost=NO_ROOM * usual,
        )

    def place(self, scarcity: dict[str, float]) -> Placement:
        """The cheapest placement; `scarcity` by node is that of the last one."""
        known = np.array([scarcity.get(node.id, 0.0) for node in self._facts.nodes])
        if not self._open.any():
            return Placement(shares=np.zeros((0, len(known))), scarcity=np.zeros_like(known))
        return place(self.problem, known)

    def even(self, shares: Array) -> Array:
        """The same, with what twins at one site get shared among them; for all rows."""
        found = np.zeros_like(self._held)
        found[self._open] = shares
        for draft in self._drafts:
            first, columns = self._at[id(draft)]
            rows = slice(first, first + len(self._facts.regions))
            for twins in _sites(draft.offers.nodes):
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

    def of(self, draft: _Draft, shares: Array) -> Array:
        """A block's part."""
        first, columns = self._at[id(draft)]
        return shares[first : first + len(self._facts.regions)][:, columns]

    def by_node(self, values: Array) -> dict[str, float]:
        return {node.id: float(value) for node, value in zip(self._facts.nodes, values, strict=True)}

    def _joined(self, offers: Offers) -> Array:
        since = self._facts.ready_for_s
        ages = [since.get((node.id, offers.model.name), math.inf) for node in offers.nodes]
        return moves.joined(np.array(ages))

    def _asked(self, rows: int) -> Array:
        found = np.zeros(rows)
        for draft in self._drafts:
            first, _ = self._at[id(draft)]
            for row, region in enumerate(self._facts.regions):
                found[first + row] = self._facts.demand.get((region, draft.offers.model.name, draft.objective), 0.0)
        return found

    def _holding(self, shape: tuple[int, int], held: dict[Key, dict[str, float]]) -> Array:
        found = np.zeros(shape)
        for draft in self._drafts:
            first, columns = self._at[id(draft)]
            for row, region in enumerate(self._facts.regions):
                for node, share in held.get((region, draft.offers.model.name, draft.objective), {}).items():
                    at = self._column.get(node)
                    if at is not None and at in columns:
                        found[first + row, at] = share
        return found


def _sites(nodes: tuple[NodeFacts, ...]) -> list[npt.NDArray[np.int64]]:
    """The places in `nodes` of those that share a site, where there are several."""
    by_site: dict[tuple[str, str, Standing], list[int]] = {}
    for at, node in enumerate(nodes):
        by_site.setdefault((node.region, node.site, node.standing), []).append(at)
    return [np.array(found) for found in by_site.values() if len(found) > 1]


def _evenly(shares: Array, draft: _Draft, twins: npt.NDArray[np.int64]) -> Array:
    """A site's part of each row, given to the cheapest of its nodes alike: by what each can do."""
    cost = draft.cost[:, twins]
    alike = cost <= cost.min(axis=1, keepdims=True) * (1 + TWINS)
    able = np.where(alike & np.isfinite(cost), 1 / draft.offers.load[twins], 0.0)
    whole = np.where(alike, shares, 0.0).sum(axis=1, keepdims=True)
    spread = whole * able / np.maximum(able.sum(axis=1, keepdims=True), 1e-12)
    return np.where(alike, spread, shares)
