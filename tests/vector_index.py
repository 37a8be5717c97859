"""Indexes of vectors for tests: of rows in clusters, with lists for a few of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.vectors.index import MemoryIndex, order, tuning
from nearmesh_agent.vectors.model import Metric, Write

from tests.vector_rows import row, table

DIMENSION = 4


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists for a few rows, which are used then, and tidying for a few dead ones."""
    monkeypatch.setattr(tuning, "LEAST_ROWS", 40)
    monkeypatch.setattr(tuning, "_LEAST_ROWS_PER_LIST", 8)
    monkeypatch.setattr(tuning, "_LEAST_DEAD", 8)
    monkeypatch.setattr(tuning, "_ALONE", 0)
    monkeypatch.setattr(tuning, "_LEAST_TRIED", 2)
    monkeypatch.setattr(order, "_MOST_NEWER", 8)
    monkeypatch.setattr(order, "_PIECE", 16)


def clustered(count: int, dimension: int, seed: int = 1) -> np.ndarray:
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, dimension))
    return (centres[chance.integers(0, 40, count)] + chance.normal(size=(count, dimension)) * 0.5).astype(np.float32)


def filled(folder: Path, vectors: np.ndarray, metric: Metric = Metric.COSINE) -> MemoryIndex:
    index = MemoryIndex.new(table(vectors.shape[1], metric), folder)
    rows = [row(f"r{number}", {"year": number % 10}, vector=vector) for number, vector in enumerate(vectors)]
    index.apply(Write(table="notes", rows=rows), 1)
    return index
