"""Scores of a query with rows, one by one: what every answer of an index is held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearmesh_agent.vectors.index.library import faiss, pointer
from nearmesh_agent.vectors.model import Metric, Vector

Slots = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Best:
    """Slots and their scores, best first."""

    slots: Slots
    scores: NDArray[np.float32]

    def first(self, k: int) -> Best:
        return Best(self.slots[:k], self.scores[:k])


NONE = Best(np.empty(0, np.int64), np.empty(0, np.float32))


def scores(
    metric: Metric, query: Vector, vectors: NDArray[np.float32], scales: NDArray[np.float32], slots: Slots | None = None
) -> NDArray[np.float32]:
    """Of all of `vectors`, or of those in `slots`; for the cosine `query` has length 1. Others' threads go on."""
    count, dimension = len(vectors) if slots is None else len(slots), vectors.shape[1]
    found = np.empty(count, np.float32)
    if not count:
        return found
    if slots is None:
        every = faiss().fvec_L2sqr_ny if metric is Metric.L2 else faiss().fvec_inner_products_ny
        every(pointer(found), pointer(query), pointer(vectors), dimension, count)
    else:
        some = faiss().fvec_L2sqr_by_idx if metric is Metric.L2 else faiss().fvec_inner_products_by_idx
        some(pointer(found), pointer(query), pointer(vectors), pointer(slots), dimension, 1, count)
    if metric is Metric.COSINE:
        found *= scales[: len(vectors)] if slots is None else scales[slots]
    return found


def best(metric: Metric, slots: Slots, found: NDArray[np.float32], k: int) -> Best:
    """The k best of some, best first; of equal ones those that were written first."""
    keys = found if metric is Metric.L2 else -found
    if len(keys) > k:
        chosen = np.argpartition(keys, k - 1)[:k]
        slots, found, keys = slots[chosen], found[chosen], keys[chosen]
    order = np.lexsort((slots, keys))
    return Best(slots[order], found[order])


def joined(metric: Metric, parts: list[Best], k: int) -> Best:
    """The k best of all parts."""
    return best(metric, np.concatenate([part.slots for part in parts]), np.concatenate([p.scores for p in parts]), k)


def unit(vector: Vector) -> Vector:
    """Of length 1, or as it is where it has no length."""
    # FP32 holds neither the squares nor the length of every vector that it holds.
    exact = vector.astype(np.float64)
    length = float(np.sqrt(np.dot(exact, exact)))
    return (exact / length).astype(np.float32) if length > 0 else vector
