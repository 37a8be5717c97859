"""Differential privacy of a site's part in a run: noise over the mean of clipped updates, and what it comes to.

As Flower's fixed clipping at the server: every round each site's update is shortened to the clipping norm, the mean of
them is taken with equal weights, and Gaussian noise of `noise_multiplier * clipping_norm / sites` is added to each
number. Protects the models that come of it against whoever sees them; the control plane sees the updates themselves,
and figures and counts get no noise.

All sites take part each round, so nothing is gained by sampling and the account is exact: T releases with multiplier z
are one of z / sqrt(T), hence Gaussian differential privacy with mu = sqrt(T) / z (Dong, Roth, Su, Gaussian Differential
Privacy, 2019, corollaries 2.13 and 3.3), for neighbours that differ in one site.
"""

from __future__ import annotations

import math

import numpy as np

from nearmesh.errors import InvalidInput
from nearmesh.strategies import STRATEGIES, strategy
from nearmesh_controlplane.rounds.layout import Vector
from nearmesh_controlplane.runs.folder import Plan

# Below, the normal distribution's tail is no double any more, and its expansion is exact to 1e-9.
_TAIL = -30.0
# Halvings; the interval is then narrower than a double can tell.
_STEPS = 200


def check(plan: Plan) -> None:
    """Raises InvalidInput where the plan's privacy promises nothing."""
    if not plan.noise_multiplier:
        return
    if plan.clipping_norm <= 0:
        raise InvalidInput(f"privacy with a clipping norm of {plan.clipping_norm:g}; it has to be above 0")
    if not 0 < plan.delta < 1:
        raise InvalidInput(f"privacy with a delta of {plan.delta:g}; it has to be between 0 and 1")
    if not strategy(plan.strategy).averages:
        averaging = ", ".join(name for name, one in STRATEGIES.items() if one.averages)
        raise InvalidInput(f"privacy is computed for the mean of updates, not for {plan.strategy}; use {averaging}")


def noised_mean(updates: list[Vector], plan: Plan, random: np.random.Generator) -> Vector:
    """Of updates that are no longer than the clipping norm."""
    mean: Vector = np.mean(np.stack(updates), axis=0)
    deviation = plan.noise_multiplier * plan.clipping_norm / len(updates)
    noised: Vector = mean + random.normal(0.0, deviation, mean.shape)
    return noised


def epsilon(releases: int, noise_multiplier: float, delta: float) -> float:
    """Spent after so many rounds; 0 without noise or rounds."""
    if not noise_multiplier or not releases:
        return 0.0
    mu = math.sqrt(releases) / noise_multiplier
    low, high = 0.0, 1.0
    while delta_of(high, mu) > delta:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, mu) > delta else (low, middle)
    return high


def delta_of(epsilon: float, mu: float) -> float:
    """What a mechanism of mu-Gaussian privacy has as its delta at this epsilon; corollary 2.13."""
    return math.exp(_log_cdf(-epsilon / mu + mu / 2)) - math.exp(epsilon + _log_cdf(-epsilon / mu - mu / 2))


def _log_cdf(x: float) -> float:
    """Logarithm of the standard normal distribution."""
    if x > _TAIL:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    # Abramowitz and Stegun, 26.2.12.
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / x**2 + 3 / x**4 - 15 / x**6)
