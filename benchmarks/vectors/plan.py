"""How much is measured, and in what order: pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.serving.plan import rotated
from benchmarks.vectors.corpus import Shape
from benchmarks.vectors.systems import SYSTEMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured."""

    systems: tuple[str, ...] = tuple(SYSTEMS)
    shape: Shape = field(default_factory=lambda: Shape(rows=100_000, queries=1_000, tuning=200))
    # How many ask at a time; each asks again as soon as it has its answer.
    callers: tuple[int, ...] = (1, 16)
    rounds: int = 5
    # Of each measurement.
    seconds: float = 3.0
    # Of the true nearest ten; rivals get the least effort that finds so many.
    recall: float = 0.97
    # Times that each is ended and started, in order and by kill -9.
    starts: int = 3
    # A store is waited for until it has done nothing for so long; 0: it is not waited for.
    rest_s: float = 2.0


DEFAULT = Settings()
# To see that everything works; too short for figures that one would quote.
QUICK = Settings(
    shape=Shape(rows=2_000, queries=50, tuning=20, clusters=20),
    callers=(1, 4),
    rounds=1,
    seconds=0.3,
    starts=1,
    rest_s=0.0,
)


def turns(settings: Settings, systems: tuple[str, ...]) -> Iterator[tuple[int, int, bool, str]]:
    """Round, callers, whether there is a filter, and system; the systems change fastest, and another one comes first
    each time."""
    begun = 0
    for number in range(1, settings.rounds + 1):
        for callers in settings.callers:
            for filtered in (False, True):
                yield from ((number, callers, filtered, name) for name in rotated(systems, begun))
                begun += 1
