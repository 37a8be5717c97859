"""Round trips that nobody has measured, inferred from those that somebody has: where both ends lie, and what is near.

What a network takes over its distance prior is alike for pairs whose ends are close to each other: a bad way out of
one city is a bad way for its neighbours too. So the logarithm of measured over prior is a Gaussian process over pairs
of places (Rasmussen and Williams, Gaussian Processes for Machine Learning, section 2.2), whose covariance is a product
over both ends, whichever is which; and it may grow or fall with the distance, since a network is not bound to the
prior's line. Far from all that was measured the prior comes back, as uncertain as it is.

Pure and without a clock: fitted anew from a table of medians, and small enough for that: one linear system.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearmesh.regions import EARTH_RADIUS_KM, PRIOR_BASE_MS, PRIOR_MS_PER_KM, PRIOR_SAME_REGION_MS, great_circle_km

# Latitude and longitude in degrees.
Point = tuple[float, float]
Array = npt.NDArray[np.float64]

# The system has a row for each measured pair and is solved in their cube; the pairs beyond are left out.
MAX_PAIRS = 800

# Standard deviations of the logarithm of measured over prior, and the distance over which it changes; fitted by
# likelihood over the pairs of 20 regions of one cloud. The last is what two measurements of one pair differ by.
_COMMON, _TREND, _WAY, NOISE = 0.27, 0.57, 0.38, 0.04
_REACH_KM = 12_000.0
# Where one region measures itself; city-level positions know nothing of that.
_SAME_PLACE_KM = 30.0


@dataclass(frozen=True, slots=True)
class Guess:
    """A round trip as it is inferred: log-normal."""

    median_ms: float
    # Standard deviation of its logarithm.
    spread: float


def prior_ms(a: Point, b: Point) -> float:
    """The round trip between two places by distance alone."""
    km = great_circle_km(a, b)
    return PRIOR_SAME_REGION_MS if km < _SAME_PLACE_KM else PRIOR_BASE_MS + PRIOR_MS_PER_KM * km


class Coordinates:
    """What measured round trips say of others. Immutable; made anew when there is more to know."""

    def __init__(self, measured: Mapping[tuple[Point, Point], float]) -> None:
        """`measured` are medians in ms by pair of places; those of a place to itself teach nothing."""
        pairs = [pair for pair in measured if great_circle_km(*pair) >= _SAME_PLACE_KM and measured[pair] > 0]
        self._pairs = pairs[:MAX_PAIRS]
        excess = np.array([math.log(measured[a, b] / prior_ms(a, b)) for a, b in self._pairs])
        covariance = _covariance(self._pairs, self._pairs) + NOISE**2 * np.eye(len(self._pairs))
        self._inverse = np.linalg.inv(covariance) if self._pairs else covariance
        self._solved = self._inverse @ excess

    @property
    def known(self) -> int:
        """From how many measured pairs it infers."""
        return len(self._pairs)

    def guess(self, a: Point, b: Point) -> Guess:
        """The round trip between two places."""
        return self.guesses(a, [b])[0]

    def guesses(self, client: Point, sites: Sequence[Point]) -> list[Guess]:
        """The round trips between a client and each of `sites`."""
        means, covariance = self.joint(client, sites)
        spreads = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        return [Guess(float(math.exp(m)), float(s)) for m, s in zip(means, spreads, strict=True)]

    def joint(self, client: Point, sites: Sequence[Point]) -> tuple[Array, Array]:
        """Means and covariance of the logarithms of a client's round trips to `sites`."""
        asked = [(client, site) for site in sites]
        means = np.log([prior_ms(client, site) for site in sites])
        covariance = _covariance(asked, asked)
        if self._pairs:
            across = _covariance(asked, self._pairs)
            means = means + across @ self._solved
            covariance = covariance - across @ self._inverse @ across.T
        return means, covariance


def _covariance(first: Collection[tuple[Point, Point]], second: Collection[tuple[Point, Point]]) -> Array:
    """Between the logarithms of measured over prior of pairs; shape (len(first), len(second))."""
    a, b = _ends(first)
    c, d = _ends(second)
    ac, bd, ad, bc = _km(a, c), _km(b, d), _km(a, d), _km(b, c)
    alike = [np.exp(-km / _REACH_KM) for km in (ac, bd, ad, bc)]
    way = alike[0] * alike[1] + alike[2] * alike[3]
    trend = np.outer(_length(a, b), _length(c, d))
    return np.asarray(_COMMON**2 + _TREND**2 * trend + _WAY**2 * way)


def _length(a: Array, b: Array) -> Array:
    """How long each way is, on a scale on which the prior's error grows evenly; 0 at about 5,600 km."""
    return np.log1p(_km_between(a, b) / 500.0) - 2.5


def _ends(pairs: Collection[tuple[Point, Point]]) -> tuple[Array, Array]:
    found = np.radians(np.array(list(pairs), dtype=np.float64).reshape(-1, 2, 2))
    return found[:, 0], found[:, 1]


def _km(a: Array, b: Array) -> Array:
    """Great-circle distances between all of `a` and all of `b`, both in radians."""
    return _km_between(a[:, None], b[None, :])


def _km_between(a: Array, b: Array) -> Array:
    """Great-circle distances between points in radians, by the haversine formula."""
    lat_a, lon_a, lat_b, lon_b = a[..., 0], a[..., 1], b[..., 0], b[..., 1]
    h = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(h, 0, 1))))
