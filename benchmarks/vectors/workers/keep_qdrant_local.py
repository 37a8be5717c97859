"""Qdrant's local mode: vectors in NumPy, every row of which is compared, kept in SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

NAME = "kept"


class Store:
    """Payload indexes have no effect in local mode, as it says itself."""

    batch = 500
    efforts = (0,)

    def __init__(self, task: Any) -> None:
        self._folder, self._dimension = task.folder, task.array("vectors").shape[1]

    def create(self) -> None:
        self.open()
        params = models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)
        self._client.create_collection(NAME, vectors_config=params)

    def open(self) -> None:
        self._client = QdrantClient(path=self._folder, force_disable_check_same_thread=True)

    def insert(self, rows: Sequence[int], vectors: np.ndarray, texts: Sequence[str], shares: Sequence[int]) -> None:
        payloads = [{"text": text, "share": share} for text, share in zip(texts, shares, strict=True)]
        batch = models.Batch(ids=list(rows), vectors=vectors.tolist(), payloads=payloads)
        self._client.upsert(NAME, batch, wait=True)

    def finish(self) -> None:
        """It has no index."""

    def search(self, vector: np.ndarray, share: int | None, effort: int) -> Sequence[tuple[int, str]]:
        where = None
        if share is not None:
            match = models.FieldCondition(key="share", match=models.MatchValue(value=share))
            where = models.Filter(must=[match])
        found = self._client.query_points(NAME, query=vector, limit=10, query_filter=where, with_payload=["text"])
        return [(point.id, point.payload["text"]) for point in found.points]

    def close(self) -> None:
        self._client.close()
