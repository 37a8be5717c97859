"""Passages for pipelines' steps that retrieve: from engine threads to the event loop, and on as any question."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Sequence
from typing import Protocol

from nearmesh.errors import DeadlineExceeded, NotReady, PackageError
from nearmesh.package import Retrieve
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.engines.pipeline.retrieve_step import FoundPassage


class Answer(Protocol):
    """`Front.retrieve`, for a reach."""

    def __call__(self, request: pb.RetrieveRequest, *, timeout_s: float) -> Awaitable[pb.RetrieveResponse]: ...


_MODES = {
    "hybrid": pb.RetrieveRequest.MODE_DEFAULT,
    "dense": pb.RetrieveRequest.MODE_DENSE,
    "lexical": pb.RetrieveRequest.MODE_LEXICAL,
}


class NodeRetriever:
    """`Retriever` of one node. `answer` is given on the event loop, by `open`."""

    def __init__(self, *, enabled: bool) -> None:
        """`enabled`: this node keeps vectors."""
        self._enabled = enabled
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer: Answer | None = None

    def open(self, answer: Answer) -> None:
        """From the event loop that answers."""
        self._loop, self._answer = asyncio.get_running_loop(), answer

    def check(self, asked: Retrieve) -> None:
        """Raises PackageError."""
        if not self._enabled:
            raise PackageError(
                f"it retrieves from the collection {asked.collection!r}, and this node keeps no vectors: set `enabled` "
                "under [vectors] in its node.toml, or deploy it to nodes that do"
            )

    def __call__(self, asked: Retrieve, texts: Sequence[str]) -> Sequence[Sequence[FoundPassage]]:
        """Blocks an engine thread. Raises MeshError."""
        if self._loop is None or self._answer is None:
            raise NotReady("the node is still starting")
        work = asyncio.run_coroutine_threadsafe(self._found(self._answer, asked, texts), self._loop)
        timeout_s = asked.timeout_ms / 1000
        try:
            return work.result(timeout_s)
        except (TimeoutError, concurrent.futures.CancelledError):
            work.cancel()
            raise DeadlineExceeded(f"nothing was found within {asked.timeout_ms:g} ms") from None

    async def _found(self, answer: Answer, asked: Retrieve, texts: Sequence[str]) -> list[list[FoundPassage]]:
        requests = [request_of(asked, text) for text in texts]
        answers = await asyncio.gather(*(answer(request, timeout_s=asked.timeout_ms / 1000) for request in requests))
        return [[passage_of(hit, reranked=bool(asked.reranker)) for hit in each.hits] for each in answers]


def request_of(asked: Retrieve, text: str) -> pb.RetrieveRequest:
    return pb.RetrieveRequest(
        collection=pb.CollectionRef(namespace=asked.namespace, name=asked.collection),
        text=text,
        k=asked.k,
        filter=asked.filter,
        mode=_MODES[asked.mode],
        reranker=asked.reranker,
    )


def passage_of(hit: pb.Hit, *, reranked: bool) -> FoundPassage:
    return FoundPassage(
        text=hit.row.text,
        id=hit.row.id,
        source=hit.row.origin.source,
        score=hit.rerank_score if reranked else hit.score,
    )
