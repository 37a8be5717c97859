"""Rows without vectors: what makes theirs, also while another generation is filled, and who waits for its last rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.vectors.text.filling import FillServicer
from nearmesh_agent.vectors.text.writing import Writing

from nearmesh.errors import DeadlineExceeded, InvalidInput, NotReady, Superseded
from nearmesh.v1 import vector_pb2 as pb
from tests.text_models import vector
from tests.unit.test_vectors_generations import DIMENSIONS, NEW, OLD, Texts, texts
from tests.vector_site import Context, ref, site


class Node:
    """The process, and models; what is known of a collection may be old."""

    def __init__(self, docs: Texts) -> None:
        self.docs = docs
        self.known: pb.Collection | None = None
        self.embedded: list[tuple[str, int]] = []
        self.away: Exception | None = None
        self.writing = Writing(self, self, self.fill)

    async def here(self, name: str, message: bytes, reach: str, timeout_s: float | None) -> bytes:
        answer = await self.docs.site.ask(name, pb.UpsertRequest.FromString(message), reach)
        return answer.SerializeToString()

    async def collection(self, of: pb.CollectionRef, reach: str, timeout_s: float | None) -> pb.Collection:
        if self.known is None:
            self.known = await self.docs.site.ask("GetCollection", of, reach)
        return self.known

    def forget(self, of: pb.CollectionRef) -> None:
        self.known = None

    async def fill(self, method: str, message: bytes, reach: str) -> bytes:
        servicer = FillServicer(self.docs.site.keeper)
        return (await servicer.Fill(pb.FillRequest.FromString(message), Context(reach))).SerializeToString()

    async def embed(self, model, digest, texts, *, query=False, timeout_s=None):
        assert not query and model == "encoder"
        if digest == NEW and self.away:
            raise self.away
        self.embedded.append((digest, len(texts)))
        return np.stack([vector(text, DIMENSIONS[digest]) for text in texts])

    async def upsert(self, timeout_s: float | None = None, **texts: str) -> pb.UpsertResponse:
        rows = [pb.Row(id=name, text=text) for name, text in texts.items()]
        request = pb.UpsertRequest(collection=ref(), rows=rows)
        return pb.UpsertResponse.FromString(await self.writing.upsert(request, "default", timeout_s))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with texts(tmp_path) as docs:
        await docs.create()
        yield Node(docs)


async def test_texts_get_the_vectors_of_what_serves(node: Node) -> None:
    many = {f"row-{number}": f"text {number}" for number in range(70)}
    assert (await node.upsert(**many)).written == 70
    assert await node.docs.rows() == many and node.embedded == [(OLD, 64), (OLD, 6)]


async def test_rows_that_bring_their_vector_keep_it(node: Node) -> None:
    own = vector("mine", DIMENSIONS[OLD]).astype("<f4").tobytes()
    request = pb.UpsertRequest(
        collection=ref(), rows=[pb.Row(id="own", text="x", vector=own), pb.Row(id="b", text="y")]
    )
    await node.writing.upsert(request, "default", None)
    (row,) = (await node.docs.site.ask("Fetch", pb.FetchRequest(collection=ref(), ids=["own"], with_vectors=True))).rows
    np.testing.assert_allclose(np.frombuffer(row.vector, "<f4"), vector("mine", DIMENSIONS[OLD]), atol=1e-6)


async def test_while_a_generation_is_filled_rows_go_into_both(node: Node) -> None:
    await node.docs.put(old="there before")
    await node.docs.begin()
    await node.upsert(a="written meanwhile")
    assert node.embedded == [(OLD, 1), (NEW, 1)]
    assert [lack.id for lack in (await node.docs.lacking(most=10)).lacks] == ["old"]
    await node.docs.whole()
    await node.upsert(b="by what was known before")
    assert node.embedded[2:] == [(OLD, 1), (NEW, 1)], "refused, read again, and made anew"
    assert (await node.docs.rows()).keys() == {"old", "a", "b"}


async def test_what_the_next_generation_does_not_get_now_it_gets_later(node: Node) -> None:
    await node.docs.begin()
    node.away = NotReady("that version is being loaded")
    assert (await node.upsert(a="text")).written == 1
    assert [lack.id for lack in (await node.docs.lacking()).lacks] == ["a"]


async def test_other_writes_wait_for_the_last_rows(node: Node) -> None:
    await node.docs.put(a="one", b="two")
    await node.docs.begin()
    held = pb.LackingRequest(collection=ref(), generation=2, most=10, hold_ms=5000)
    lacks = await node.docs.fill.Lacking(held, Context())
    waiting = asyncio.create_task(node.upsert(c="three"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done() and len(await node.docs.rows()) == 2
    assert (await node.docs.bring(lacks)).serves
    assert (await waiting).written == 1 and (await node.docs.collection()).generation == 2
    assert await node.docs.rows() == {"a": "one", "b": "two", "c": "three"}


async def test_vectors_that_were_brought_beside_texts_are_not_taken_for_the_next_generations(node: Node) -> None:
    await node.docs.put(a="one")
    await node.docs.begin()
    held = pb.LackingRequest(collection=ref(), generation=2, most=10, hold_ms=5000)
    lacks = await node.docs.fill.Lacking(held, Context())
    own = pb.Row(id="own", text="two", vector=vector("two", DIMENSIONS[OLD]).astype("<f4").tobytes())
    mixed = pb.UpsertRequest(collection=ref(), rows=[own, pb.Row(id="c", text="three")])
    waiting = asyncio.create_task(node.writing.upsert(mixed, "default", None))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (await node.docs.bring(lacks)).serves
    with pytest.raises(Superseded):
        await waiting
    assert await node.docs.rows() == {"a": "one"}


async def test_the_version_that_a_caller_names_is_not_taken_for_another_one(node: Node) -> None:
    own = pb.Row(id="own", text="two", vector=vector("two", DIMENSIONS[OLD]).astype("<f4").tobytes())
    request = pb.UpsertRequest(collection=ref(), rows=[own, pb.Row(id="c", text="three")], embedder_digest=NEW)
    with pytest.raises(Superseded, match="made by sha256:new, and collection 'docs' has those of sha256:old"):
        await node.writing.upsert(request, "default", None)
    await node.upsert(a="what is known is old from here on")
    await node.docs.begin()
    await node.docs.whole()
    own.vector = vector("two", DIMENSIONS[NEW]).astype("<f4").tobytes()
    request = pb.UpsertRequest(collection=ref(), rows=[own, pb.Row(id="c", text="three")], embedder_digest=NEW)
    await node.writing.upsert(request, "default", None)
    assert (await node.docs.rows()).keys() == {"a", "own", "c"}


async def test_nobody_waits_where_more_is_lacking_or_longer_than_said(node: Node) -> None:
    await node.docs.put(a="one", b="two", c="three")
    await node.docs.begin()
    request = pb.LackingRequest(collection=ref(), generation=2, most=2, hold_ms=5000)
    await node.docs.fill.Lacking(request, Context())
    async with asyncio.timeout(2):
        await node.upsert(d="four")
    request.most, request.hold_ms = 100, 1
    await node.docs.fill.Lacking(request, Context())
    async with asyncio.timeout(2):
        await node.upsert(e="five")


@pytest.mark.parametrize(("text", "said"), [("", "'a' has neither a vector nor a text"), (" \n", "'a' has neither")])
async def test_a_row_without_both_is_named(node: Node, text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        await node.upsert(a=text)


async def test_no_embedder_and_no_time(node: Node, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match="the time for the call is over"):
        await node.upsert(0.0, a="text")
    async with site(tmp_path / "other") as other:
        await other.create()
        with pytest.raises(InvalidInput, match="row 'a' has no vector, and collection 'docs' no embedder"):
            await Node(Texts(other)).upsert(a="text")
