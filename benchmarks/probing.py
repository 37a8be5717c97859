"""Which sites a client that nobody has measured should probe, and which is nearest then, as far as coordinates say.

The product asks for more than this: an SDK probes the nodes that its routes name all the time, so that each is known
and reachable when it is needed. How good a choice a few probes allow is what the benchmark shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from nearmesh_controlplane.routing.coordinates import NOISE

Array = npt.NDArray[np.float64]

# Probing more than this many nodes takes a new client longer than a worse node would cost it.
MAX_PROBES = 5


def next_probe(means: Array, covariance: Array, probed: Mapping[int, float]) -> int | None:
    """Which site to probe next: where the improvement over the best that is known is expected to be largest.

    `means` and `covariance` as `Coordinates.joint` gives them; `probed` the round trips so far, ms by index. None when
    probing no longer pays. Before any probe it is the best guess. (Expected improvement: Jones, Schonlau and Welch,
    Journal of Global Optimization 13, 1998.)
    """
    if len(probed) >= min(MAX_PROBES, len(means)):
        return None
    if not probed:
        return int(np.argmin(means))
    known, left = _posterior(means, covariance, probed)
    best = min(math.log(max(ms, 1e-3)) for ms in probed.values())
    gains = {i: _expected_improvement(best, known[i], left[i]) for i in range(len(means)) if i not in probed}
    site = max(gains, key=lambda i: gains[i])
    return site if gains[site] > 0 else None


def best_site(means: Array, covariance: Array, probed: Mapping[int, float]) -> int:
    """The site with the shortest round trip, as far as is known."""
    known, _ = _posterior(means, covariance, probed)
    return int(np.argmin(known))


def _posterior(means: Array, covariance: Array, probed: Mapping[int, float]) -> tuple[Array, Array]:
    """Means and standard deviations of the logarithms once some round trips are known."""
    if not probed:
        return means, np.sqrt(np.maximum(np.diag(covariance), 0.0))
    at = list(probed)
    seen = np.array([math.log(max(ms, 1e-3)) for ms in probed.values()]) - means[at]
    gain = np.linalg.solve(covariance[np.ix_(at, at)] + NOISE**2 * np.eye(len(at)), covariance[at]).T
    known = means + gain @ seen
    left = np.sqrt(np.maximum(np.diag(covariance - gain @ covariance[at]), 0.0))
    known[at], left[at] = seen + means[at], 0.0
    return known, left


def _expected_improvement(best: float, mean: float, deviation: float) -> float:
    if deviation <= 0:
        return max(0.0, best - mean)
    z = (best - mean) / deviation
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (best - mean) * (1 + math.erf(z / math.sqrt(2))) / 2 + deviation * density
