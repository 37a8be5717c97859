"""The agent's part in another generation: it brings the vectors, in the background, until it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_agent.vectors.text import reembed as module
from nearmesh_agent.vectors.text.filling import FillServicer
from nearmesh_agent.vectors.text.reembed import Reembedding

from nearmesh.errors import InvalidInput, NotReady, Superseded
from nearmesh.v1 import vector_pb2 as pb
from tests.text_models import vector
from tests.unit.test_vectors_generations import DIMENSIONS, NEW, Texts, texts
from tests.vector_site import Context, ref


class Embedders:
    """Makes vectors of what is NEW; `away` is raised, once or always."""

    def __init__(self) -> None:
        self.away: Exception | None = None
        self.asked: list[int] = []
        self.behind: list[bool] = []
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def pinned(self, model: str) -> tuple[str, int]:
        return NEW, DIMENSIONS[NEW]

    async def embed(self, model: str, digest: str, texts: list[str], *, behind: bool = False):
        assert (model, digest) == ("encoder", NEW)
        self.asked.append(len(texts))
        self.behind.append(behind)
        self.begun.set()
        await self.gate.wait()
        if self.away:
            away, self.away = self.away, None
            raise away
        return [vector(text, DIMENSIONS[NEW]) for text in texts]


class Node:
    def __init__(self, docs: Texts) -> None:
        self.docs, self.embedders, self.now = docs, Embedders(), 0.0
        self._fill = FillServicer(docs.site.keeper)
        self.reembedding = Reembedding(self.ask, self.embedders, lambda: self.now)

    async def ask(self, method: str, message: bytes, reach: str) -> bytes:
        kind = {
            "Begin": pb.BeginFillingRequest,
            "Lacking": pb.LackingRequest,
            "Fill": pb.FillRequest,
            "Cancel": pb.CollectionRef,
        }[method]
        answer = await getattr(self._fill, method)(kind.FromString(message), Context(reach))
        return answer.SerializeToString()

    async def all(self, **more) -> list[pb.ReembedProgress]:
        request = pb.ReembedRequest(collection=ref(), **more)
        return [each async for each in self.reembedding.reembed(request, "encoder", "default")]

    async def begun(self) -> None:
        """As before a restart of the agent."""
        await self.docs.begin()
        self.reembedding.resume([await self.docs.collection()])

    async def done(self) -> pb.Collection:
        async with asyncio.timeout(10):
            await asyncio.gather(*(task for _, task in self.reembedding._fillers.values()))
        return await self.docs.collection()


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(module, "LAST_ROWS", 2)
    monkeypatch.setattr(module, "RETRY_S", (0.0, 0.0))
    async with texts(tmp_path) as docs:
        await docs.create()
        await docs.put(a="the storm", b="a barn", c="the trains", d="snow", e="rain")
        made = Node(docs)
        yield made
        await made.reembedding.close()


async def test_who_asks_sees_it_go_on_until_it_serves(node: Node) -> None:
    told = await node.all()
    assert [(each.rows_done, each.switched) for each in told] == [(0, False), (2, False), (4, False), (5, True)]
    assert {(each.rows_total, each.generation) for each in told} == {(5, 2)}
    assert (await node.docs.found("the storm", NEW))[0] == "a"
    assert node.embedders.behind == [True, True, False], "writes wait for the last"
    again = await node.all()
    assert [(each.switched, each.generation) for each in again] == [(True, 2)], "it serves already"


async def test_it_goes_on_when_who_asked_has_left(node: Node) -> None:
    async for _ in node.reembedding.reembed(pb.ReembedRequest(collection=ref()), "encoder", "default"):
        break
    assert (await node.done()).embedder_digest == NEW


async def test_p2_a_node_that_restarts_goes_on_where_it_was(node: Node) -> None:
    await node.docs.begin()
    await node.docs.bring(await node.docs.lacking(most=3))
    node.reembedding.resume([await node.docs.collection()])
    node.reembedding.resume([await node.docs.collection()])
    await node.done()
    assert node.embedders.asked == [2], "what was filled before is not made again, nor twice"


async def test_what_passes_is_waited_for(node: Node) -> None:
    node.embedders.away = NotReady("the embedder is being loaded")
    assert (await node.all())[-1].switched


async def test_what_does_not_pass_ends_it_and_is_told(node: Node) -> None:
    await node.docs.put(f=" ")
    with pytest.raises(InvalidInput, match="row 'f' has no text"):
        await node.all()
    node.reembedding.resume([await node.docs.collection()])
    assert all(task.done() for _, task in node.reembedding._fillers.values()), "not at once"
    await node.docs.delete("f")
    node.now += module.AGAIN_S
    node.reembedding.resume([await node.docs.collection()])
    assert (await node.done()).embedder_digest == NEW


async def test_who_follows_one_is_told_when_another_takes_its_place(node: Node) -> None:
    node.embedders.gate.clear()
    follower = node.reembedding.reembed(pb.ReembedRequest(collection=ref()), "encoder", "default")
    await anext(follower)
    async with asyncio.timeout(5):
        await node.embedders.begun.wait()
        # Before the first of them has noticed.
        await node.docs.fill.Cancel(ref(), Context())
        await node.begun()
        node.embedders.gate.set()
        with pytest.raises(Superseded, match="generation 2 is not being filled any more"):
            async for _ in follower:
                pass
    assert (await node.done()).generation == 3


async def test_cancelled_it_ends_and_the_old_one_serves_on(node: Node) -> None:
    node.embedders.away = NotReady("not yet")
    follower = node.reembedding.reembed(pb.ReembedRequest(collection=ref()), "encoder", "default")
    await anext(follower)
    (told,) = await node.all(cancel=True)
    assert (told.generation, told.switched) == (1, True)
    with pytest.raises(Superseded, match="not being filled any more"):
        async for _ in follower:
            pass
    assert (await node.docs.collection()).next_embedder == ""
