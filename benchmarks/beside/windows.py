"""Windows of requests with other work beside them and without, and what they say together: pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.figures import Spread
from benchmarks.table import Table

# What the mesh promises: the 99th percentile rises by at most the larger of the two.
RISE, RISE_MS = 0.20, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Requests to one model at a steady rate. Times in milliseconds, as the caller saw them."""

    round: int
    model: str
    # Whether the other work was done.
    beside: bool
    calls: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


def turns(rounds: int, models: Sequence[str], seed: int) -> Iterator[tuple[int, str, bool]]:
    """Round, model, and whether there is other work: each round has both for each model side by side, in any order."""
    order = random.Random(seed)
    for number in range(1, rounds + 1):
        for model in order.sample(models, len(models)):
            yield from ((number, model, beside) for beside in order.sample((True, False), 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """Of one model's percentile, beside the other work: medians over the rounds, of each round's own."""

    without: Spread
    beside: Spread
    rise_ms: float
    rise: float

    @property
    def held(self) -> bool:
        """Within what is promised, if it is the 99th percentile's."""
        return self.rise_ms <= RISE_MS or self.rise <= RISE


def rise(windows: Sequence[Window], value: str = "p99_ms") -> Rise:
    """Of the windows of one model."""
    beside = {window.round: getattr(window, value) for window in windows if window.beside}
    without = {window.round: getattr(window, value) for window in windows if not window.beside}
    pairs = [(beside[number], without[number]) for number in sorted(beside.keys() & without.keys())]
    return Rise(
        without=Spread.of([one for _, one in pairs]),
        beside=Spread.of([one for one, _ in pairs]),
        rise_ms=statistics.median(one - other for one, other in pairs),
        rise=statistics.median(one / other - 1 for one, other in pairs),
    )


def table(windows: Sequence[Window], work: str) -> Table:
    """A line for each model."""
    columns = ("model", "p50 without ms", "p50 beside ms", "p99 without ms", "p99 beside ms", "p99 rises by", "held")
    models = list(dict.fromkeys(window.model for window in windows))
    rows = tuple(_row(model, [window for window in windows if window.model == model]) for model in models)
    return Table(title=f"Requests without {work} and beside it", columns=columns, rows=rows)


def _row(model: str, windows: Sequence[Window]) -> tuple[str, ...]:
    median, tail = rise(windows, "p50_ms"), rise(windows)
    return (
        model,
        _spread(median.without),
        _spread(median.beside),
        _spread(tail.without),
        _spread(tail.beside),
        f"{tail.rise_ms:.2f} ms ({tail.rise:.0%})",
        "yes" if tail.held else "no",
    )


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def bar() -> str:
    """What is promised, in words."""
    return f"Promised is that the 99th percentile rises by {RISE:.0%} or {RISE_MS:g} ms at most, whichever is more."
