"""Where requests go at present: of each model and objective, the shares of every client region at every node.

A plan begins with where the last one left everybody. Regions and nodes that have come since hold nothing; a model that
nobody serves for a moment comes back to where it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearmesh.routing.objectives import Objective
from nearmesh_controlplane.routing.facts import Key

Array = npt.NDArray[np.float64]
# A model and an objective.
Name = tuple[str, Objective]


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows are client regions, columns nodes."""

    regions: tuple[str, ...]
    nodes: tuple[str, ...]
    shares: Array

    def over(self, regions: tuple[str, ...], nodes: tuple[str, ...]) -> Array:
        """The same over others; what is not among them is left out."""
        if self.regions == regions and self.nodes == nodes:
            return self.shares
        rows, columns = _common(self.regions, regions), _common(self.nodes, nodes)
        found = np.zeros((len(regions), len(nodes)))
        found[np.ix_(rows[1], columns[1])] = self.shares[np.ix_(rows[0], columns[0])]
        return found


class Held:
    """Remembers shares. Nobody changes the arrays that it is given or gives."""

    def __init__(self) -> None:
        self._tables: dict[Name, _Table] = {}

    def resume(self, held: Mapping[Key, Mapping[str, float]]) -> None:
        """Goes on from these alone."""
        by_name: dict[Name, dict[str, Mapping[str, float]]] = {}
        for (region, model, objective), shares in held.items():
            by_name.setdefault((model, objective), {})[region] = shares
        self._tables = {name: _table(by_region) for name, by_region in by_name.items()}

    def shares(self, name: Name, regions: tuple[str, ...], nodes: tuple[str, ...]) -> Array:
        """Of these regions, by row, at these nodes, by column."""
        table = self._tables.get(name)
        return np.zeros((len(regions), len(nodes))) if table is None else table.over(regions, nodes)

    def remember(self, name: Name, regions: tuple[str, ...], nodes: tuple[str, ...], shares: Array) -> None:
        self._tables[name] = _Table(regions, nodes, shares)

    def keep_only(self, models: Collection[str]) -> None:
        """Forgets models that are gone."""
        self._tables = {name: table for name, table in self._tables.items() if name[0] in models}


def _table(by_region: Mapping[str, Mapping[str, float]]) -> _Table:
    nodes = tuple(sorted({node for shares in by_region.values() for node in shares}))
    rows = [[shares.get(node, 0.0) for node in nodes] for shares in by_region.values()]
    return _Table(tuple(by_region), nodes, np.array(rows).reshape(len(rows), len(nodes)))


def _common(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Where what both have is in the one and in the other."""
    at = {name: place for place, name in enumerate(new)}
    places = [place for place, name in enumerate(old) if name in at]
    return places, [at[old[place]] for place in places]
