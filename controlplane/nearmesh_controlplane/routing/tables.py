"""Route tables out of a plan: what xDS hands to gateways and clients. What has not changed stays the same object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearmesh.routing.table import Endpoint, Listener, ModelRoutes, RouteTable, in_steps
from nearmesh_controlplane.routing.facts import NodeFacts
from nearmesh_controlplane.routing.planner import Block, Plan

# Endpoints of one route: enough to outlive most of a large mesh; each is a priority of its own that has to be sent.
MAX_ENDPOINTS = 16

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

    def table(
        self, plan: Plan, region: str, listener: Listener, *, placed_as: str, nearest: Sequence[NodeFacts]
    ) -> RouteTable:
        """For clients of `region`, who are placed as those of a region that was planned for."""
        row = plan.regions[placed_as]
        by_model: dict[str, dict[str, tuple[Endpoint, ...]]] = {model.name: {} for model in plan.facts.models}
        for (model, objective), block in plan.blocks.items():
            by_model[model][objective] = self._endpoints(plan, block, row, region, listener)
        own = {model.name: model.objective for model in plan.facts.models}
        return RouteTable(
            region=region,
            models={model: self._model(region, listener, model, own[model], by_model[model]) for model in by_model},
            nearest=tuple(self._endpoint(region, node, listener, 0.0) for node in nearest[:MAX_ENDPOINTS]),
        )

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

    def _endpoints(self, plan: Plan, block: Block, row: int, region: str, listener: Listener) -> tuple[Endpoint, ...]:
        chosen, shares = _best(plan, block, row)
        nodes = [block.offers.nodes[at] for at in chosen]
        ids = tuple(node.id for node in nodes)
        addresses = tuple(self._address(region, node.id, listener) for node in nodes)
        key = (region, listener, block.offers.model.name, block.objective)
        known = self._rows.get(key)
        if known is None or (known.nodes, known.shares, known.addresses) != (ids, shares, addresses):
            made = tuple(self._endpoint(region, n, listener, share) for n, share in zip(nodes, shares, strict=True))
            known = self._rows[key] = _Row(ids, shares, addresses, made)
        return known.endpoints

    def _endpoint(self, region: str, node: NodeFacts, listener: Listener, share: float) -> Endpoint:
        return Endpoint(
            node=node.id,
            site=node.site,
            region=node.region,
            address=self._address(region, node.id, listener),
            share=share,
        )


_OBJECTIVES = ("cheapest-in-time", "nearest", "cheapest")


def _best(plan: Plan, block: Block, row: int) -> tuple[list[int], tuple[float, ...]]:
    """The columns of a row's route, best first, and their shares in steps."""
    shares, cost = block.shares[row], block.cost[row] + block.offers.load * _scarcity(plan, block)
    able = np.flatnonzero(np.isfinite(cost))
    order = able[np.lexsort((able, cost[able], -np.round(shares[able], 2)))][:MAX_ENDPOINTS]
    return [int(at) for at in order], tuple(in_steps(float(share)) for share in shares[order])


def _scarcity(plan: Plan, block: Block) -> npt.NDArray[np.float64]:
    return np.array([plan.scarcity.get(node.id, 0.0) for node in block.offers.nodes])
