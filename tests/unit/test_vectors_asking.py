"""Retrieve on the agent: the text's vector, what another generation changes, a reranker, deadlines; and for steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.vectors.text.asking import Asking
from nearmesh_agent.vectors.text.step import NodeRetriever

from nearmesh.errors import DeadlineExceeded, InvalidInput, NotFound, NotReady, PackageError, Superseded
from nearmesh.package import Retrieve
from nearmesh.v1 import vector_pb2 as pb
from tests.text_models import vector
from tests.unit.test_vectors_generations import DIMENSIONS, OLD, Texts, texts
from tests.vector_site import ref


class Node:
    """The process, and models; what is known of a collection may be old."""

    def __init__(self, docs: Texts) -> None:
        self.docs = docs
        self.known: pb.Collection | None = None
        self.embedded: list[tuple[str, list[str]]] = []
        self.took_s, self.now = 0.0, 100.0
        self.asking = Asking(self, self, lambda: self.now)

    async def here(self, name: str, message: bytes, reach: str, timeout_s: float | None) -> bytes:
        return await self.docs.site.ask(name, pb.RetrieveRequest.FromString(message), reach)

    async def collection(self, of: pb.CollectionRef, reach: str, timeout_s: float | None) -> pb.Collection:
        if self.known is None:
            self.known = await self.docs.site.ask("GetCollection", of, reach)
        return self.known

    def forget(self, of: pb.CollectionRef) -> None:
        self.known = None

    async def embed(self, model, digest, texts, *, query=False, timeout_s=None):
        assert query
        self.embedded.append((digest, list(texts)))
        self.now += self.took_s
        return np.stack([vector(text, DIMENSIONS[digest]) for text in texts])

    async def score(self, model, query, texts, *, timeout_s=None):
        if model != "by-length":
            raise NotFound(f"reranker {model!r} is no model of this node")
        self.now += self.took_s
        return [float(len(text)) for text in texts]

    async def ask(self, text: str = "the storm", timeout_s: float | None = None, **more) -> pb.RetrieveResponse:
        request = pb.RetrieveRequest(collection=ref(), text=text, **more)
        return await self.asking.retrieve(request, "default", timeout_s)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with texts(tmp_path) as docs:
        await docs.create()
        await docs.put(a="the storm", b="a barn in the storm of the year", c="the trains", d="snow")
        yield Node(docs)


def ids(found: pb.RetrieveResponse) -> list[str]:
    return [hit.row.id for hit in found.hits]


async def test_a_text_finds_passages_with_every_part_of_their_scores(node: Node) -> None:
    node.took_s = 0.002
    found = await node.ask()
    first = found.hits[0]
    assert (first.row.id, first.row.text, first.dense_rank, first.node) == ("a", "the storm", 1, "node-a")
    assert first.dense_score == pytest.approx(1, abs=1e-5) and first.lexical_rank and first.lexical_score > 0
    assert node.embedded == [(OLD, ["the storm"])]
    assert found.timings.embed_ms == pytest.approx(2) and found.timings.total_ms >= found.timings.embed_ms
    assert found.metric == pb.METRIC_COSINE and found.identity


async def test_words_alone_need_no_embedder(node: Node) -> None:
    found = await node.ask("snow", mode=pb.RetrieveRequest.MODE_LEXICAL)
    assert ids(found) == ["d"] and node.embedded == []


async def test_a_vector_of_the_callers_own_is_taken(node: Node) -> None:
    data = vector("snow", DIMENSIONS[OLD]).astype("<f4").tobytes()
    found = await node.ask("the storm", vector=data, mode=pb.RetrieveRequest.MODE_DENSE)
    assert ids(found)[0] == "d" and node.embedded == []


async def test_p4_a_generation_that_takes_over_meanwhile_is_asked_by_its_own_embedder(node: Node) -> None:
    await node.ask()
    await node.docs.begin()
    await node.docs.whole()
    found = await node.ask()
    assert ids(found)[0] == "a" and [digest for digest, _ in node.embedded] == [OLD, OLD, "sha256:new"]


async def test_an_answer_that_stays_superseded_is_told(node: Node) -> None:
    data = vector("snow", DIMENSIONS[OLD]).astype("<f4").tobytes()
    with pytest.raises(Superseded):
        await node.ask(vector=data, embedder_digest="sha256:other")


async def test_a_reranker_has_the_last_word(node: Node) -> None:
    node.took_s = 0.001
    found = await node.ask(k=1, reranker="by-length")
    assert ids(found) == ["b"] and found.hits[0].rerank_score == 31
    assert found.timings.rerank_ms == pytest.approx(1)
    await node.docs.put(e="")
    found = await node.ask(k=3, reranker="by-length", rerank_k=5)
    assert ids(found) == ["b", "c", "a"], "without a text there is nothing to score"
    with pytest.raises(NotFound, match="reranker 'nobody' is no model"):
        await node.ask(reranker="nobody")
    with pytest.raises(InvalidInput, match="rerank_k is 1, expected k"):
        await node.ask(k=3, reranker="by-length", rerank_k=1)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"text": " "}, "the text is empty; expected a question"),
        ({"text": "x" * 16_385}, "the text has 16385 bytes; a question has at most 16384"),
        ({"k": 1001}, "k is 1001; one answer holds at most 1000"),
        ({"mode": 9}, "mode 9 is none of hybrid, dense and lexical"),
        ({"dense_weight": 2.0}, "dense_weight is 2.0, expected 0"),
        ({"filter": "nonsense"}, "'nonsense' is no filter"),
        ({"vector": b"\0" * 8}, "the text's vector has 2 numbers"),
    ],
)
async def test_what_cannot_be_asked_is_refused(node: Node, more: dict, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        await node.ask(**more)


async def test_no_time_is_left_for_the_search(node: Node) -> None:
    node.took_s = 0.5
    with pytest.raises(DeadlineExceeded, match="the time for the call is over"):
        await node.ask(timeout_s=0.2)


# Steps of pipelines.

ASKED = Retrieve(collection="docs", k=2, sample=("a",))


def in_thread(retriever: NodeRetriever, *texts: str, asked: Retrieve = ASKED) -> asyncio.Future:
    return asyncio.ensure_future(asyncio.to_thread(retriever, asked, texts))


async def test_a_step_finds_passages_from_its_thread(node: Node) -> None:
    retriever = NodeRetriever(enabled=True)
    with pytest.raises(NotReady, match="still starting"):
        retriever(ASKED, ["x"])

    async def answer(request, *, timeout_s):
        assert request.collection.namespace == "default" and timeout_s == 2.0
        assert threading.current_thread() is threading.main_thread()
        return await node.asking.retrieve(request, "*", timeout_s)

    retriever.open(answer)
    found = await in_thread(retriever, "the storm", "snow")
    assert [one[0].id for one in found] == ["a", "d"] and found[0][0].text == "the storm"
    assert found[0][0].score > 0


async def test_a_step_that_is_late_is_told(node: Node) -> None:
    retriever = NodeRetriever(enabled=True)
    left = asyncio.Event()

    async def never(request, *, timeout_s):
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    retriever.open(never)
    with pytest.raises(DeadlineExceeded, match="nothing was found within 1 ms"):
        await in_thread(retriever, "x", asked=Retrieve(collection="docs", timeout_ms=1.0, sample=("a",)))
    async with asyncio.timeout(5):
        await left.wait()


def test_a_node_without_vectors_says_so_before_a_package_is_loaded() -> None:
    with pytest.raises(PackageError, match="collection 'docs', and this node keeps no vectors: set `enabled`"):
        NodeRetriever(enabled=False).check(ASKED)
    NodeRetriever(enabled=True).check(ASKED)
