"""Nearmesh: a node's VectorService, as a client of any language has it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from nearmesh_agent.vectors.index.tuning import LEAST_ROWS

from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1 import vector_pb2_grpc

REF = pb.CollectionRef(name="kept")
# How soon a client looks again for a server that is away; gRPC's own is a second, and more.
RECONNECT = [(f"grpc.{kind}_reconnect_backoff_ms", 20) for kind in ("initial", "max")]
# What its name does not say: how long a handshake has.
RECONNECT += [("grpc.min_reconnect_backoff_ms", 5_000)]


class Store:
    """It chooses its own effort, from the recall that it measures."""

    batch = 500
    efforts = (0,)

    def __init__(self, task: Any) -> None:
        self._task, self._dimension = task, task.array("vectors").shape[1]
        self._channel: Any = None

    def create(self) -> None:
        self.open()
        field = pb.Field(name="share", type=pb.FIELD_TYPE_INT)
        made = pb.CreateCollectionRequest(
            collection=REF, dimension=self._dimension, metric=pb.METRIC_COSINE, fields=[field]
        )
        self._stub.CreateCollection(made, timeout=30)

    def open(self) -> None:
        self.close()
        tls = grpc.ssl_channel_credentials(Path(self._task.ca).read_bytes())
        token = grpc.access_token_call_credentials(Path(self._task.token).read_text("utf-8"))
        options = [*RECONNECT, ("grpc.ssl_target_name_override", self._task.server_name)]
        self._channel = grpc.secure_channel(
            self._task.address, grpc.composite_channel_credentials(tls, token), options=options
        )
        self._stub = vector_pb2_grpc.VectorServiceStub(self._channel)

    def insert(self, rows: Sequence[int], vectors: np.ndarray, texts: Sequence[str], shares: Sequence[int]) -> None:
        found = [
            pb.Row(id=str(row), vector=vector.tobytes(), text=text, fields={"share": pb.Value(int=share)})
            for row, vector, text, share in zip(rows, vectors, texts, shares, strict=True)
        ]
        self._stub.Upsert(pb.UpsertRequest(collection=REF, rows=found), timeout=60)

    def finish(self) -> None:
        # Fewer are never put into lists: comparing all of them takes about a millisecond.
        while (found := self._stub.GetCollection(REF, timeout=10)).rows >= LEAST_ROWS and found.fresh_rows:
            time.sleep(0.05)

    def search(self, vector: np.ndarray, share: int | None, effort: int) -> Sequence[tuple[int, str]]:
        where = "" if share is None else f"share == {share}"
        asked = pb.SearchRequest(collection=REF, vector=vector.tobytes(), k=10, filter=where)
        return [(int(hit.row.id), hit.row.text) for hit in self._stub.Search(asked, timeout=30).hits]

    def close(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None
