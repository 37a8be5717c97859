"""What a day came to, and whether it is good enough: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.replay.optimum import Optimum
from benchmarks.replay.simulation import Played
from benchmarks.replay.world import World

# The bars. In time at all is measured against what any routing could reach.
MOST_OF_OPTIMUM, LEAST_IN_TIME, RIVALS_AT_LEAST = 1.05, 0.99, 1.2
# By so much two plays of one day differ in their 99th percentile that route alike and draw other round trips.
ALIKE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One policy's day. Times in milliseconds; who was not answered counts with the time after which it gave up."""

    policy: str
    requests: int
    usd_per_million: float
    # Against the clairvoyant optimum; infinite where there is none.
    of_optimum: float
    in_time: float
    # Of the largest share that was possible.
    of_feasible: float
    p50_ms: float
    p99_ms: float
    # Shares of the requests: those that got no answer, and attempts beyond the first.
    failed: float
    extra: float
    # Inferences over what all nodes could have made.
    utilization: float

    @property
    def meets(self) -> bool:
        """Whether the objective is met: as many in time as it asks for, of those that could be."""
        return self.of_feasible >= LEAST_IN_TIME


def outcome(world: World, played: Played, best: Optimum) -> Outcome:
    """The figures of one day."""
    requests = max(1, len(played.took_s))
    took_ms = played.took_s * 1000
    in_time = float((took_ms <= world.deadline_ms).mean())
    p50_ms, p99_ms = np.quantile(took_ms, (0.5, 0.99))
    return Outcome(
        policy=played.policy,
        requests=len(played.took_s),
        usd_per_million=played.usd / requests * 1e6,
        of_optimum=played.usd / best.usd if best.usd else float("inf"),
        in_time=in_time,
        of_feasible=in_time / best.in_time if best.in_time else float("inf"),
        p50_ms=float(p50_ms),
        p99_ms=float(p99_ms),
        failed=float(played.failed.mean()),
        extra=played.extra / requests,
        utilization=float(played.served.sum() / (world.per_second.sum() * world.duration_s)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One bar, and whether it was reached."""

    bar: str
    held: bool
    found: str


def verdicts(ours: Outcome, rivals: Sequence[Outcome]) -> list[Verdict]:
    """The bars of a healthy day."""
    good = [rival for rival in rivals if rival.meets]
    cheap = [rival for rival in rivals if rival.usd_per_million <= ours.usd_per_million]
    nearest = min(good, key=lambda rival: rival.usd_per_million, default=None)
    return [
        Verdict(
            bar=f"cost at most {MOST_OF_OPTIMUM} x the clairvoyant optimum",
            held=ours.of_optimum <= MOST_OF_OPTIMUM,
            found=f"{ours.of_optimum:.3f}",
        ),
        Verdict(
            bar=f"in time at least {LEAST_IN_TIME} of what is possible",
            held=ours.meets,
            found=f"{ours.of_feasible:.4f}",
        ),
        Verdict(
            bar=f"every rival that is in time costs at least {RIVALS_AT_LEAST} x as much",
            held=all(rival.usd_per_million >= RIVALS_AT_LEAST * ours.usd_per_million for rival in good),
            found=f"{nearest.usd_per_million / ours.usd_per_million:.2f} ({nearest.policy})" if nearest else "none is",
        ),
        Verdict(
            bar="no rival that is as cheap is in time",
            held=not any(rival.meets for rival in cheap),
            found=", ".join(f"{rival.policy} {rival.of_feasible:.3f}" for rival in cheap) or "none is as cheap",
        ),
    ]


def fault_verdicts(cheap: Outcome, near: Outcome, rivals: Sequence[Outcome]) -> list[Verdict]:
    """The bars of an ill day: who wants the shortest time gets it, and who wants the lowest price is in time."""
    best = min(rivals, key=lambda rival: rival.p99_ms)
    return [
        Verdict(
            bar=f"{near.policy}: p99 no worse than the best rival's, within {ALIKE:.0%}",
            held=near.p99_ms <= best.p99_ms * (1 + ALIKE),
            found=f"{near.p99_ms:.1f} ms against {best.p99_ms:.1f} ms ({best.policy})",
        ),
        Verdict(
            bar=f"{cheap.policy}: in time at least {LEAST_IN_TIME} of what is possible",
            held=cheap.meets,
            found=f"{cheap.of_feasible:.4f} at {cheap.of_optimum:.2f} x the optimum",
        ),
    ]
