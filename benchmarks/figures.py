"""What one measurement says, and what several rounds of it say together: pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nearmesh.quantiles import quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One way, one model, one number of callers, in one round. Times in milliseconds, as the caller saw them."""

    round: int
    model: str
    way: str
    # How many callers asked at a time; each asks again as soon as it has its answer.
    callers: int
    calls: int
    elapsed_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    # Median of the node's own time, from bytes in to bytes out; of the engine alone where there is no node.
    node_p50_ms: float
    # Calls that another node answered than the nearest.
    elsewhere: int

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over the rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


def times(measured_ms: Sequence[float]) -> dict[str, float]:
    """The percentiles of a cell, by its field names."""
    ordered = sorted(measured_ms)
    return {f"p{percent}_ms": quantile(ordered, percent / 100) for percent in (50, 95, 99)}


def over_rounds(cells: Sequence[Cell], value: str) -> Spread:
    """One value of the same cell in every round."""
    return Spread.of([getattr(cell, value) for cell in cells])


def against(cells: Sequence[Cell], floor: Sequence[Cell], value: str) -> tuple[float, float]:
    """How much more than the floor, and how many times the floor: medians over the rounds of each round's own."""
    by_round = {cell.round: getattr(cell, value) for cell in floor}
    pairs = [(getattr(cell, value), by_round[cell.round]) for cell in cells]
    return statistics.median(a - b for a, b in pairs), statistics.median(a / b for a, b in pairs)
