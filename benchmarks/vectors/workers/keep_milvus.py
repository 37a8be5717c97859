"""Milvus standalone, with the graph index that its documents advise for speed."""

from __future__ import annotations

from typing import Any

from milvus_client import MilvusStore


class Store(MilvusStore):
    index_type, index_params = "HNSW", {"M": 16, "efConstruction": 200}
    efforts = (10, 20, 40, 80, 160, 320, 640)

    def __init__(self, task: Any) -> None:
        super().__init__(task.address, task.array("vectors").shape[1])

    def _effort(self, effort: int) -> dict[str, int]:
        return {"ef": effort}
