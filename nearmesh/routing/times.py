"""How long something takes, as a distribution: a few quantiles, what lies between and beyond them, and their sums.

A distribution is its quantiles at LEVELS. Between them it is taken for uniform, below the first one for a point, beyond
the last one for an exponential tail that goes on as the last two quantiles suggest. That is all that travels: a handful
of numbers say enough to tell how likely a request is in time, and they can be averaged, aged and compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_P50, _P95, _P99 = LEVELS.index(0.5), LEVELS.index(0.95), LEVELS.index(0.99)
_NORMAL = NormalDist()

# How a distribution stands in a sum: points, each for a share of it. The tail's shares are small, so that a chance of
# 0.99 is told from one of 0.999.
CELLS = (0.05, 0.20, 0.25, 0.25, 0.15, 0.05, 0.04, 0.01)

# Sums that are remembered: the same few distributions are asked for again and again.
CACHED = 32_768

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Times:
    """A duration's quantiles at LEVELS, milliseconds, ascending."""

    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.ms) != len(LEVELS):
            raise ValueError(f"{len(self.ms)} quantiles instead of {len(LEVELS)}")

    @classmethod
    def of(cls, quantiles: Sequence[float]) -> Times | None:
        """From what came over the wire; None when it is no distribution: too few, negative, infinite or falling."""
        if len(quantiles) != len(LEVELS) or not all(math.isfinite(q) and q >= 0 for q in quantiles):
            return None
        return cls(tuple(quantiles)) if sorted(quantiles) == list(quantiles) else None

    @classmethod
    def spread(cls, p50_ms: float, p95_ms: float) -> Times:
        """The log-normal distribution through two quantiles: what is meant when no more is known."""
        if p50_ms <= 0 or p95_ms <= p50_ms:
            return cls.certain(max(p50_ms, p95_ms, 0.0))
        sigma = math.log(p95_ms / p50_ms) / _NORMAL.inv_cdf(0.95)
        return cls(tuple(p50_ms * math.exp(sigma * _NORMAL.inv_cdf(level)) for level in LEVELS))

    @classmethod
    def certain(cls, ms: float) -> Times:
        """Always the same."""
        return cls((ms,) * len(LEVELS))

    @property
    def p50_ms(self) -> float:
        return self.ms[_P50]

    @property
    def p95_ms(self) -> float:
        return self.ms[_P95]

    @property
    def p99_ms(self) -> float:
        return self.ms[_P99]

    def gain_ms(self, limit_ms: float) -> float:
        """By how much it is expected to stay below `limit_ms`; longer ones count as no gain, not as a loss."""
        at = points(np.asarray(self.ms))
        return sum(share * max(0.0, limit_ms - float(ms)) for share, ms in zip(CELLS, at, strict=True))

    def share_within(self, limit_ms: float) -> float:
        """The chance to take no longer than `limit_ms`."""
        return float(share_within(np.asarray(self.ms), np.asarray(limit_ms)))


def matrix(times: Iterable[Times]) -> Array:
    """One row for each distribution; float64, shape (n, len(LEVELS))."""
    return np.array([t.ms for t in times], dtype=np.float64).reshape(-1, len(LEVELS))


def share_within(quantiles: Array, limit_ms: Array) -> Array:
    """The chance to take no longer than `limit_ms`; `quantiles` has one more axis, the last one, of len(LEVELS)."""
    low, high = quantiles[..., :-1], quantiles[..., 1:]
    limit = limit_ms[..., None]
    part = np.where(limit >= high, 1.0, np.clip((limit - low) / np.maximum(high - low, 1e-9), 0.0, 1.0))
    found = part @ np.diff(LEVELS)
    found = np.where(limit_ms >= quantiles[..., 0], found + LEVELS[0], 0.0)
    beyond = limit_ms - quantiles[..., -1]
    tail = 1 - LEVELS[-1]
    scale = _tail_ms(quantiles)
    left = np.where(scale > 0, np.exp(-np.maximum(beyond, 0) / np.maximum(scale, 1e-9)), 0.0)
    return np.where(beyond >= 0, 1 - tail * left, found)


def share_of_sum_within(first: Array, second: Array, limit_ms: Array) -> Array:
    """The chance that two independent durations together take no longer than `limit_ms`.

    `first` and `second` are quantiles as in `share_within`, `limit_ms` lacks their last axis; all broadcast. The first
    is cut into CELLS, so it should be the one that varies less: the network.
    """
    found = np.zeros(np.broadcast_shapes(first.shape[:-1], second.shape[:-1], limit_ms.shape))
    for share, point in zip(CELLS, np.moveaxis(points(first), -1, 0), strict=True):
        found += share * share_within(second, limit_ms - point)
    return found


@lru_cache(maxsize=CACHED)
def chance_within(first: Times, second: Times, limit_ms: float) -> float:
    """The chance that two independent durations together take no longer than `limit_ms`."""
    return float(share_of_sum_within(np.asarray(first.ms), np.asarray(second.ms), np.asarray(limit_ms)))


@lru_cache(maxsize=CACHED)
def sum_of(first: Times, second: Times) -> Times:
    """The distribution of the sum of two independent durations."""
    for fixed, other in ((first, second), (second, first)):
        if fixed.ms[0] == fixed.ms[-1]:
            return Times(tuple(q + fixed.ms[0] for q in other.ms))
    grid = np.unique(np.add.outer(points(np.asarray(first.ms)), _fine(np.asarray(second.ms))))
    shares = share_of_sum_within(np.asarray(first.ms), np.asarray(second.ms), grid)
    shares = np.maximum.accumulate(shares)
    return Times(tuple(float(q) for q in np.maximum.accumulate(np.interp(LEVELS, shares, grid))))


def mixture(times: Sequence[Times], weights: Sequence[float]) -> Times:
    """One of several durations, chosen at random with chances in proportion to `weights`."""
    if len(times) == 1:
        return times[0]
    rows = matrix(times)
    grid = np.unique(np.concatenate([_fine(row) for row in rows]))
    chances = np.asarray(weights, dtype=np.float64) / sum(weights)
    shares = chances @ share_within(rows[:, None, :], grid[None, :])
    return Times(tuple(float(q) for q in np.interp(LEVELS, shares, grid)))


def _tail_ms(quantiles: Array) -> Array:
    """The scale of the exponential tail: it passes through the last two quantiles."""
    return (quantiles[..., -1] - quantiles[..., -2]) / math.log((1 - LEVELS[-2]) / (1 - LEVELS[-1]))


def points(quantiles: Array) -> Array:
    """Where the CELLS of distributions lie: the middle of each, and in the tail its mean."""
    middle = (quantiles[..., :-1] + quantiles[..., 1:]) / 2
    tail = quantiles[..., -1] + _tail_ms(quantiles)
    return np.concatenate([quantiles[..., :1], middle, tail[..., None]], axis=-1)


def _fine(quantiles: Array) -> Array:
    """The quantiles, and points between and beyond them, ascending: where a curve through them bends."""
    between = (quantiles[:-1] + quantiles[1:]) / 2
    tail = quantiles[-1] + _tail_ms(quantiles) * np.array([0.5, 1.0, 2.0, 4.0])
    return np.sort(np.concatenate([[0.0], quantiles, between, tail]))
