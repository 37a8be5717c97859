"""Quantiles over the latest measurements of one thing: bounded in number and in age.

Few samples have no tail: the nearest-rank 95th percentile of fewer than twenty is their maximum, which one pause of the
machine makes anything. So a tail is taken to be no longer than the samples prove (`proven_tail`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

# A tail is as long as the samples prove with this confidence. The lower it is, the fewer strays are overlooked.
CONFIDENCE = 0.95
# Fewer samples say nothing: a single pause would be half of them or all, and move the median as well.
LEAST_SAMPLES = 3
# Of more than these, a tail is told by a formula.
MANY_SAMPLES = 500
_Z = NormalDist().inv_cdf(CONFIDENCE)


def quantile(ordered: Sequence[float], q: float) -> float:
    """The nearest-rank quantile of an ascending, non-empty sequence."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]


def proven_tail(ordered: Sequence[float], q: float) -> float:
    """The largest sample that the true `q` quantile is at least, with CONFIDENCE; of an ascending, non-empty sequence.

    The distribution-free one-sided confidence bound of a quantile by an order statistic: the number of samples above
    the true quantile is binomial with share 1 - q, whatever the distribution (David and Nagaraja, Order Statistics,
    3rd edition, section 7.1). For q = 0.95 it overlooks one sample of 3, two of 8, three of 17 and six of 64, where
    nearest rank overlooks none, none, none and three.
    """
    return ordered[max(0, len(ordered) - 1 - _strays(len(ordered), q))]


def proven_level(q: float, samples: int) -> float:
    """The level whose quantile is no more than that many samples prove of the one at `q`; up to the median `q` itself.

    As `proven_tail`, for samples that are not kept one by one. Beyond MANY_SAMPLES the binomial is normal enough.
    """
    if q <= 0.5:
        return q
    count = max(1, samples)
    overlooked = _strays(count, q) / count if count <= MANY_SAMPLES else 1 - q + _Z * math.sqrt(q * (1 - q) / count)
    return max(0.5, 1 - overlooked)


@lru_cache(maxsize=4096)
def _strays(count: int, q: float) -> int:
    """The fewest m such that no more than m of `count` samples are above their `q` quantile, with CONFIDENCE."""
    sure = 0.0
    for strays in range(count):
        sure += math.comb(count, strays) * (1 - q) ** strays * q ** (count - strays)
        if sure >= CONFIDENCE:
            return strays
    return count


class Window:
    """The latest `size` samples that are at most `max_age_s` old. `now_s` is any clock that never goes back."""

    def __init__(self, *, size: int = 128, max_age_s: float = math.inf) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=size)
        self._max_age_s = max_age_s

    def add(self, value: float, *, now_s: float) -> None:
        """Keeps a sample; the oldest leaves when the window is full."""
        self._samples.append((now_s, value))

    def quantiles(self, *qs: float, now_s: float) -> tuple[float, ...] | None:
        """The quantiles asked for, or None when fewer than LEAST_SAMPLES are young enough.

        Up to the median by nearest rank; above it no more than the samples prove.
        """
        while self._samples and self._samples[0][0] < now_s - self._max_age_s:
            self._samples.popleft()
        if len(self._samples) < LEAST_SAMPLES:
            return None
        ordered = sorted(value for _, value in self._samples)
        return tuple(quantile(ordered, q) if q <= 0.5 else proven_tail(ordered, q) for q in qs)

    def __len__(self) -> int:
        return len(self._samples)
