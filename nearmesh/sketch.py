"""Quantiles of something that is measured again and again: an ageing sketch of fixed accuracy and bounded size.

Values are counted in buckets whose bounds grow by a constant factor, so that every quantile is within ACCURACY of a
value that was there (DDSketch: Masson, Rim and Lee, VLDB 2019). A sample's weight halves every `half_life_s`: not by
touching the old ones but by letting the weight of new ones grow (forward decay: Cormode and others, ICDE 2009), so
that ageing costs nothing and the quantiles change only when samples come. When more buckets are filled than allowed,
neighbours are joined two by two, which about doubles the error (UDDSketch: Epicoco and others, IEEE Access 2020).

What ages is how far the sketch is to be trusted: `trust` falls from 1 towards 0 when samples stop coming, and `faded`
leads an answer back to what would be believed without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nearmesh.quantiles import LEAST_SAMPLES, proven_level
from nearmesh.routing.times import LEVELS, Times

# Of each quantile, relative, as long as no buckets were joined.
ACCURACY = 0.01
_LOG_GAMMA = math.log((1 + ACCURACY) / (1 - ACCURACY))
# Values are of milliseconds or the like; smaller ones count as this one, and so does 0.
LEAST_VALUE = 1e-3
# From LEAST_VALUE to 17 minutes there are 1,036 buckets; few are ever filled.
MAX_BUCKETS = 1_100
# Weights are brought back to ordinary size once they have grown by this power of two.
_RESCALE_AT = 32.0
# A bucket whose share is smaller than this is forgotten then.
_NEGLIGIBLE = 1e-6


class Sketch:
    """`now_s` is any clock that never goes back; every value is at least 0."""

    __slots__ = ("_buckets", "_found", "_half_life_s", "_joined", "_last_s", "_max_buckets", "_origin_s", "_squares")

    def __init__(self, *, half_life_s: float, max_buckets: int = MAX_BUCKETS) -> None:
        self._half_life_s = half_life_s
        self._max_buckets = max_buckets
        # Weight by bucket, as of `_origin_s`. Bucket i holds values above gamma^(i-1), up to gamma^i.
        self._buckets: dict[int, float] = {}
        # Sum of the squares of the single weights, as of then.
        self._squares = 0.0
        self._origin_s = self._last_s = -math.inf
        # How often neighbouring buckets were joined.
        self._joined = 0
        self._found: tuple[float, ...] | None = None

    def add(self, value: float, *, now_s: float) -> None:
        """Takes a sample over."""
        growth = self._grown(now_s)
        at = math.ceil(math.log(max(value, LEAST_VALUE)) / self._log_gamma)
        self._buckets[at] = self._buckets.get(at, 0.0) + growth
        self._squares += growth * growth
        self._last_s, self._found = now_s, None
        while len(self._buckets) > self._max_buckets:
            self._join()

    def merge(self, other: Sketch, *, now_s: float) -> None:
        """Takes over what another sketch with the same half-life has seen."""
        if not other._buckets:
            return
        growth = self._grown(now_s) * other._aged(now_s)
        while self._joined < other._joined:
            self._join()
        for at, weight in other._buckets.items():
            joined = -(-at // 2 ** (self._joined - other._joined))
            self._buckets[joined] = self._buckets.get(joined, 0.0) + weight * growth
        self._squares += other._squares * growth * growth
        self._last_s, self._found = max(self._last_s, other._last_s), None
        while len(self._buckets) > self._max_buckets:
            self._join()

    def weight(self, now_s: float) -> float:
        """How many samples it is worth: a fresh one counts 1, one that is a half-life old a half."""
        return sum(self._buckets.values()) * self._aged(now_s)

    @property
    def samples(self) -> float:
        """How many equal samples would say as much about quantiles (Kish's effective size), whatever their age."""
        total = sum(self._buckets.values())
        return total * total / self._squares if self._squares else 0.0

    def trust(self, now_s: float) -> float:
        """0 to 1: how much of an answer it should make up.

        Fewer than LEAST_SAMPLES say nothing. After a half-life of silence it falls, by half for every further one.
        """
        if self.samples < LEAST_SAMPLES - 1e-6:
            return 0.0
        silence = (now_s - self._last_s) / self._half_life_s
        return min(1.0, self.weight(now_s) / LEAST_SAMPLES, math.exp2(1.0 - silence))

    def quantile(self, q: float) -> float | None:
        """By nearest rank, of what it has seen; None before any sample."""
        return self._quantiles((q,))[0] if self._buckets else None

    def times(self) -> Times | None:
        """The quantiles at LEVELS, no tail longer than the samples prove; None while there are too few."""
        if self.samples < LEAST_SAMPLES - 1e-6:
            return None
        if self._found is None:
            # The freshest weigh most, and a stray may be one of them: as if all were as fresh and so many fewer.
            fresh = math.floor(self.weight(self._last_s) + 1e-6)
            self._found = self._quantiles([proven_level(q, fresh) for q in LEVELS])
        return Times(self._found)

    @property
    def _log_gamma(self) -> float:
        return math.ldexp(_LOG_GAMMA, self._joined)

    def _quantiles(self, levels: Sequence[float]) -> tuple[float, ...]:
        """Of ascending levels; one walk through the buckets."""
        total, below, left = sum(self._buckets.values()), 0.0, list(levels)
        found: list[float] = []
        for at in sorted(self._buckets):
            below += self._buckets[at]
            # The least rounding must not push a rank into the next bucket.
            while left and below >= left[0] * total * (1 - 1e-9):
                left.pop(0)
                found.append(self._middle(at))
        return (*found, *(self._middle(max(self._buckets)) for _ in left))

    def _middle(self, at: int) -> float:
        """Of a bucket: no value in it is further away than the accuracy."""
        return 2 * math.exp(at * self._log_gamma) / (math.exp(self._log_gamma) + 1)

    def _aged(self, now_s: float) -> float:
        """What a weight as of `_origin_s` is worth now."""
        return math.exp2((self._origin_s - now_s) / self._half_life_s) if self._buckets else 0.0

    def _grown(self, now_s: float) -> float:
        """The weight of a sample of now, as of `_origin_s`."""
        if not self._buckets:
            self._origin_s, self._joined, self._squares = now_s, 0, 0.0
        elif (now_s - self._origin_s) / self._half_life_s > _RESCALE_AT:
            self._rescale(now_s)
        return math.exp2((now_s - self._origin_s) / self._half_life_s)

    def _rescale(self, now_s: float) -> None:
        """Weights as of now; what weighs next to nothing is forgotten, and with the last of it the joined buckets."""
        aged = self._aged(now_s)
        self._buckets = {at: weight * aged for at, weight in self._buckets.items() if weight * aged > _NEGLIGIBLE}
        self._squares *= aged * aged
        self._origin_s = now_s
        if not self._buckets:
            self._joined, self._squares = 0, 0.0

    def _join(self) -> None:
        """Joins each bucket of an odd number with the next one."""
        joined: dict[int, float] = {}
        for at, weight in self._buckets.items():
            half = -(-at // 2)
            joined[half] = joined.get(half, 0.0) + weight
        self._buckets, self._joined, self._found = joined, self._joined + 1, None


def faded(measured: Times, otherwise: Times, trust: float) -> Times:
    """A distribution between what was measured and what would be believed otherwise; `trust` is the former's share.

    Quantile by quantile on a logarithmic scale, so that it neither has two humps nor forgets its tail.
    """
    if trust >= 1:
        return measured
    pairs = zip(measured.ms, otherwise.ms, strict=True)
    return Times(tuple(max(a, LEAST_VALUE) ** trust * max(b, LEAST_VALUE) ** (1 - trust) for a, b in pairs))
