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
# Numbers that are compared at a time, so that large models need no multiple of their memory.
BLOCK = 1 << 18


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
    cosines = _cosines(updates)
    scores = _scores(cosines, least=LEAST_COSINE_DEVIATION)
    return [
        f"its change goes against the others' (cosine {cosine:.2f})" if cosine < 0 and score < -OUTLIER else ""
        for cosine, score in zip(cosines, scores, strict=True)
    ]


def _cosines(updates: Sequence[Vector]) -> list[float]:
    """Between each and the median of the others, number by number; 0 where one of both is nothing."""
    products, own, others = np.zeros((3, len(updates)))
    for begin in range(0, len(updates[0]), BLOCK):
        block = np.stack([update[begin : begin + BLOCK] for update in updates])
        medians = medians_of_others(block)
        products += (block * medians).sum(axis=1)
        own += np.square(block).sum(axis=1)
        others += np.square(medians).sum(axis=1)
    lengths = np.sqrt(own * others)
    return [float(product / length) if length else 0.0 for product, length in zip(products, lengths, strict=True)]


def medians_of_others(block: np.ndarray) -> np.ndarray:
    """For each row, the median of all other rows, column by column; of one sorting."""
    order = np.argsort(block, axis=0)
    ranks = np.argsort(order, axis=0)
    rows = np.take_along_axis(block, order, axis=0)
    others = len(block) - 1
    # The row at a place among the others stands one further in `rows` where the row itself comes before it.
    middle = [np.where(place < ranks, rows[place], rows[place + 1]) for place in ((others - 1) // 2, others // 2)]
    found: np.ndarray = (middle[0] + middle[1]) / 2
    return found


def _scores(values: Sequence[float], *, least: float) -> list[float]:
    """Modified z-scores."""
    middle = np.median(values)
    deviation = max(float(np.median(np.abs(np.asarray(values) - middle))), least)
    return [float(MAD_TO_DEVIATION * (value - middle) / deviation) if deviation else 0.0 for value in values]
