"""One table asked by a vector, by words, or by both: what is found, in which order, and how long each part took.

Blocks; for a thread of the process that keeps the vectors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from nearmesh.errors import InvalidInput
from nearmesh_agent.vectors.model import Found, Index, Lexical, Metric, Row, Vector, Where
from nearmesh_agent.vectors.text import fusion
from nearmesh_agent.vectors.text.fusion import Fused

# Of each way, from which the best k are taken together; with the missing scores filled in, more change nothing.
CANDIDATES = 50
# A filter that takes so few rows is told to the words' index; of what a wider one takes, enough is found by looking on.
MOST_AMONG = 20_000
# To look at a hit costs as much as to name so many rows in advance; and how many more are looked at than should do.
_COSTS, _SPARE = 3, 1.5
# How many times as much is looked at in the next try, and the last.
_FURTHER, _FURTHEST = 8, 200_000


class Mode(StrEnum):
    """Which ways are gone."""

    HYBRID = "hybrid"
    DENSE = "dense"
    LEXICAL = "lexical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question."""

    text: str
    # Of the text; not for Mode.LEXICAL.
    vector: Vector | None
    k: int
    where: Where | None = None
    mode: Mode = Mode.HYBRID
    # Of the dense part, 0 to 1.
    weight: float = fusion.DENSE_WEIGHT


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One row that was found."""

    row: Row
    fused: Fused


@dataclass(frozen=True, slots=True, kw_only=True)
class Passages:
    """Best first."""

    found: Sequence[Passage]
    dense_ms: float
    lexical_ms: float


def retrieve(index: Index, lexical: Lexical | None, metric: Metric, ask: Ask) -> Passages:
    """The best k. Raises InvalidInput for a question that cannot be asked."""
    check(ask, has_words=lexical is not None)
    watch = _Watch()
    most = max(CANDIDATES, 2 * ask.k) if ask.mode is Mode.HYBRID else ask.k
    dense: Sequence[Found] = ()
    words: Sequence[Found] = ()
    if ask.mode is not Mode.LEXICAL:
        assert ask.vector is not None
        dense, _ = index.search(ask.vector, most, ask.where)
    dense_ms = watch.lap_ms()
    if lexical and ask.mode is not Mode.DENSE:
        words = _by_words(index, lexical, ask.text, most, ask.where)
    lexical_ms = watch.lap_ms()
    order = _ordered(index, lexical, metric, ask, dense, words)
    # What was deleted meanwhile is not there, and one more takes its place.
    rows = {row.id: row for row in index.rows([each.id for each in order[: 2 * ask.k]])}
    found = [Passage(row=rows[each.id], fused=each) for each in order if each.id in rows][: ask.k]
    return Passages(found=found, dense_ms=dense_ms + watch.lap_ms(), lexical_ms=lexical_ms)


def check(ask: Ask, *, has_words: bool = True) -> None:
    """Raises InvalidInput."""
    if ask.mode is not Mode.DENSE and not has_words:
        raise InvalidInput(f"mode {ask.mode} needs words, which this collection's index has not; ask with mode dense")
    if ask.k < 1:
        raise InvalidInput(f"k is {ask.k}, expected 1 or more")
    if not 0 <= ask.weight <= 1:
        raise InvalidInput(f"dense_weight is {ask.weight}, expected 0 (words alone) to 1 (the vector alone)")
    if ask.mode is not Mode.LEXICAL and ask.vector is None:
        raise InvalidInput(f"mode {ask.mode} needs the text's vector, and the collection has no embedder; ask by words")


def _ordered(
    index: Index, lexical: Lexical | None, metric: Metric, ask: Ask, dense: Sequence[Found], words: Sequence[Found]
) -> list[Fused]:
    if lexical is None or ask.mode is not Mode.HYBRID:
        return fusion.alone(dense, words)
    assert ask.vector is not None
    by_vector, by_words = {each.id for each in dense}, {each.id for each in words}
    more_dense = distances(index, ask.vector, metric, by_words - by_vector)
    more_words = by_vector - by_words
    more_lexical = lexical.search(ask.text, len(more_words), more_words) if more_words and words else ()
    return fusion.fuse(
        dense,
        words,
        metric=metric,
        weight=ask.weight,
        more_dense=more_dense,
        more_lexical={each.id: each.score for each in more_lexical},
    )


def _by_words(index: Index, lexical: Lexical, text: str, most: int, where: Where | None) -> Sequence[Found]:
    if where is None:
        return lexical.search(text, most)
    among = index.select(where, limit=MOST_AMONG + 1)
    if not among:
        return ()
    if len(among) <= MOST_AMONG:
        found = _some_of(lexical, text, most, among, index.size)
        return lexical.search(text, most, among) if found is None else found
    looked = most * _FURTHER
    while True:
        found = lexical.search(text, looked)
        taken = {row.id for row in index.rows([each.id for each in found]) if where.matches(row)}
        if len(taken) >= most or len(found) < looked or looked >= _FURTHEST:
            return [each for each in found if each.id in taken][:most]
        looked *= _FURTHER


def _some_of(lexical: Lexical, text: str, most: int, among: Sequence[str], rows: int) -> Sequence[Found] | None:
    """By looking at so many that those of the filter should be among them, where that is less work; None: it is not."""
    looked = math.ceil(_SPARE * most * rows / len(among))
    if looked * _COSTS > len(among):
        return None
    seen, taken = lexical.search(text, looked), set(among)
    found = [each for each in seen if each.id in taken]
    return found[:most] if len(found) >= most or len(seen) < looked else None


def distances(index: Index, vector: Vector, metric: Metric, ids: Iterable[str]) -> dict[str, float]:
    """Scores of rows that a search did not find, or not among its best."""
    rows = index.rows(ids, vectors=True)
    if not rows:
        return {}
    stacked = np.stack([row.vector for row in rows])
    return dict(zip([row.id for row in rows], scores(vector, stacked, metric).tolist(), strict=True))


def scores(vector: Vector, stacked: Vector, metric: Metric) -> Vector:
    """Of vectors [n, dimension], as the metric says."""
    if metric is Metric.L2:
        found = np.square(stacked - vector).sum(axis=1)
    elif metric is Metric.INNER_PRODUCT:
        found = stacked @ vector
    else:
        lengths = np.linalg.norm(stacked, axis=1) * np.linalg.norm(vector)
        found = (stacked @ vector) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return np.asarray(found, np.float32)


class _Watch:
    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._since = clock, clock()

    def lap_ms(self) -> float:
        now = self._clock()
        took, self._since = (now - self._since) * 1000, now
        return took
