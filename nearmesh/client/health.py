"""Whether a node does for one model what is forecast of it: pure, a small state machine on the caller's clock.

    healthy ── an error, a lost race ──> suspect ── errors go on, or times far above forecast and peers ──> ejected
    ejected ── its time out is over ──> probation ── GOOD_TRIALS copies answered well ──> healthy
                                        probation ── one not ──> ejected, for twice as long

That the node can be reached at all is another matter (`experience`): a probe proves that, and none of this.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from nearmesh.quantiles import LEAST_SAMPLES, quantile

# Counts of good and bad answers halve in this time, so that what a node did a minute ago weighs nothing.
HALF_LIFE_S = 5.0
# A node that fails more than this share of its calls is ejected, once it has failed about three within a few seconds:
# below the share the caller loses less by asking the next node than the price difference is worth.
ERROR_SHARE = 0.2
LEAST_ERRORS = 2.5

# Times count for this long and in this number.
MAX_AGE_S = 10.0
KEPT = 16
LEAST_TIMES = 5
# A node is slow when the median of its latest times is this many times the 95th percentile that was forecast (twice or
# three times its usual median), ...
SLOW = 1.5
# ... this much above it in milliseconds, so that a busy client's own delays eject nobody, ...
MIN_EXCESS_MS = 25.0
# ... and this many times as far from its forecast as its peers are from theirs: when all are, it is not the node.
ABOVE_PEERS = 2.0
# The forecast is corrected by no more than this either way: what is beyond is no bias but a fault.
MOST_CORRECTION = 2.0
# Own times weigh as much as the forecast when there are this many of them.
TRUST = 8

# Time out of the first ejection, doubled with each that follows within FORGET_S of the last.
FIRST_OUT_S = 1.0
MAX_OUT_S = 30.0
GOOD_TRIALS = 3
# Between two copies sent to one node on probation.
TRIAL_EVERY_S = 0.2
# A node that nobody could try for this long is taken back: what is known of it is old.
FORGET_S = 60.0


class State(StrEnum):
    """What a client thinks of a node."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    EJECTED = "ejected"
    PROBATION = "probation"


class Why(StrEnum):
    """Of an ejection."""

    ERRORS = "errors"
    SLOW = "slow"


@dataclass(slots=True)
class _Ejection:
    why: Why
    until_s: float
    # In a row.
    times: int
    # What its calls took in the middle, milliseconds.
    median_ms: float
    good_trials: int = 0
    next_trial_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Took:
    """One answer's time against its forecast; infinite when a race was lost."""

    at_s: float
    ms: float
    to_p50: float
    to_p95: float


