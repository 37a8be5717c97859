"""Route tables out of a plan: what xDS hands to gateways and clients. What has not changed stays the same object.

Nodes that stand by keep their places as long as those are about as good as the best ones: measurements drift and prices
elsewhere change all the time, and a new order of nodes that nobody calls is not worth telling a thousand clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nearmesh.routing import Objective
from nearmesh.routing.objectives import HYSTERESIS
from nearmesh.routing.table import Endpoint, Listener, ModelRoutes, RouteTable, in_steps
from nearmesh_controlplane.routing.facts import NodeFacts
from nearmesh_controlplane.routing.planner import Block, Plan

# Endpoints of one route: enough to outlive most of a large mesh; each is a priority of its own that has to be sent.
MAX_ENDPOINTS = 16

# Endpoints that are remembered.
MAX_KEPT = 100_000

# A model and an objective.
Key = tuple[str, Objective]
# Where clients of a region reach a node.
Address = Callable[[str, str, Listener], str]


@dataclass(frozen=True, slots=True)
class _Row:
    """One route as numbers, and what was made of it."""

    nodes: tuple[str, ...]
    shares: tuple[float, ...]
    addresses: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]


class Tables:
    """Makes tables; remembers the last ones."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._rows: dict[tuple[str, Listener, str, str], _Row] = {}
        self._routes: dict[tuple[str, Listener, str], ModelRoutes] = {}
        self._ends: dict[tuple[str, float, str], Endpoint] = {}
        # Of the plan that was asked about last: all regions' orders, block by block.
        self._plan: Plan | None = None
        self._orders: dict[Key, _Orders] = {}

    def table(
        self, plan: Plan, region: str, listener: Listener, *, placed_as: str, nearest: Sequence[NodeFacts]
    ) -> RouteTable:
        """For clients of `region`, who are placed as those of a region that was planned for."""
        if plan is not self._plan:
            self._plan, self._orders = plan, {}
        row = plan.regions[placed_as]
        addresses = {node.id: self._address(region, node.id, listener) for node in plan.facts.nodes}
        by_model: dict[str, dict[str, tuple[Endpoint, ...]]] = {model.name: {} for model in plan.facts.models}
        for key, block in plan.blocks.items():
            orders = self._ordered(plan, key, block)
            by_model[key[0]][key[1]] = self._endpoints((region, listener, *key), orders, row, addresses)
        own = {model.name: model.objective for model in plan.facts.models}
        return RouteTable(
            region=region,
            models={model: self._model(region, listener, model, own[model], by_model[model]) for model in by_model},
            nearest=tuple(self._endpoint(node, 0.0, addresses[node.id]) for node in nearest[:MAX_ENDPOINTS]),
        )

    def _ordered(self, plan: Plan, key: Key, block: Block) -> _Orders:
        found = self._orders.get(key)
        if found is None:
            found = self._orders[key] = _Orders(plan, block)
        return found

    def forget(self, regions: set[str], models: set[str]) -> None:
        """Keeps these alone."""
        self._rows = {key: row for key, row in self._rows.items() if key[0] in regions and key[2] in models}
        self._routes = {key: found for key, found in self._routes.items() if key[0] in regions and key[2] in models}

    def _model(
        self, region: str, listener: Listener, model: str, own: str, by_objective: dict[str, tuple[Endpoint, ...]]
    ) -> ModelRoutes:
        # A model that nobody serves has routes that lead nowhere.
        routes = {objective: by_objective.get(objective, ()) for objective in _OBJECTIVES}
        known = self._routes.get((region, listener, model))
        if (
            known is None
            or known.default_objective != own
            or any(known.by_objective[o] is not routes[o] for o in routes)
        ):
            known = self._routes[region, listener, model] = ModelRoutes(default_objective=own, by_objective=routes)
        return known

    def _endpoints(
        self, key: tuple[str, Listener, str, str], orders: _Orders, row: int, by_node: Mapping[str, str]
    ) -> tuple[Endpoint, ...]:
        columns, shares, known = orders.columns[row], orders.shares[row], self._rows.get(key)
        if known is not None and known.shares == shares:
            columns = orders.kept(row, known.nodes)
        nodes = [orders.nodes[at] for at in columns]
        ids = tuple([node.id for node in nodes])
        addresses = tuple([by_node[node] for node in ids])
        if known is None or (known.nodes, known.shares, known.addresses) != (ids, shares, addresses):
            made = tuple(self._endpoint(*of) for of in zip(nodes, shares, addresses, strict=True))
            known = self._rows[key] = _Row(ids, shares, addresses, made)
        return known.endpoints

    def _endpoint(self, node: NodeFacts, share: float, address: str) -> Endpoint:
        """The same object for all models and regions."""
        key = (node.id, share, address)
        found = self._ends.get(key)
        if found is None or (found.site, found.region) != (node.site, node.region):
            if len(self._ends) >= MAX_KEPT:
                self._ends.clear()
            found = self._ends[key] = Endpoint(
                node=node.id, site=node.site, region=node.region, address=address, share=share
            )
        return found


_OBJECTIVES = ("cheapest-in-time", "nearest", "cheapest")


class _Orders:
    """The routes of one block: for each region the columns of its nodes, best first, and their shares in steps."""

    def __init__(self, plan: Plan, block: Block) -> None:
        self.nodes = block.offers.nodes
        scarcity = np.array([plan.scarcity.get(node.id, 0.0) for node in self.nodes])
        self._cost = block.cost + block.offers.load * scarcity
        order = np.lexsort((self._cost, -np.round(block.shares, 2)))
        # What must not be chosen costs infinitely much, has no share, and so stands last.
        able = np.isfinite(self._cost).sum(axis=1).tolist()
        order = order[:, :MAX_ENDPOINTS]
        shares = np.take_along_axis(block.shares, order, axis=1).tolist()
        self.columns: list[list[int]] = [row[:count] for row, count in zip(order.tolist(), able, strict=True)]
        self.shares = [tuple(map(in_steps, row[:count])) for row, count in zip(shares, able, strict=True)]
        self._column: dict[str, int] = {}

    def kept(self, row: int, before: tuple[str, ...]) -> list[int]:
        """The columns of the nodes that the route had before, if each is about as good as the best at its place."""
        best = self.columns[row]
        self._column = self._column or {node.id: at for at, node in enumerate(self.nodes)}
        held = [self._column.get(node, -1) for node in before]
        if held == best or -1 in held or len(held) != len(best):
            return best
        at_work = sum(share > 0 for share in self.shares[row])
        now, then = self._cost[row, best], self._cost[row, held]
        alike = held[:at_work] == best[:at_work] and bool(np.all(np.abs(then - now) <= HYSTERESIS * np.abs(now)))
        return held if alike else best
