"""`Retrieve` as the node's agent answers it: the text becomes a vector here, passages come from the process that keeps
them, and a reranker puts them in its own order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nearmesh.errors import DeadlineExceeded, InvalidInput, Superseded
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors import limits
from nearmesh_agent.vectors.text import answer, rerank
from nearmesh_agent.vectors.text.retrieve import Mode

Clock = Callable[[], float]


class Process(Protocol):
    """The way to the process that keeps the vectors."""

    async def here(self, name: str, message: bytes, reach: str, timeout_s: float | None) -> bytes:
        """Raises MeshError."""
        ...

    async def collection(self, ref: pb.CollectionRef, reach: str, timeout_s: float | None) -> pb.Collection:
        """As it was a moment ago. Raises NotFound."""
        ...

    def forget(self, ref: pb.CollectionRef) -> None:
        """What is known of the collection is old."""
        ...


class Embedders(Protocol):
    """Models of this node; see `embedders.NodeEmbedders`."""

    async def embed(
        self, model: str, digest: str, texts: Sequence[str], *, query: bool = False, timeout_s: float | None = None
    ) -> NDArray[np.float32]: ...

    async def score(
        self, model: str, query: str, texts: Sequence[str], *, timeout_s: float | None = None
    ) -> list[float]: ...


class Asking:
    """Of one node; belongs to one event loop."""

    def __init__(self, process: Process, embedders: Embedders, clock: Clock = time.monotonic) -> None:
        self._process = process
        self._embedders = embedders
        self._clock = clock

    async def retrieve(
        self, request: pb.RetrieveRequest, reach: str, timeout_s: float | None = None
    ) -> pb.RetrieveResponse:
        """This node's own passages. Raises MeshError."""
        answer.check_query(request.text)
        watch = Watch(timeout_s, self._clock)
        k = limits.check_k(request.k)
        asked = pb.RetrieveRequest()
        asked.CopyFrom(request)
        if request.reranker:
            asked.k = rerank.how_many(k, request.rerank_k)
        try:
            found, embed_ms = await self._found(asked, reach, watch)
        except Superseded:
            # Between the embedding and the search another generation has taken over.
            self._process.forget(request.collection)
            found, embed_ms = await self._found(asked, reach, watch)
        found.timings.embed_ms = embed_ms
        if request.reranker and found.hits:
            began_s = self._clock()
            await self._rerank(found, request, k, watch)
            found.timings.rerank_ms = 1000 * (self._clock() - began_s)
        found.timings.total_ms = watch.gone_ms()
        return found

    async def _found(self, request: pb.RetrieveRequest, reach: str, watch: Watch) -> tuple[pb.RetrieveResponse, float]:
        began_s = self._clock()
        asked = pb.RetrieveRequest()
        asked.CopyFrom(request)
        if not asked.vector:
            await self._embed(asked, reach, watch)
        embed_ms = 1000 * (self._clock() - began_s)
        data = await self._process.here("Retrieve", asked.SerializeToString(), reach, watch.left_s())
        return pb.RetrieveResponse.FromString(data), embed_ms

    async def _embed(self, request: pb.RetrieveRequest, reach: str, watch: Watch) -> None:
        """Puts the text's vector in, where the way that is asked for needs one."""
        collection = await self._process.collection(request.collection, reach, watch.left_s())
        mode = answer.mode_of(request, has_vector=bool(collection.embedder))
        if mode is Mode.LEXICAL:
            return
        if not collection.embedder:
            raise InvalidInput(
                f"mode {mode} needs the text's vector, and collection {request.collection.name!r} has no embedder: "
                "send `vector`, or ask with mode lexical"
            )
        vectors = await self._embedders.embed(
            collection.embedder,
            collection.embedder_digest,
            [request.text],
            query=True,
            timeout_s=watch.left_s(),
        )
        request.vector = np.asarray(vectors[0], "<f4").tobytes()
        request.embedder_digest = collection.embedder_digest

    async def _rerank(self, found: pb.RetrieveResponse, request: pb.RetrieveRequest, k: int, watch: Watch) -> None:
        # A row without a text has nothing that could be read.
        for place in reversed(range(len(found.hits))):
            if not found.hits[place].row.text.strip():
                del found.hits[place]
        texts = [hit.row.text for hit in found.hits]
        scores = await self._embedders.score(request.reranker, request.text, texts, timeout_s=watch.left_s())
        for hit, score in zip(found.hits, scores, strict=True):
            hit.rerank_score = score
        found.hits.sort(key=lambda hit: -hit.rerank_score)
        del found.hits[k:]


class Watch:
    """What is left of the caller's time."""

    def __init__(self, timeout_s: float | None, clock: Clock = time.monotonic) -> None:
        self._clock, self._timeout_s, self._began_s = clock, timeout_s, clock()

    def gone_ms(self) -> float:
        return 1000 * (self._clock() - self._began_s)

    def left_s(self) -> float | None:
        """Raises DeadlineExceeded when nothing is."""
        if self._timeout_s is None:
            return None
        left_s = self._timeout_s - (self._clock() - self._began_s)
        if left_s <= 0:
            raise DeadlineExceeded("the time for the call is over")
        return left_s
