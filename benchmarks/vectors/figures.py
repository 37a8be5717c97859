"""What one measurement says, and what several say together: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.figures import Spread, over_rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One store, one number of callers, with a filter or without, in one round. Times as the caller saw them."""

    round: int
    system: str
    callers: int
    filtered: bool
    calls: int
    elapsed_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    # What others took of the machine meanwhile, the store and its callers left out.
    other_cores: float

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.elapsed_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """How a store took all rows in."""

    system: str
    rows: int
    # From the first row to the acknowledgement of the last one.
    seconds: float
    # From then on: until a search finds that one, until everything is in the index, until the store is at rest.
    seen_s: float
    finished_s: float
    rest_s: float
    # Rows of a write; of writes.
    batch: int
    p50_ms: float
    p95_ms: float
    disk_bytes: int
    # By whether there is a filter: what was chosen, and what it finds of the true nearest ten.
    effort: int
    filtered_effort: int
    recall: float
    filtered_recall: float

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """From a process's start to its first right answer, and to its first acknowledged write."""

    round: int
    system: str
    # It had been killed, where others were told to end.
    killed: bool
    answered_s: float
    written_s: float


@dataclass(frozen=True, slots=True)
class Promise:
    """One figure of ours, against what was promised."""

    what: str
    promised: str
    found: str
    held: bool


def of(cells: Iterable[Cell], system: str, callers: int, filtered: bool) -> list[Cell]:
    return [c for c in cells if (c.system, c.callers, c.filtered) == (system, callers, filtered)]


def spread(cells: Sequence[Cell], value: str) -> Spread | None:
    return over_rounds(cells, value) if cells else None  # type: ignore[arg-type]


def promises(system: str, cells: Sequence[Cell], filled: Filled, starts: Sequence[Start]) -> list[Promise]:
    """Medians of the rounds; of starts, the slowest."""
    alone, busiest = min(c.callers for c in cells), max(c.callers for c in cells)
    found = []

    def most(what: str, value: float, bound: float, unit: str) -> None:
        found.append(Promise(what, f"at most {bound:g} {unit}", f"{value:.2f} {unit}", value <= bound))

    def least(what: str, value: float, bound: float, form: str = ",.0f") -> None:
        found.append(Promise(what, f"at least {bound:{form}}", f"{value:{form}}", value >= bound))

    for filtered in (False, True):
        mine = of(cells, system, alone, filtered)
        how = ", a filter of 10 %" if filtered else ""
        for value, bound in (("p50_ms", 3.0), ("p95_ms", 8.0)):
            most(f"search, {value[:3]}, one caller{how}", over_rounds(mine, value).median, bound, "ms")  # type: ignore[arg-type]
        least(f"recall@10{how}", filled.filtered_recall if filtered else filled.recall, 0.97, ".3f")
    many = of(cells, system, busiest, False)
    least(f"searches a second, {busiest} callers", over_rounds(many, "calls_per_s").median, 500)  # type: ignore[arg-type]
    least("rows a second, durable and searchable", filled.rows_per_s, 3000)
    most("the index has caught up", filled.finished_s, 60.0, "s")
    most("from start-up to an answer", max(s.answered_s for s in starts), 2.0, "s")
    most("from start-up to a write", max(s.written_s for s in starts), 20.0, "s")
    return found
