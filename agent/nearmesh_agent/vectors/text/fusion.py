"""One order of two: what a vector found and what words found, by a weighted sum of their scores.

A cosine counts as it is, so that an embedder which cannot tell texts apart, whose scores all are alike, weighs little
by itself. A BM25 score counts as a share of the best one. Hits carry both scores as they were, so that answers of
several sites can be put in one order by the same sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nearmesh_agent.vectors.model import Found, Metric

# Of the vector's part. The best mean recall of the first passage over every other question of XQuAD in English, Spanish
# and Chinese by an English embedder; where texts are in the embedder's own language, 0.7 finds a little more.
DENSE_WEIGHT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """One row, and what its score is made of."""

    id: str
    score: float
    # As the metric says; 0 with rank 0 where there was no such search.
    dense_score: float = 0.0
    # From 1; 0: this way did not find it, though it may have a score.
    dense_rank: int = 0
    lexical_score: float = 0.0
    lexical_rank: int = 0


def alone(dense: Sequence[Found] = (), lexical: Sequence[Found] = ()) -> list[Fused]:
    """The answer of one way, in its own order and by its own scores."""
    found = [
        Fused(id=each.id, score=each.score, dense_score=each.score, dense_rank=rank)
        for rank, each in enumerate(dense, 1)
    ]
    return found + [
        Fused(id=each.id, score=each.score, lexical_score=each.score, lexical_rank=rank)
        for rank, each in enumerate(lexical, 1)
    ]


def fuse(
    dense: Sequence[Found],
    lexical: Sequence[Found],
    *,
    metric: Metric,
    weight: float = DENSE_WEIGHT,
    more_dense: Mapping[str, float] | None = None,
    more_lexical: Mapping[str, float] | None = None,
) -> list[Fused]:
    """Best first.

    `more_dense` and `more_lexical` are scores of rows that the other way found: without them a row that only just
    missed one of the lists would count as if it said nothing.
    """
    dense_ranks, lexical_ranks = _ranks(dense), _ranks(lexical)
    dense_scores = {**(more_dense or {}), **{each.id: each.score for each in dense}}
    lexical_scores = {**(more_lexical or {}), **{each.id: each.score for each in lexical}}
    # What nobody knows the distance of is no nearer than the farthest that was found.
    farthest = min((nearness(each.score, metric) for each in dense), default=0.0)
    best = max(lexical_scores.values(), default=0.0)
    found = []
    for id in dict.fromkeys([*dense_ranks, *lexical_ranks]):
        near = nearness(dense_scores[id], metric) if id in dense_scores else farthest
        said = lexical_scores.get(id, 0.0)
        found.append(
            Fused(
                id=id,
                score=weight * near + (1 - weight) * share(said, best),
                dense_score=dense_scores.get(id, 0.0),
                dense_rank=dense_ranks.get(id, 0),
                lexical_score=said,
                lexical_rank=lexical_ranks.get(id, 0),
            )
        )
    return sorted(found, key=lambda each: (-each.score, each.id))


def again(parts: Sequence[tuple[float, float]], *, metric: Metric, weight: float = DENSE_WEIGHT) -> list[float]:
    """Scores of rows that were fused apart, by their dense and lexical scores: against the best of all of them."""
    best = max((lexical for _, lexical in parts), default=0.0)
    return [weight * nearness(dense, metric) + (1 - weight) * share(lexical, best) for dense, lexical in parts]


def nearness(score: float, metric: Metric) -> float:
    """A metric's score as a number up to 1, or from 0 to 1; higher is nearer."""
    if metric is Metric.L2:
        return 1 / (1 + max(0.0, score))
    if metric is Metric.INNER_PRODUCT:
        # Of vectors of any length: squeezed, in the same order.
        return score / (1 + abs(score))
    return score


def share(score: float, best: float) -> float:
    """Of the best score, 0 to 1."""
    return min(1.0, score / best) if best > 0 else 0.0


def _ranks(found: Iterable[Found]) -> dict[str, int]:
    return {each.id: rank for rank, each in enumerate(found, 1)}
