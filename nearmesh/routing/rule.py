"""The rule that ranks the nodes for one request: pure, so that the control plane, the nodes and the SDK decide alike.

For every candidate, time = network + service (waiting included), each a distribution; cost = usd_per_hour /
(3600 x inferences per second), and what moving the data costs. P is the chance to answer within the deadline; a
candidate is in time when P is at least 0.99.

- `cheapest-in-time`: the cheapest candidate that is in time; if none is, the one with the highest P.
- `nearest`: the shortest median round trip, of those that are seldom late if there are any; equally near, the cheaper.
- `cheapest`: the lowest cost, whatever the time.

A candidate that is not ready ranks last, and only stands there for the explanation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nearmesh.routing.costs import format_usd
from nearmesh.routing.objectives import (
    BROKEN_BELOW,
    GRACE,
    HYSTERESIS,
    IN_TIME,
    Objective,
    distance_ms,
    staying_distance_ms,
)
from nearmesh.routing.times import Times, chance_within, sum_of


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
    # Transfer included.
    usd_per_1000: float
    transfer_usd_per_1000: float = 0.0
    # Can be taken away at short notice, for a lower price.
    spot: bool = False
    # Why it is not ready; empty when it is.
    unready_why: str = ""
    # The whole distributions, where more is known than two quantiles.
    network_times: Times | None = None
    service_times: Times | None = None
    # The part of the locality's requests that was placed here.
    share: float = 0.0

    @property
    def network(self) -> Times:
        return self.network_times or Times.spread(self.network_ms_p50, self.network_ms_p95)

    @property
    def service(self) -> Times:
        return self.service_times or Times.spread(self.service_ms_p50, self.service_ms_p95)

    @property
    def total(self) -> Times:
        """From the request's leaving to its answer."""
        return sum_of(self.network, self.service)

    @property
    def total_ms_p95(self) -> float:
        return self.total.p95_ms

    def p_in_time(self, deadline_ms: float) -> float:
        """The chance to answer within the deadline."""
        return chance_within(self.network, self.service, deadline_ms)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its verdict; the first of a ranking is the choice."""

    candidate: Candidate
    in_time: bool
    why: str


def rank(
    candidates: Iterable[Candidate], objective: Objective, deadline_ms: float, *, current: str | None = None
) -> list[Ranked]:
    """Best first. `current` is the node that is the choice now and keeps it against a near tie."""
    some = list(candidates)
    rule = _Rule(objective, deadline_ms, any(c.ready and not _is_broken(c, deadline_ms) for c in some))
    pool = rule.keeping(sorted(some, key=lambda c: (not c.ready, *rule.merit(c), c.node)), current)
    return [Ranked(c, c.ready and in_time(c, deadline_ms), rule.why(c, pool)) for c in pool]


def in_time(c: Candidate, deadline_ms: float) -> bool:
    """Whether enough of the requests that it gets will be."""
    return c.p_in_time(deadline_ms) >= IN_TIME


def nearer(c: Candidate, than: Candidate) -> bool:
    """Whether it is so much nearer that traffic moves."""
    return distance_ms(c.network_ms_p50) < staying_distance_ms(distance_ms(than.network_ms_p50))


def _is_broken(c: Candidate, deadline_ms: float) -> bool:
    return c.p_in_time(deadline_ms) < BROKEN_BELOW


@dataclass(frozen=True, slots=True)
class _Rule:
    """One objective among certain candidates."""

    objective: Objective
    deadline_ms: float
    # Some candidate is seldom late.
    some_work: bool

    def merit(self, c: Candidate) -> tuple[float, ...]:
        """The smaller the better; lexicographic."""
        if self.objective == "nearest":
            return (self.is_ill(c), distance_ms(c.network_ms_p50), c.usd_per_1000, c.network_ms_p50)
        if not c.ready:
            return (c.usd_per_1000,)
        if self.objective == "cheapest":
            return (c.usd_per_1000, c.total_ms_p95)
        p = c.p_in_time(self.deadline_ms)
        return (0.0, c.usd_per_1000, c.total_ms_p95) if p >= IN_TIME else (1.0, -round(p, 3), c.total_ms_p95)

    def is_ill(self, c: Candidate) -> bool:
        """Late for many, while another is not."""
        return c.ready and self.some_work and _is_broken(c, self.deadline_ms)

    def keeping(self, pool: list[Candidate], current: str | None) -> list[Candidate]:
        held = next((c for c in pool if c.node == current and c.ready), None)
        if held is None or pool[0] is held:
            return pool
        first = next((c for c in pool if c.ready and self._displaces(c, held)), held)
        return [first, *(c for c in pool if c is not first)]

    def _displaces(self, c: Candidate, held: Candidate) -> bool:
        """Whether `c` is so much better than the present choice that traffic moves."""
        if self.objective == "nearest":
            ill, held_ill = self.is_ill(c), self.is_ill(held)
            return held_ill if ill != held_ill else nearer(c, held)
        if self.objective == "cheapest":
            return _clearly_cheaper(c, held)
        if self._may_stay(held):
            return _clearly_cheaper(c, held) and in_time(c, self.deadline_ms)
        return in_time(c, self.deadline_ms) or c.total_ms_p95 < held.total_ms_p95 * (1 - HYSTERESIS)

    def _may_stay(self, c: Candidate) -> bool:
        return in_time(c, self.deadline_ms * (1 + GRACE))

    def why(self, c: Candidate, pool: Sequence[Candidate]) -> str:
        if not c.ready:
            return f"not ready: {c.unready_why or 'does not serve this model'}"
        return self._why_won(c, pool) if c is pool[0] else self._why_lost(c, pool[0])

    def _why_won(self, c: Candidate, pool: Sequence[Candidate]) -> str:
        if len([other for other in pool if other.ready]) == 1:
            return "the only node that serves this model now"
        if self.objective == "nearest":
            return f"nearest: {c.network_ms_p50:.1f} ms round trip"
        if self.objective == "cheapest":
            return f"cheapest: ${format_usd(c.usd_per_1000)} per 1,000"
        if in_time(c, self.deadline_ms):
            return f"cheapest in time: {c.total_ms_p95:.0f} of {self.deadline_ms:.0f} ms at p95"
        if any(in_time(other, self.deadline_ms) for other in pool if other.ready):
            return f"late by under {GRACE:.0%} of {self.deadline_ms:.0f} ms, which does not move traffic"
        return f"soonest: no node is within {self.deadline_ms:.0f} ms, this one takes {c.total_ms_p95:.0f} ms at p95"

    def _why_lost(self, c: Candidate, winner: Candidate) -> str:
        late = late_because(c.p_in_time(self.deadline_ms), c.total, self.deadline_ms)
        if self.objective == "nearest":
            if self.is_ill(c) and not self.is_ill(winner):
                return late
            if c.network_ms_p50 < winner.network_ms_p50:
                return f"nearer by under {HYSTERESIS:.0%}, which does not move traffic"
            return f"farther: {c.network_ms_p50:.1f} ms against {winner.network_ms_p50:.1f} ms round trip"
        if self.objective == "cheapest-in-time" and not in_time(c, self.deadline_ms):
            return late
        if c.usd_per_1000 == winner.usd_per_1000:
            return f"as cheap: {c.total_ms_p95:.0f} ms against {winner.total_ms_p95:.0f} ms at p95"
        if c.usd_per_1000 < winner.usd_per_1000:
            return f"cheaper by under {HYSTERESIS:.0%}, which does not move traffic"
        return f"dearer: ${format_usd(c.usd_per_1000)} against ${format_usd(winner.usd_per_1000)} per 1,000"


def _clearly_cheaper(c: Candidate, held: Candidate) -> bool:
    return c.usd_per_1000 < held.usd_per_1000 * (1 - HYSTERESIS)


def late_because(p: float, total: Times, deadline_ms: float) -> str:
    """Why a candidate is not in time that has that chance, and takes that long."""
    return f"too late: {p:.1%} within {deadline_ms:.0f} ms, {IN_TIME:.0%} are wanted; {total.p99_ms:.0f} ms at p99"


def with_network(candidate: Candidate, p50_ms: float, p95_ms: float) -> Candidate:
    """The candidate with a network time that was measured where the request will start."""
    return with_network_times(candidate, Times.spread(p50_ms, p95_ms))


def with_network_times(candidate: Candidate, times: Times) -> Candidate:
    """The candidate with a network time that was measured where the request will start."""
    return dataclasses.replace(
        candidate,
        network_ms_p50=times.p50_ms,
        network_ms_p95=times.p95_ms,
        network_times=times,
        network_measured=True,
    )
