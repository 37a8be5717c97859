"""Decides all routes at once, and remembers who was placed where, so that small differences move nobody.

`Planner.plan` takes facts and gives a `Plan`: for each client region, model and objective the shares of its requests
that go to each node, and the order in which the others follow. Pure: no clock, no sockets; `now_s` is any clock that
never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import numpy.typing as npt

from nearmesh.routing.objectives import Objective
from nearmesh_controlplane.routing.drafts import Draft, Drafter, usual_cost
from nearmesh_controlplane.routing.facts import Facts, Key, NodeFacts
from nearmesh_controlplane.routing.held import Held
from nearmesh_controlplane.routing.offers import OfferBook, Offers, pressures
from nearmesh_controlplane.routing.stack import TWINS, Frame, Stack, by_itself

Array = npt.NDArray[np.float64]


# After going on from another planner's shares, requests that nobody has told of yet stay where they are for so long:
# plain xDS clients tell every 10 s, and a node that was full for them is full, whoever knows it.
RESUMED_S = 15.0


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
    # Linear programs that had to be solved, and whether the last one was given up for something that will do.
    rounds: int = 0
    given_up: bool = False
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
        self._drafter = Drafter()
        self._held = Held()
        self._scarcity: dict[str, float] = {}
        self._planned_s = self._resumed_s = -math.inf

    def resume(self, held: Mapping[Key, Mapping[str, float]], now_s: float) -> None:
        """Goes on from shares that another planner had placed: what should move from there moves by the ramp."""
        self._held.resume(held)
        self._planned_s = self._resumed_s = now_s

    def plan(self, facts: Facts, now_s: float, also: Iterable[Key] = ()) -> Plan:
        """The routes as of now: of every model under its own objective, and of what is asked for or in demand."""
        elapsed_s, self._planned_s = now_s - self._planned_s, now_s
        frame = Frame(facts, self._held)
        drafts = self._drafts(facts, {*facts.demand, *also})
        wanted = {(model, objective) for (_, model, objective), per_s in facts.demand.items() if per_s > 0}
        stack = Stack(frame, [draft for draft in drafts if draft.key in wanted])
        found = stack.place(self._scarcity)
        resumed = now_s - self._resumed_s < RESUMED_S
        target = stack.even(stack.unmoved(found.shares) if resumed else found.shares)
        shares = stack.advance(target, elapsed_s)
        self._scarcity = frame.by_node(found.scarcity)
        blocks = {draft.key: _placed(draft, stack.of(draft, target), stack.of(draft, shares)) for draft in stack.drafts}
        for draft in drafts:
            if draft.key not in wanted:
                alone = by_itself(frame, draft, found.scarcity, resumed=resumed)
                blocks[draft.key] = _placed(draft, alone, alone)
        self._remember(frame, blocks)
        return Plan(
            facts=facts,
            blocks=blocks,
            scarcity=self._scarcity,
            taken=frame.by_node(stack.taken(shares)),
            moving=bool(np.abs(target - shares).max(initial=0.0) > TWINS),
            unplaced_per_s=found.unplaced_per_s,
            rounds=found.rounds,
            given_up=found.given_up,
            regions={region: row for row, region in enumerate(facts.regions)},
        )

    def _drafts(self, facts: Facts, asked: set[Key]) -> list[Draft]:
        wanted = {(model, objective) for _, model, objective in asked}
        pressure = pressures(facts)
        offers = [(model, self._offers.offers(facts, model, pressure)) for model in facts.models]
        names = {model.name for model in facts.models}
        self._offers.keep_only(names)
        self._drafter.begin(names)
        usual = usual_cost([found for _, found in offers if found])
        drafts = []
        for model, found in offers:
            if found is None:
                continue
            named: list[Objective] = [o for o in get_args(Objective) if (model.name, o) in wanted]
            objectives = dict.fromkeys([model.objective, *named])
            drafts += [self._drafter.draft(found, objective, usual) for objective in objectives]
        return drafts

    def _remember(self, frame: Frame, blocks: dict[tuple[str, Objective], Block]) -> None:
        facts = frame.facts
        self._held.keep_only({model.name for model in facts.models})
        for name, block in blocks.items():
            self._held.remember(name, facts.regions, frame.place(block.offers.nodes).ids, block.shares)


def _placed(draft: Draft, target: Array, shares: Array) -> Block:
    return Block(draft.objective, draft.offers, draft.cost, draft.stay_cost, target, shares)
