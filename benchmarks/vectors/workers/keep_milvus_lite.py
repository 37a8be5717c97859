"""Milvus Lite by itself, with the index of inverted lists that it builds by faiss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from milvus_client import NAME, MilvusStore


class Store(MilvusStore):
    index_type, index_params = "IVF_FLAT", {"nlist": 512}
    efforts = (4, 8, 16, 32, 64, 128, 256, 512)

    def __init__(self, task: Any) -> None:
        super().__init__(str(Path(task.folder) / "milvus.db"), task.array("vectors").shape[1])

    def _effort(self, effort: int) -> dict[str, int]:
        return {"nprobe": effort}

    def _take_up(self) -> None:
        # It builds what it lacks when it loads; `refresh_load` never returns.
        self._client.release_collection(NAME)
        self._client.load_collection(NAME)