class Health:
    """Of one node and one model."""

    def __init__(self) -> None:
        self._good = 0.0
        self._bad = 0.0
        self._aged_s = -math.inf
        self._times: deque[_Took] = deque(maxlen=KEPT)
        self._ejection: _Ejection | None = None
        # The end of the last ejection, and how many there had been in a row.
        self._last: tuple[float, int] = (-math.inf, 0)

    def answered(self, ms: float, p50_ms: float, p95_ms: float, *, now_s: float, peers: Callable[[], float]) -> bool:
        """An answer, with the forecast's quantiles. `peers`: how far others are from their forecasts, 1 if unknown.

        Returns whether the node was ejected for it.
        """
        self._age(now_s)
        self._good += 1
        to_p95 = ms / max(p95_ms, 1e-3)
        if ms < p95_ms + MIN_EXCESS_MS:
            to_p95 = min(1.0, to_p95)
        return self._took(_Took(now_s, ms, ms / max(p50_ms, 1e-3), to_p95), peers)

    def lost_race(self, *, now_s: float, peers: Callable[[], float]) -> bool:
        """Asked first, silent beyond its forecast, and another node's answer came first. Returns as `answered`."""
        self._age(now_s)
        return self._took(_Took(now_s, math.inf, math.inf, math.inf), peers)

    def erred(self, *, now_s: float) -> bool:
        """An answer that is an error of the node's own making, or no answer at all. Returns as `answered`."""
        self._age(now_s)
        self._bad += 1
        if self.state(now_s) is State.PROBATION:
            return self._eject(Why.ERRORS, now_s)
        if self._ejection or self._bad < LEAST_ERRORS or self._bad < ERROR_SHARE * (self._bad + self._good):
            return False
        return self._eject(Why.ERRORS, now_s)

    @property
    def is_ejected(self) -> bool:
        """Or on probation, as of the last look."""
        return self._ejection is not None

    def state(self, now_s: float) -> State:
        """As of now."""
        ejection = self._ejection
        if ejection and now_s < ejection.until_s + FORGET_S:
            return State.EJECTED if now_s < ejection.until_s else State.PROBATION
        if ejection:
            self._restore(now_s)
        self._age(now_s)
        doubtful = self._bad >= 0.5 or any(math.isinf(took.to_p50) for took in self._young(now_s))
        return State.SUSPECT if doubtful else State.HEALTHY

    def ejected_for(self, now_s: float) -> Why | None:
        """Why it should not be a first choice; None when it may be."""
        self.state(now_s)
        return self._ejection.why if self._ejection else None

    def slow_ms(self, now_s: float) -> float | None:
        """What its calls took in the middle, if that is what it was ejected for."""
        return self._ejection.median_ms if self.ejected_for(now_s) is Why.SLOW and self._ejection else None

    def off_forecast(self, now_s: float) -> float | None:
        """The median of its times over the forecast 95th percentile; None with too few of them."""
        young = sorted(took.to_p95 for took in self._young(now_s))
        return quantile(young, 0.5) if len(young) >= LEAST_TIMES else None

    def correction(self, now_s: float) -> float:
        """By what the forecast is to be multiplied to be right in the middle; near 1 with few answers."""
        young = sorted(took.to_p50 for took in self._young(now_s) if math.isfinite(took.to_p50))
        if len(young) < LEAST_SAMPLES:
            return 1.0
        weight = len(young) / (len(young) + TRUST)
        found = float(max(quantile(young, 0.5), 1e-3) ** weight)
        return min(MOST_CORRECTION, max(1 / MOST_CORRECTION, found))

    def take_trial(self, now_s: float) -> bool:
        """Whether a copy of a call may be sent to it now; if so, the next one waits for TRIAL_EVERY_S."""
        ejection = self._ejection
        if self.state(now_s) is not State.PROBATION or ejection is None or now_s < ejection.next_trial_s:
            return False
        ejection.next_trial_s = now_s + TRIAL_EVERY_S
        return True

    def _took(self, took: _Took, peers: Callable[[], float]) -> bool:
        now_s = took.at_s
        if self._ejection:
            return self._tried(took.to_p95 < SLOW, now_s)
        self._times.append(took)
        found = self.off_forecast(now_s)
        if found is None or found <= SLOW or found <= ABOVE_PEERS * peers():
            return False
        return self._eject(Why.SLOW, now_s)

    def _tried(self, good: bool, now_s: float) -> bool:
        """Answers to calls that were under way when it was ejected say nothing new."""
        if self.state(now_s) is not State.PROBATION or self._ejection is None:
            return False
        if not good:
            return self._eject(self._ejection.why, now_s)
        self._ejection.good_trials += 1
        if self._ejection.good_trials >= GOOD_TRIALS:
            self._restore(now_s)
        return False

    def _eject(self, why: Why, now_s: float) -> bool:
        ended_s, times = self._last
        times = self._ejection.times if self._ejection else times if now_s < ended_s + FORGET_S else 0
        out_s = min(MAX_OUT_S, FIRST_OUT_S * 2.0 ** min(times, 16))
        young = sorted(took.ms for took in self._young(now_s))
        median_ms = quantile(young, 0.5) if young else self._ejection.median_ms if self._ejection else math.inf
        self._ejection = _Ejection(why, now_s + out_s, times + 1, median_ms)
        return True

    def _restore(self, now_s: float) -> None:
        assert self._ejection is not None
        self._last = (now_s, self._ejection.times)
        self._ejection = None
        self._good = self._bad = 0.0
        self._times.clear()

    def _age(self, now_s: float) -> None:
        left = 0.5 ** ((now_s - self._aged_s) / HALF_LIFE_S)
        self._good, self._bad, self._aged_s = self._good * left, self._bad * left, now_s

    def _young(self, now_s: float) -> list[_Took]:
        return [took for took in self._times if took.at_s >= now_s - MAX_AGE_S]
