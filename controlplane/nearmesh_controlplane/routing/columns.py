"""The nodes that serve a model, as columns of what is offered: where they are, what they cost, what may go there.

Many models are served by the same nodes, and from one plan to the next hardly anything of these changes: what is worked
out for one model holds for the next, and what is as it was stays the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearmesh.routing.costs import transfer_usd_per_1000
from nearmesh.routing.times import Times
from nearmesh_controlplane.routing.facts import Facts, ModelFacts, NodeFacts

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Which of all nodes they are, as bytes.
Which = bytes


@dataclass(frozen=True, slots=True)
class Columns:
    """Some of the nodes."""

    which: Which
    nodes: tuple[NodeFacts, ...]
    usd_per_hour: Array
    # Round trips, client region by client region; and the load that all demand together would bring.
    network: tuple[Times, ...]
    pressure: tuple[float, ...]


class View:
    """The nodes of some facts. Made anew for each plan, from the last one."""

    def __init__(self, facts: Facts, pressure: Mapping[str, float], before: View | None = None) -> None:
        """`pressure` by node."""
        self.facts = facts
        self._pressure = pressure
        ids = tuple(node.id for node in facts.nodes)
        alike = before is not None and before.ids == ids
        self.ids: tuple[str, ...] = before.ids if before and alike else ids
        self._before = before._columns if before and alike and before.facts.regions == facts.regions else {}
        self._columns: dict[Which, Columns] = {}
        self._allowed: dict[tuple[frozenset[str], Which], Mask] = {}
        self._transfers: _Transfers | None = None

    def which(self, model: ModelFacts) -> Which:
        """The nodes that serve it."""
        return np.array([at for at, node in enumerate(self.ids) if node in model.replicas], dtype=np.int64).tobytes()

    def columns(self, which: Which) -> Columns:
        found = self._columns.get(which)
        if found is None:
            found = self._columns[which] = self._made(which)
        return found

    def allowed(self, model: ModelFacts, columns: Columns) -> Mask:
        """Whether owners' rules let a region's requests go to a node, shape (regions, nodes)."""
        key = (model.regions, columns.which)
        found = self._allowed.get(key)
        if found is None:
            found = self._allowed[key] = _allowed(self.facts, model, columns.nodes)
        return found

    def transfer(self, model: ModelFacts, columns: Columns) -> Array:
        """What moving 1,000 requests there and their answers back costs, shape (regions, nodes)."""
        if model.transfer_bytes <= 0:
            return np.zeros((len(self.facts.regions), len(columns.nodes)))
        if self._transfers is None:
            self._transfers = _Transfers.of(self.facts)
        return self._transfers.usd_per_1000(model, columns.nodes)

    def _made(self, which: Which) -> Columns:
        nodes = tuple(self.facts.nodes[at] for at in np.frombuffer(which, dtype=np.int64).tolist())
        network = tuple(self.facts.network[region, node.id] for region in self.facts.regions for node in nodes)
        before = self._before.get(which)
        return Columns(
            which=which,
            nodes=nodes,
            usd_per_hour=np.array([node.usd_per_hour for node in nodes]),
            network=before.network if before and before.network == network else network,
            pressure=tuple(self._pressure[node.id] for node in nodes),
        )


@dataclass(frozen=True, slots=True)
class _Transfers:
    """What a GB costs on its way from client regions to those of nodes, and back, shape (regions, places)."""

    places: dict[str, int]
    there: Array
    back: Array

    @classmethod
    def of(cls, facts: Facts) -> _Transfers:
        places = {region: at for at, region in enumerate(sorted({node.region for node in facts.nodes}))}
        price = facts.transfer_usd_per_gb
        there = np.array([[price(region, place) for place in places] for region in facts.regions])
        back = np.array([[price(place, region) for place in places] for region in facts.regions])
        return cls(places, there, back)

    def usd_per_1000(self, model: ModelFacts, nodes: tuple[NodeFacts, ...]) -> Array:
        at = [self.places[node.region] for node in nodes]
        request = transfer_usd_per_1000(1.0, model.transfer_bytes - model.answer_bytes, 0.0)
        answer = transfer_usd_per_1000(1.0, 0.0, model.answer_bytes)
        found: Array = self.there[:, at] * request + self.back[:, at] * answer
        return found


def _allowed(facts: Facts, model: ModelFacts, nodes: tuple[NodeFacts, ...]) -> Mask:
    by_model = np.array([not model.regions or node.region in model.regions for node in nodes])
    rows = []
    for region in facts.regions:
        rule = facts.residency(region)
        rows.append(by_model if rule is None else by_model & np.array([node.region in rule for node in nodes]))
    return np.array(rows)
