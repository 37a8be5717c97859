"""Quantiles of few samples, which have no tail: the nearest-rank 95th percentile of fewer than twenty is their maximum,
which one pause of the machine makes anything. So a tail is taken to be no longer than the samples prove.
"""

from __future__ import annotations

import math
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


def proven_level(q: float, samples: int) -> float:
    """The level of the sample that the true `q` quantile is at least, with CONFIDENCE; up to the median `q` itself.

    The distribution-free one-sided confidence bound of a quantile by an order statistic: the number of samples above
    the true quantile is binomial with share 1 - q, whatever the distribution (David and Nagaraja, Order Statistics,
    3rd edition, section 7.1). For q = 0.95 it overlooks one sample of 3, two of 8, three of 17 and six of 64, where
    nearest rank overlooks none, none, none and three. Beyond MANY_SAMPLES the binomial is normal enough.
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
