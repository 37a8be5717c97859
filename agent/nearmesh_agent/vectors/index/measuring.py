"""How many of the nearest rows a search through the lists finds, measured against scoring all; parameters follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from nearmesh_agent.vectors.index.exact import Best, best, scores, unit
from nearmesh_agent.vectors.index.lists import Lists
from nearmesh_agent.vectors.index.slots import View
from nearmesh_agent.vectors.index.tuning import MEASURED_K, Tuned, least_enough, scores_all
from nearmesh_agent.vectors.model import Mask, Metric, Vector

# Enough for the mean of their recalls to be right within a percent.
QUERIES = 64
# Queries are not quite where rows are: they lie beside them by this much of their length, in any direction.
_AWAY = 0.35
# Scores are the same within what FP32 leaves of a sum.
_SAME = 1e-6
# Of the rows, what the filter takes that recall is measured with too: those nearest to one of them, which is as hard
# as a filter gets, as they are far from most queries and lie in lists of their own.
_FILTERED_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Query:
    """One to measure with."""

    vector: Vector
    # The slot of the row that it was made of, which is not to be found; -1: somebody asked it.
    made_of: int = -1

    def within(self, mask: Mask) -> Mask:
        if self.made_of < 0:
            return mask
        others = mask.copy()
        others[self.made_of] = False
        return others


def exactly(view: View, query: Vector, k: int, selected: Mask | None, first: int = 0) -> Best:
    """The true nearest of the slots from `first` on; `selected` are alive."""
    metric, scales = view.slots.table.metric, view.scales
    if selected is None and view.dead:
        selected = view.alive
    if selected is None:
        slots = np.arange(first, view.used)
        return best(metric, slots, scores(metric, query, view.vectors[first:], scales[first:]), k)
    slots = np.flatnonzero(selected[first:]) + first
    return best(metric, slots, scores(metric, query, view.vectors, scales, slots), k)


def likely_queries(view: View, count: int) -> list[Query]:
    """Made of some of the rows, for as long as too few real ones have been seen."""
    chance = np.random.default_rng(view.used)
    live = np.flatnonzero(view.alive)
    slots = np.sort(chance.choice(live, min(count, len(live)), replace=False))
    rows = view.vectors[slots]
    away = chance.normal(size=rows.shape)
    away *= _AWAY * np.linalg.norm(rows, axis=1, keepdims=True) / np.linalg.norm(away, axis=1, keepdims=True)
    vectors = (rows + away).astype(np.float32)
    metric = view.slots.table.metric
    return [Query(prepared(metric, vector), slot) for vector, slot in zip(vectors, slots.tolist(), strict=True)]


def prepared(metric: Metric, query: Vector) -> Vector:
    """A query as scores are made with it."""
    query = np.ascontiguousarray(query, np.float32)
    return unit(query) if metric is Metric.COSINE else query


def tuned(lists: Lists, view: View, queries: Sequence[Query]) -> Tuned:
    """How far searches must look, with and without a filter; takes some hundred searches."""
    rows = min(lists.indexed, view.used)
    within = np.zeros(view.used, np.bool_)
    within[:rows] = view.alive[:rows]
    return Tuned(_enough(lists, view, queries, within), _enough(lists, view, queries, _around_one(view, within)), rows)


def _enough(lists: Lists, view: View, queries: Sequence[Query], mask: Mask) -> dict[int, int]:
    """Of the rows of a mask, for each number of results."""
    taken = int(np.count_nonzero(mask))
    truth = [exactly(view, query.vector, max(MEASURED_K), query.within(mask)) for query in queries]

    def recall_of(k: int, tried: int) -> float:
        if scores_all(taken, tried):
            return 1.0
        found = [lists.search(query.vector, k, tried, view, query.within(mask))[0] for query in queries]
        return mean_recall(view.slots.table.metric, found, [true.first(k) for true in truth])

    return {k: least_enough(k, taken, partial(recall_of, k)) for k in MEASURED_K}


def _around_one(view: View, mask: Mask) -> Mask:
    """Rows of a mask nearest to one of them."""
    slots = np.flatnonzero(mask)
    if not len(slots):
        # All were deleted while the lists were made.
        return mask
    centre = prepared(view.slots.table.metric, view.vectors[slots[len(slots) // 2]])
    around = np.zeros(len(mask), np.bool_)
    around[exactly(view, centre, max(1, int(len(slots) * _FILTERED_SHARE)), mask).slots] = True
    return around


def mean_recall(metric: Metric, found: Sequence[Best], truth: Sequence[Best]) -> float:
    """The share of the true nearest that was found; 1 where there are none.

    One that is as near as the last of them counts: of rows with the same vector any may be in an answer.
    """
    shares = []
    for some, true in zip(found, truth, strict=True):
        if not len(true.scores):
            continue
        last = float(true.scores[-1])
        slack = _SAME * max(1.0, abs(last))
        near = some.scores <= last + slack if metric is Metric.L2 else some.scores >= last - slack
        shares.append(min(1.0, np.count_nonzero(near) / len(true.scores)))
    return float(np.mean(shares)) if shares else 1.0
