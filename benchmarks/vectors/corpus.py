"""The vectors that are searched, as embeddings of texts are: in clusters of uneven size, few directions counting most.

Uniformly random vectors would do no index justice: in 384 dimensions all of them are about equally far from each other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Of the rows, those that belong to no cluster.
STRAYS = 0.05
# Rank r has a share of the rows that goes with r ** -EVENNESS: the largest of 500 clusters has some 2 % of them.
EVENNESS = 0.7
# How much of a row is its own and not its cluster's: clusters are tight or loose, between these.
LOOSENESS = (0.5, 1.1)
# Directions count less one after the other, with their number to this power, as the spectra of embeddings fall.
SPECTRUM = 0.6
# A filter takes one value of as many: a tenth of the rows, which tells nothing of where they are.
SHARES = 10
K = 10
# Rows that are compared with all queries at a time.
_CHUNK = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is made; the same again from the same seed."""

    rows: int
    queries: int
    # As many others, for parameters to be chosen by.
    tuning: int
    dimension: int = 384
    clusters: int = 500
    # Of the text that each row brings along, and an answer with it.
    text_bytes: int = 200
    seed: int = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Unit vectors, what a filter goes by, and the K nearest rows of each query, exactly."""

    vectors: Floats
    # Of each row, from 0 to SHARES - 1.
    shares: Ints
    queries: Floats
    truth: Ints
    # Among the rows of the share that `asked_share` has for the query.
    truth_of_share: Ints
    tuning: Floats
    tuning_truth: Ints
    tuning_truth_of_share: Ints


def make(shape: Shape) -> Corpus:
    """Seconds for each 100,000 rows and 1,000 queries."""
    random = np.random.default_rng(shape.seed)
    points = _points(shape, shape.rows + shape.queries + shape.tuning, random)
    # Queries are of the same kind as rows, and none of them is one.
    vectors, queries, tuning = np.split(points, [shape.rows, shape.rows + shape.queries])
    shares = random.integers(0, SHARES, shape.rows)
    return Corpus(
        vectors=vectors,
        shares=shares,
        queries=queries,
        truth=nearest(vectors, queries),
        truth_of_share=_of_shares(vectors, queries, shares),
        tuning=tuning,
        tuning_truth=nearest(vectors, tuning),
        tuning_truth_of_share=_of_shares(vectors, tuning, shares),
    )


def _points(shape: Shape, count: int, random: np.random.Generator) -> Floats:
    spectrum = np.arange(1, shape.dimension + 1, dtype=np.float32) ** -SPECTRUM
    spectrum *= np.sqrt(shape.dimension) / np.linalg.norm(spectrum)
    sizes = np.arange(1, shape.clusters + 1) ** -EVENNESS
    which = random.choice(shape.clusters, count, p=sizes / sizes.sum())
    centres = random.standard_normal((shape.clusters, shape.dimension), np.float32) * spectrum
    looseness = random.uniform(*LOOSENESS, shape.clusters).astype(np.float32)
    points = random.standard_normal((count, shape.dimension), np.float32) * spectrum
    own = np.where(random.random(count) < STRAYS, np.float32(0), np.float32(1))[:, None]
    points *= np.where(own, looseness[which][:, None], 1)
    points += own * centres[which]
    # Turned, so that no direction is one of the axes.
    turn, _ = np.linalg.qr(random.standard_normal((shape.dimension, shape.dimension)))
    points = points @ turn.astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def nearest(vectors: Floats, queries: Floats, k: int = K) -> Ints:
    """Rows by cosine, best first, for each query; all are compared."""
    best_scores = np.full((len(queries), 0), -np.inf, np.float32)
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), _CHUNK):
        scores = queries @ vectors[start : start + _CHUNK].T
        rows = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        scores, rows = np.hstack([best_scores, scores]), np.hstack([best, rows])
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :k] if scores.shape[1] <= k else _top(scores, k)
        best_scores, best = np.take_along_axis(scores, kept, 1), np.take_along_axis(rows, kept, 1)
    return best


def _top(scores: Floats, k: int) -> Ints:
    some = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)


def asked_share(query: int) -> int:
    """The share that the query of that number asks for, where it has a filter."""
    return query % SHARES


def _of_shares(vectors: Floats, queries: Floats, shares: Ints) -> Ints:
    found = np.empty((len(queries), K), np.int64)
    for share in range(SHARES):
        mine = np.flatnonzero(shares == share)
        asking = np.arange(share, len(queries), SHARES)
        found[asking] = mine[nearest(vectors[mine], queries[asking])]
    return found


def text(row: int, size: int) -> str:
    """Of that many bytes, and no two rows the same: words of few letters, as texts have them."""
    words = [f"row{row}"]
    length = len(words[0])
    while length < size:
        word = f"w{(row * 7919 + length * 104729) % 9973}"
        words.append(word)
        length += len(word) + 1
    return " ".join(words)[:size]


def kept(shape: Shape, folder: Path) -> Path:
    """The folder with one file for each array, made unless it is there."""
    place = folder / "-".join(str(value) for value in asdict(shape).values())
    if not (place / "made").exists():
        place.mkdir(parents=True, exist_ok=True)
        made = make(shape)
        for name in Corpus.__slots__:
            np.save(place / f"{name}.npy", getattr(made, name))
        (place / "made").touch()
    return place


def loneliness(corpus: Corpus) -> dict[str, Any]:
    """How near the nearest are, and how near any are: where both are alike, no index could tell them apart."""
    nearest_one = np.einsum("qd,qd->q", corpus.queries, corpus.vectors[corpus.truth[:, 0]])
    tenth = np.einsum("qd,qd->q", corpus.queries, corpus.vectors[corpus.truth[:, -1]])
    any_ = corpus.queries[:100] @ corpus.vectors[:1000].T
    return {
        "nearest": float(np.median(nearest_one)),
        "tenth": float(np.median(tenth)),
        "any": float(np.median(any_)),
    }
