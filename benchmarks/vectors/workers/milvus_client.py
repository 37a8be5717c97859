"""What Milvus Lite and a Milvus server have in common: pymilvus."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

NAME = "kept"


class MilvusStore:
    """A collection that is searched while it is written to, and whose index is waited for."""

    batch = 500
    index_type: str
    index_params: dict[str, Any]

    def __init__(self, uri: str, dimension: int) -> None:
        self._uri, self._dimension = uri, dimension

    def create(self) -> None:
        self._client = MilvusClient(self._uri)
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("share", DataType.INT64)
        schema.add_field("text", DataType.VARCHAR, max_length=4096)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._dimension)
        index = MilvusClient.prepare_index_params()
        index.add_index("vector", index_type=self.index_type, metric_type="COSINE", params=self.index_params)
        self._client.create_collection(NAME, schema=schema, index_params=index, consistency_level="Bounded")
        self._client.load_collection(NAME)

    def open(self) -> None:
        self._client = MilvusClient(self._uri)
        self._client.load_collection(NAME)

    def insert(self, rows: Sequence[int], vectors: np.ndarray, texts: Sequence[str], shares: Sequence[int]) -> None:
        found = zip(rows, shares, texts, vectors, strict=True)
        data = [{"id": row, "share": share, "text": text, "vector": vector} for row, share, text, vector in found]
        self._client.insert(NAME, data)

    def finish(self) -> None:
        self._client.flush(NAME)
        while (said := self._client.describe_index(NAME, "vector")).get("state", "Finished") != "Finished" or int(
            said.get("pending_index_rows", 0)
        ):
            time.sleep(0.05)
        self._take_up()

    def _take_up(self) -> None:
        """Has the searching side use what was built."""
        self._client.refresh_load(NAME)

    def search(self, vector: np.ndarray, share: int | None, effort: int) -> Sequence[tuple[int, str]]:
        (found,) = self._client.search(
            NAME,
            data=[vector],
            limit=10,
            filter="" if share is None else f"share == {share}",
            output_fields=["text"],
            search_params={"metric_type": "COSINE", "params": self._effort(effort)},
            anns_field="vector",
        )
        return [(hit["id"], hit["entity"]["text"]) for hit in found]

    def _effort(self, effort: int) -> dict[str, int]:
        raise NotImplementedError

    def close(self) -> None:
        self._client.close()
