"""How much is measured, and in what order: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.serving.models import MODELS
from benchmarks.serving.systems import IN_PROCESS, SYSTEMS

EVERY_SYSTEM = (*SYSTEMS, IN_PROCESS)
DEADLINE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of burst."""

    name: str
    network: str
    # Times the system's own peak in the closed loop.
    load: float
    # The share of callers who give up before their deadline.
    cancelling: float = 0.0


SCENARIOS = (
    Scenario(name="2 x", network="image", load=2),
    Scenario(name="2 x", network="encoder", load=2),
    Scenario(name="10 x", network="encoder", load=10),
    Scenario(name="2 x, half cancel", network="encoder", load=2, cancelling=0.5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured."""

    models: tuple[str, ...] = tuple(MODELS)
    systems: tuple[str, ...] = EVERY_SYSTEM
    # How many callers ask at a time.
    callers: tuple[int, ...] = (1, 8, 32)
    rounds: int
    # Of each measurement, and before it.
    seconds: float
    warm_s: float
    # Of each way and batch of the engine alone.
    floor_s: float
    # Rounds of bursts; 0: none.
    open_rounds: int
    open_s: float


DEFAULT = Settings(rounds=3, seconds=1.5, warm_s=0.4, floor_s=0.25, open_rounds=2, open_s=3.0)
# To see that everything works; too short for figures that one would quote.
QUICK = Settings(
    models=("tiny",), callers=(1, 8), rounds=1, seconds=0.5, warm_s=0.1, floor_s=0.02, open_rounds=0, open_s=1.0
)


def turns(settings: Settings) -> Iterator[tuple[int, int, str]]:
    """Round, callers and system of each measurement of one model: the systems change fastest, and each round another
    one of them comes first. The engine alone knows no callers: it has one turn a round, with 0."""
    served = [name for name in settings.systems if name != IN_PROCESS and not SYSTEMS[name].like]
    for number in range(1, settings.rounds + 1):
        for callers in settings.callers:
            yield from ((number, callers, system) for system in rotated(served, number - 1))
        if IN_PROCESS in settings.systems:
            yield number, 0, IN_PROCESS


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The same names, beginning with another."""
    start = by % len(names) if names else 0
    return [*names[start:], *names[:start]]


def scenarios(settings: Settings, model: str) -> list[Scenario]:
    """The bursts for a model: those of its network, in fp32 alone."""
    found = MODELS[model]
    if not settings.open_rounds or found.precision != "fp32":
        return []
    return [scenario for scenario in SCENARIOS if scenario.network == found.network]
