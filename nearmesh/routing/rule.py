"""The rule that ranks the nodes for one request: pure, so that the control plane and the SDK decide alike.

For every candidate, time = network + service, both at their 95th percentile (their sum is an upper bound of the sum's
95th percentile for most pairs, and errs on the careful side); cost = usd_per_hour / (3600 x inferences per second).

- `cheapest-in-time`: the cheapest candidate that is in time; among the others, the soonest.
- `nearest`: the shortest median round trip.
- `cheapest`: the lowest cost, whatever the time.

A candidate that is not ready ranks last, and only stands there for the explanation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nearmesh.errors import InvalidInput

Objective = Literal["cheapest-in-time", "nearest", "cheapest"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
DEFAULT_OBJECTIVE: Objective = "cheapest-in-time"
DEFAULT_DEADLINE_MS = 300.0
# The header (gRPC metadata key) by which a single call names its objective.
OBJECTIVE_HEADER = "nearmesh-objective"

# The present choice stays until another one is cheaper, or sooner, by this share: a price that moves by 5 % moves no
# traffic, nor does the noise of a measurement. A choice that is in time gives way only to one with this share of the
# deadline to spare, so that a node on the edge of the deadline does not win and lose by turns.
HYSTERESIS = 0.06
PRICE_DIGITS = 4
# Round trips that differ by less than this are the same distance.
NEAR_MS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One node that could answer, as seen from one client locality. Times in milliseconds."""

    node: str
    site: str
    region: str
    ready: bool
    network_ms_p50: float
    network_ms_p95: float
    network_measured: bool
    service_ms_p50: float
    service_ms_p95: float
    usd_per_hour: float
    usd_per_1000: float
    # Why it is not ready; empty when it is.
    unready_why: str = ""

    @property
    def total_ms_p95(self) -> float:
        return self.network_ms_p95 + self.service_ms_p95


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its verdict; the first of a ranking is the choice."""

    candidate: Candidate
    in_time: bool
    why: str


def parse_objective(text: str) -> Objective:
    """The objective of that name. Raises InvalidInput."""
    for name in get_args(Objective):
        if text == name:
            return name  # type: ignore[no-any-return]
    raise InvalidInput(f"objective {text!r} is not one of {', '.join(OBJECTIVES)}")


def usd_per_1000(usd_per_hour: float, inferences_per_second: float) -> float:
    """The price of 1,000 inferences on a node that does nothing else."""
    return 1000 * usd_per_hour / (3600 * inferences_per_second)


def format_usd(value: float) -> str:
    """A price with four significant digits and no exponent; free is 0, unknown is '?'."""
    if value <= 0 or not math.isfinite(value):
        return "0" if value <= 0 else "?"
    return f"{value:.{max(0, PRICE_DIGITS - 1 - math.floor(math.log10(value)))}f}"


def rank(
    candidates: Iterable[Candidate], objective: Objective, deadline_ms: float, *, current: str | None = None
) -> list[Ranked]:
    """Best first. `current` is the node that is the choice now and keeps it against a near tie."""
    pool = sorted(candidates, key=lambda c: (not c.ready, *_merit(c, objective, deadline_ms), c.node))
    pool = _keep_current(pool, objective, deadline_ms, current)
    return [Ranked(c, c.total_ms_p95 <= deadline_ms, _why(c, pool, objective, deadline_ms)) for c in pool]


def _merit(c: Candidate, objective: Objective, deadline_ms: float) -> tuple[float, ...]:
    """The smaller the better; lexicographic."""
    if objective == "nearest":
        return (c.network_ms_p50, c.usd_per_1000)
    if objective == "cheapest":
        return (c.usd_per_1000, c.total_ms_p95)
    late = c.total_ms_p95 > deadline_ms
    return (1.0, c.total_ms_p95, c.usd_per_1000) if late else (0.0, c.usd_per_1000, c.total_ms_p95)


def _keep_current(
    pool: list[Candidate], objective: Objective, deadline_ms: float, current: str | None
) -> list[Candidate]:
    held = next((c for c in pool if c.node == current and c.ready), None)
    if held is None or pool[0] is held:
        return pool
    better = (c for c in pool if c.ready and _displaces(c, held, objective, deadline_ms))
    first = next(better, held)
    return [first, *(c for c in pool if c is not first)]


def _displaces(c: Candidate, held: Candidate, objective: Objective, deadline_ms: float) -> bool:
    """Whether `c` is so much better than the present choice that traffic moves."""
    if objective == "nearest":
        return held.network_ms_p50 - c.network_ms_p50 >= max(NEAR_MS, HYSTERESIS * c.network_ms_p50)
    if objective == "cheapest":
        return _clearly_cheaper(c, held)
    if held.total_ms_p95 <= deadline_ms:
        return _clearly_cheaper(c, held) and _clearly_in_time(c, deadline_ms)
    return c.total_ms_p95 <= deadline_ms or c.total_ms_p95 < held.total_ms_p95 * (1 - HYSTERESIS)


def _clearly_cheaper(c: Candidate, held: Candidate) -> bool:
    return c.usd_per_1000 < held.usd_per_1000 * (1 - HYSTERESIS)


def _clearly_in_time(c: Candidate, deadline_ms: float) -> bool:
    return c.total_ms_p95 <= deadline_ms * (1 - HYSTERESIS)


def _why(c: Candidate, pool: Sequence[Candidate], objective: Objective, deadline_ms: float) -> str:
    if not c.ready:
        return f"not ready: {c.unready_why or 'does not serve this model'}"
    winner = pool[0]
    return _why_won(c, pool, objective, deadline_ms) if c is winner else _why_lost(c, winner, objective, deadline_ms)


def _why_won(c: Candidate, pool: Sequence[Candidate], objective: Objective, deadline_ms: float) -> str:
    if len([other for other in pool if other.ready]) == 1:
        return "the only node that serves this model now"
    if objective == "nearest":
        return f"nearest: {c.network_ms_p50:.1f} ms round trip"
    if objective == "cheapest":
        return f"cheapest: ${format_usd(c.usd_per_1000)} per 1,000"
    if c.total_ms_p95 <= deadline_ms:
        return f"cheapest in time: {c.total_ms_p95:.0f} of {deadline_ms:.0f} ms at p95"
    return f"soonest: no node is within {deadline_ms:.0f} ms, this one takes {c.total_ms_p95:.0f} ms at p95"


def _why_lost(c: Candidate, winner: Candidate, objective: Objective, deadline_ms: float) -> str:
    if objective == "nearest":
        return f"farther: {c.network_ms_p50:.1f} ms against {winner.network_ms_p50:.1f} ms round trip"
    if objective == "cheapest-in-time" and c.total_ms_p95 > deadline_ms:
        return f"too late: {c.total_ms_p95:.0f} ms at p95, the deadline is {deadline_ms:.0f} ms"
    if c.usd_per_1000 == winner.usd_per_1000:
        return f"as cheap: {c.total_ms_p95:.0f} ms against {winner.total_ms_p95:.0f} ms at p95"
    if objective == "cheapest-in-time" and _clearly_cheaper(c, winner):
        return f"cheaper, but in time by under {HYSTERESIS:.0%}, which does not move traffic"
    if c.usd_per_1000 < winner.usd_per_1000:
        return f"cheaper by under {HYSTERESIS:.0%}, which does not move traffic"
    return f"dearer: ${format_usd(c.usd_per_1000)} against ${format_usd(winner.usd_per_1000)} per 1,000"


def with_network(candidate: Candidate, p50_ms: float, p95_ms: float) -> Candidate:
    """The candidate with a network time that was measured where the request will start."""
    return dataclasses.replace(candidate, network_ms_p50=p50_ms, network_ms_p95=p95_ms, network_measured=True)
