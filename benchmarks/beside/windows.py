"""Windows of requests with training and without, and what they say together: pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.figures import Spread

# What the mesh promises: the 99th percentile rises by at most the larger of the two.
RISE, RISE_MS = 0.20, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Requests to one model at a steady rate. Times in milliseconds, as the caller saw them."""

    round: int
    model: str
    training: bool
    calls: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    # What training did in it: examples a second, the share of the time for which it stood still, and what it had of the
    # cores when the window ended.
    examples_per_s: float = 0.0
    yielded: float = 0.0
    share: float = 0.0


def turns(rounds: int, models: Sequence[str], seed: int) -> Iterator[tuple[int, str, bool]]:
    """Round, model, and whether training runs: each round has both for each model next to each other, in any order."""
    order = random.Random(seed)
    for number in range(1, rounds + 1):
        for model in order.sample(models, len(models)):
            yield from ((number, model, training) for training in order.sample((True, False), 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """Of one model's percentile, beside training: medians over the rounds, of each round's own."""

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
    beside = {window.round: getattr(window, value) for window in windows if window.training}
    without = {window.round: getattr(window, value) for window in windows if not window.training}
    pairs = [(beside[number], without[number]) for number in sorted(beside.keys() & without.keys())]
    return Rise(
        without=Spread.of([one for _, one in pairs]),
        beside=Spread.of([one for one, _ in pairs]),
        rise_ms=statistics.median(one - other for one, other in pairs),
        rise=statistics.median(one / other - 1 for one, other in pairs),
    )
