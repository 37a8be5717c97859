"""What may be believed of the sites' updates: how long one may be, and which of them stand far from the others.

Pure. An update is what a site changed, as one vector. Longer ones than allowed are shortened. A suspect is only named:
whether it counts is the strategy's decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nearmesh_controlplane.rounds.layout import Vector

# Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993: a modified z-score above it is an outlier.
OUTLIER = 3.5
# Turns the median absolute deviation into the standard deviation of a normal distribution; of the same source.
MAD_TO_DEVIATION = 0.6745
# Three sites that happen to agree closely would make an outlier of any fourth. The deviation counts as no less than
# this part of the median norm, so that a site is suspected that changes 2.6 times as much as the others...
LEAST_NORM_DEVIATION = 0.3
# ...and than this cosine, so that one is suspected whose direction is 0.5 from theirs.
LEAST_COSINE_DEVIATION = 0.1
# Of two that differ nobody can say which is wrong.
FEWEST = 3


def norm(update: Vector) -> float:
    return float(np.linalg.norm(update))


def clipped(update: Vector, largest: float) -> tuple[Vector, bool]:
    """Shortened to the largest norm, and whether it was longer; 0: there is none."""
    length = norm(update)
    if not largest or length <= largest:
        return update, False
    return update * (largest / length), True


def suspects(updates: Sequence[Vector]) -> list[str]:
    """For each, why it is suspected; empty: it is not."""
    if len(updates) < FEWEST:
        return [""] * len(updates)
    long = _too_long([norm(update) for update in updates])
    against = _against(updates)
    return [one or other for one, other in zip(long, against, strict=True)]


def _too_long(norms: Sequence[float]) -> list[str]:
    middle = float(np.median(norms))
    scores = _scores(norms, least=LEAST_NORM_DEVIATION * middle)
    return [
        f"its change is {length / middle:.1f} times as long as the median's" if middle and score > OUTLIER else ""
        for length, score in zip(norms, scores, strict=True)
    ]


def _against(updates: Sequence[Vector]) -> list[str]:
    """Those that go against the rest, while the rest goes one way."""
    cosines = [_cosine(update, _median_of_others(updates, at)) for at, update in enumerate(updates)]
    scores = _scores(cosines, least=LEAST_COSINE_DEVIATION)
    return [
        f"its change goes against the others' (cosine {cosine:.2f})" if cosine < 0 and score < -OUTLIER else ""
        for cosine, score in zip(cosines, scores, strict=True)
    ]


def _median_of_others(updates: Sequence[Vector], at: int) -> Vector:
    others = [update for place, update in enumerate(updates) if place != at]
    middle: Vector = np.median(np.stack(others), axis=0)
    return middle


def _cosine(a: Vector, b: Vector) -> float:
    """0 where one of them is nothing."""
    lengths = norm(a) * norm(b)
    return float(a @ b / lengths) if lengths else 0.0


def _scores(values: Sequence[float], *, least: float) -> list[float]:
    """Modified z-scores."""
    middle = np.median(values)
    deviation = max(float(np.median(np.abs(np.asarray(values) - middle))), least)
    return [float(MAD_TO_DEVIATION * (value - middle) / deviation) if deviation else 0.0 for value in values]
