"""Vectors that lie as those of texts do: topics of very different sizes in broader areas, few directions that matter.

Uniformly random ones are no test of an index: all are equally far from one another, and no text has such vectors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AREAS, TOPICS = 40, 1000
# How far topics lie from their area's centre, and texts from their topic's, as shares of an area's own length.
_TOPIC_SPREAD, _TEXT_SPREAD = 0.7, 0.8
# The n-th largest topic has a share of 1 / n^this of the largest one's texts.
_SKEW = 0.7


def corpus(rows: int, queries: int, dimension: int, seed: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of texts, and of queries that are none of them; all of length 1, in no order."""
    chance = np.random.default_rng(seed)
    # What varies varies mostly along a few directions, and those of each level are turned anew.
    areas = _along(chance, AREAS, dimension)
    topics = areas[chance.integers(0, AREAS, TOPICS)] + _TOPIC_SPREAD * _along(chance, TOPICS, dimension)
    shares = 1 / np.arange(1, TOPICS + 1) ** _SKEW
    of = chance.choice(TOPICS, rows + queries, p=shares / shares.sum())
    texts = topics[of] + _TEXT_SPREAD * _along(chance, rows + queries, dimension)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return texts[:rows], texts[rows:]


def _along(chance: np.random.Generator, count: int, dimension: int) -> NDArray[np.float32]:
    """Points whose length is 1 on average."""
    strengths = 1 / np.sqrt(np.arange(1, dimension + 1))
    strengths /= np.linalg.norm(strengths)
    turned, _ = np.linalg.qr(chance.normal(size=(dimension, dimension)))
    points = chance.normal(size=(count, dimension)).astype(np.float32)
    return points @ (strengths[:, None] * turned).astype(np.float32)
