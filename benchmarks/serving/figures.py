"""What the measurements of a run say together: medians over its rounds, ratios within a round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.systems import ECHO, PEERS

# Of these more is better; of everything else, less.
MORE_IS_BETTER = ("per_s",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One system, one model, one number of callers, in one round. Times in milliseconds, as the caller saw them."""

    round: int
    model: str
    system: str
    callers: int
    calls: int
    per_s: float
    # What was not answered, by status.
    errors: Mapping[str, int] = field(default_factory=dict)
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    elapsed_s: float
    server_cpu_s: float
    # Processors that the client took, and that others on the machine did meanwhile.
    client_cores: float
    other_cores: float
    # The sum of what each process of the server had at most; since it started, so of what was measured before as well.
    peak_bytes: int

    @property
    def cpu_ms(self) -> float | None:
        """Processor time of the server for each answer."""
        return self.server_cpu_s / self.elapsed_s / self.per_s * 1000 if self.per_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The engine in its own process, for one model in one round."""

    round: int
    model: str
    # Of each: sessions, threads, batch, per_s, cpu_ms, p50_ms and more.
    ways: Sequence[Mapping[str, Any]]
    peak_bytes: int

    @property
    def best(self) -> Mapping[str, Any]:
        """The way with the most rows in a second."""
        return max(self.ways, key=lambda way: way["per_s"])

    @property
    def alone(self) -> Mapping[str, Any]:
        """The quickest way for one row that is alone."""
        return min((way for way in self.ways if way["batch"] == 1), key=lambda way: way["p50_ms"])


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstCell:
    """One burst on one system in one round."""

    round: int
    model: str
    system: str
    scenario: str
    # The most that the same system answered in the closed loop of this run.
    peak_per_s: float
    offered_per_s: float
    # Answers within the deadline, a second.
    goodput_per_s: float
    # For each status: calls, p50_ms, p95_ms, p99_ms.
    statuses: Mapping[str, Mapping[str, float]]
    # How late the client itself was with its calls.
    lag_p99_ms: float
    # From the last arrival until a request that comes alone takes about its usual time; None: longer than
    # anyone waited.
    empty_s: float | None
    peak_bytes: int
    elapsed_s: float
    server_cpu_s: float
    client_cores: float
    other_cores: float

    @property
    def kept(self) -> float:
        """Goodput as a share of the closed loop's peak."""
        return self.goodput_per_s / self.peak_per_s

    def share(self, status: str) -> float:
        """The share of the calls that ended so."""
        total = sum(found["calls"] for found in self.statuses.values())
        return self.statuses[status]["calls"] / total if status in self.statuses else 0.0

    def time_ms(self, status: str, percentile: str) -> float | None:
        """A percentile of the times of the calls that ended so."""
        return self.statuses[status][percentile] if status in self.statuses else None


def median(values: Iterable[float | None]) -> float | None:
    """Of those that there are; None where there are none."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def of(cells: Iterable[Cell], system: str, callers: int) -> list[Cell]:
    return [cell for cell in cells if cell.system == system and cell.callers == callers]


def value(cells: Iterable[Cell], name: str) -> float | None:
    """The median over the rounds."""
    return median(getattr(cell, name) for cell in cells)


def peak(cells: Sequence[Cell], system: str) -> tuple[int, float]:
    """The number of callers with which a system answers most in a second, and how much that is; (0, 0) without any."""
    found = {cell.callers for cell in cells if cell.system == system}
    rates = [(callers, value(of(cells, system, callers), "per_s") or 0.0) for callers in sorted(found)]
    return max(rates, key=lambda rate: rate[1], default=(0, 0.0))


def best_peer(cells: Sequence[Cell], callers: int, name: str) -> str:
    """The peer that does best in one measure; "" where no peer has a figure."""
    found = {peer: value(of(cells, peer, callers), name) for peer in PEERS}
    known = {peer: figure for peer, figure in found.items() if figure}
    if not known:
        return ""
    choose = max if name in MORE_IS_BETTER else min
    return choose(known, key=lambda peer: known[peer])


def ratio(mine: Iterable[Cell], theirs: Iterable[Cell], name: str) -> float | None:
    """The median over the rounds of each round's own ratio."""
    return over({cell.round: getattr(cell, name) for cell in theirs}, mine, name)


def over(by_round: Mapping[int, float | None], mine: Iterable[Cell], name: str) -> float | None:
    """As `ratio`, to a figure of each round."""
    pairs = [(getattr(cell, name), by_round.get(cell.round)) for cell in mine]
    return median(own / other for own, other in pairs if own is not None and other)


def floor_cpu_ms(cells: Sequence[Cell], floors: Iterable[Floor], callers: int) -> dict[int, float | None]:
    """By round: processor time of one request in the engine at its best, and of one echo."""
    echo = {cell.round: cell.cpu_ms for cell in of(cells, ECHO, callers)}
    return {floor.round: _sum(floor.best["cpu_ms"], echo.get(floor.round)) for floor in floors}


def floor_p50_ms(cells: Sequence[Cell], floors: Iterable[Floor]) -> dict[int, float | None]:
    """By round: the time of one row alone in the engine, and of one echo to one caller."""
    echo = {cell.round: cell.p50_ms for cell in of(cells, ECHO, 1)}
    return {floor.round: _sum(floor.alone["p50_ms"], echo.get(floor.round)) for floor in floors}


def _sum(one: float, other: float | None) -> float | None:
    return None if other is None else one + other


def above(by_round: Mapping[int, float | None], mine: Iterable[Cell], name: str) -> float | None:
    """The median over the rounds of what a figure is above another of the same round."""
    pairs = [(getattr(cell, name), by_round.get(cell.round)) for cell in mine]
    return median(own - other for own, other in pairs if own is not None and other is not None)
