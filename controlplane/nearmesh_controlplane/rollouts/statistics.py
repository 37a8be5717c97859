"""What counts of successes and failures say for sure. Pure.

Wilson's score interval (Journal of the American Statistical Association 22, 1927) holds for few trials and for parts
near 0 and 1, where the usual one does not; Newcombe's hybrid of two of them (Statistics in Medicine 17, 1998, method
10) bounds the difference of two parts.
"""

from __future__ import annotations

import math

# One look in a thousand would be wrong on one side. A step is looked at each second, though on growing counts: looks
# are far from independent, and a version as good as the standing one is rarely taken for worse.
Z = 3.09


def wilson(hits: int, trials: int, z: float = Z) -> tuple[float, float]:
    """Between what the part of hits surely is; 0 to 1 before any trial."""
    if trials <= 0:
        return 0.0, 1.0
    part, share = hits / trials, z * z / trials
    middle = part + share / 2
    reach = z * math.sqrt(part * (1 - part) / trials + share / (4 * trials))
    return max(0.0, (middle - reach) / (1 + share)), min(1.0, (middle + reach) / (1 + share))


def surely_larger_by(hits: int, trials: int, other_hits: int, other_trials: int, z: float = Z) -> float:
    """By how much the first part surely is larger than the second one; below 0: perhaps it is not.

    Of a second one without trials nothing is assumed but that it could be 0.
    """
    if trials <= 0:
        return -1.0
    part, other = hits / trials, other_hits / other_trials if other_trials else 0.0
    least, _ = wilson(hits, trials, z)
    most = wilson(other_hits, other_trials, z)[1] if other_trials else 0.0
    return part - other - math.hypot(part - least, most - other)
