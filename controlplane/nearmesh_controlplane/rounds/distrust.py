"""What may be believed of the sites' updates: how long one may be, and which of them stand far from the others.

Pure. An update is what a site changed, as one vector. Longer ones than allowed are shortened. A suspect is only named:
whether it counts is the strategy's decision.

While a model still learns, honest sites change it into one direction, by about as much. Later each pulls it to its own
data, and neither says anything any more. So who went against the others while they went together stays a suspect, and
no change is too long that would not have been so before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nearmesh_controlplane.rounds.layout import Vector

# Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993: a modified z-score above it is an outlier.
OUTLIER = 3.5
# Turns the median absolute deviation into the standard deviation of a normal distribution; of the same source.
MAD_TO_DEVIATION = 0.6745
# Three sites that happen to agree closely would make an outlier of any fourth. The deviation counts as no less than
# this part of the median norm, so that a site is suspected that changes 2.6 times as much as the others.
LEAST_NORM_DEVIATION = 0.3
# Two updates go one way above this cosine, and against each other below its negative. In many dimensions what has
# nothing to do with each other is near 0.
AGREES = 0.2
# Of two that differ nobody can say which is wrong.
FEWEST = 3
# Numbers that are compared at a time, so that large models need no multiple of their memory.
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Why a site is suspected; an empty reason: it is not."""

    reason: str = ""
    # It went against the others, which no later round takes back.
    against: bool = False


def norm(update: Vector) -> float:
    return float(np.linalg.norm(update))


def clipped(update: Vector, largest: float) -> Vector:
    """Shortened to the largest norm, the same object where it is no longer; 0: there is none."""
    length = norm(update)
    return update * (largest / length) if largest and length > largest else update


def suspicions(updates: Sequence[Vector], longest_before: float = 0.0) -> list[Suspicion]:
    """Of each. `longest_before` is the longest update of earlier rounds that nobody has suspected."""
    if len(updates) < FEWEST:
        return [Suspicion()] * len(updates)
    long = _too_long([norm(update) for update in updates], longest_before)
    against = _against(_cosines(updates))
    return [
        Suspicion("; ".join(filter(None, [one, other])), against=bool(other))
        for one, other in zip(long, against, strict=True)
    ]


def _too_long(norms: Sequence[float], longest_before: float) -> list[str]:
    middle = float(np.median(norms))
    deviation = max(float(np.median(np.abs(np.asarray(norms) - middle))), LEAST_NORM_DEVIATION * middle)
    limit = max(middle + OUTLIER / MAD_TO_DEVIATION * deviation, longest_before)
    return [
        f"its change is {length / middle:.1f} times as long as the median's" if middle and length > limit else ""
        for length in norms
    ]


def _against(cosines: np.ndarray) -> list[str]:
    """Those that go against the others, if so many go together that they are most of all."""
    # Itself and so many others are more than half.
    needed = len(cosines) // 2
    # The least that it agrees with these, of those that it agrees with best; the last is itself.
    agrees = np.sort(cosines, axis=1)[:, -1 - needed]
    together = int((agrees > AGREES).sum()) > needed
    return [
        f"its change goes against the others' (cosine {at:.2f})" if together and at < -AGREES else "" for at in agrees
    ]


def _cosines(updates: Sequence[Vector]) -> np.ndarray:
    """Of each with each; 0 where one of both is nothing."""
    products = np.zeros((len(updates), len(updates)))
    for begin in range(0, len(updates[0]), BLOCK):
        block = np.stack([update[begin : begin + BLOCK] for update in updates])
        products += block @ block.T
    lengths = np.sqrt(np.diag(products))
    found: np.ndarray = products / np.maximum(np.outer(lengths, lengths), np.finfo(float).tiny)
    # The largest of its row, whatever rounding says.
    np.fill_diagonal(found, np.inf)
    return found
