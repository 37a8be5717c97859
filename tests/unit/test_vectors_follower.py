"""A node follows another one: as soon as something is written there, it is here, for as long as both are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearmesh_agent.vectors.across import follower, giving, passing
from nearmesh_agent.vectors.across.follower import Follower
from nearmesh_agent.vectors.across.passing import Passing
from nearmesh_agent.vectors.text.filling import FillServicer
from nearmesh_agent.vectors.text.generations import text_hash

from nearmesh.errors import NotReady, PermissionDenied, StorageFull, Unreachable
from nearmesh.rpc import Identity, answering
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1.node_pb2 import VectorNode
from tests.vector_site import Context
from tests.vector_sites import From, Place, places


class Way:
    """To another node, as a gRPC channel is; it can be cut."""

    def __init__(self, there: Place, here: Place) -> None:
        self._giving, self._from = there.across.giving, From(here.here)
        self.cut = False
        self.offered = 0

    def to(self, node: VectorNode) -> Way:
        if self.cut:
            raise Unreachable("cut")
        return self

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, timeout: float) -> Any:
            assert path.endswith("/Offered")
            self.offered += 1
            return await self._giving.Offered(request, self._from)

        return call

    def stream_stream(self, path: str, *_: Any, **__: Any) -> Callable[[AsyncIterator[Any]], Stream]:
        return lambda requests: Stream(self._giving.Changes(requests, self._from))


class Stream:
    """A call of which answers are read."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers

    def __aiter__(self) -> Any:
        return self._answers

    def cancel(self) -> None: ...


class Process:
    """The way to the process that keeps a place's vectors."""

    def __init__(self, place: Place) -> None:
        self._taking = place.across.taking
        self.away = False
        self.broken = ""

    async def call(self, method: str, message: bytes, *, reach: str, timeout_s: float) -> bytes:
        if self.away:
            raise NotReady("it is being started")
        name = method.rpartition("/")[2]
        if self.broken and name == "Take":
            raise StorageFull(self.broken)
        request = {"Adopt": pb.AdoptRequest, "Take": pb.TakeRequest}[name].FromString(message)
        return (await getattr(self._taking, name)(request, None)).SerializeToString()


class Following:
    """`right` follows `left`."""

    def __init__(self, left: Place, right: Place, embed: Any = None) -> None:
        self.left, self.right = left, right
        self.way, self.process = Way(left, right), Process(right)
        at = left.here
        nodes = [VectorNode(node=place.here.node, site=place.here.site) for place in (left, right)]
        assert at.node == nodes[0].node
        self.follower = Follower(right.here, lambda: nodes, self.way, lambda: self.process, embed)  # type: ignore[arg-type, return-value]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("OFFERS_EVERY_S", 0.02), ("_FIRST_WAIT_S", 0.01), ("_LONGEST_WAIT_S", 0.02)):
        monkeypatch.setattr(follower, name, seconds)


@asynccontextmanager
async def following(folder: Path, embed: Any = None) -> AsyncIterator[Following]:
    async with places(folder, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"], embedder="m", embedder_digest="sha256:1")
        found = Following(left, right, embed)
        task = asyncio.create_task(found.follower.run())
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.wait({task})


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while True:
            if await check():
                return
            await asyncio.sleep(0.005)


def has(place: Place, **texts: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return bool(place.names()) and await place.texts() == texts

    return check


async def test_what_is_written_and_deleted_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(tmp_path) as found:
        await until(has(found.right))
        await found.left.write("1", "2", text="a")
        await until(has(found.right, **{"1": "a", "2": "a"}))
        await found.left.delete("1")
        await until(has(found.right, **{"2": "a"}))

        async def acknowledged() -> bool:
            (replica,) = (await found.left.collection()).replicas
            return replica.connected and not replica.lag_rows

        await until(acknowledged)
        monkeypatch.setattr(giving, "SILENCE_S", 0.0)
        (replica,) = (await found.left.collection()).replicas
        assert not replica.connected


async def test_a_node_that_was_away_and_a_process_that_was_are_tried_again(tmp_path: Path) -> None:
    async with following(tmp_path) as found:
        await until(has(found.right))
        found.process.away = True
        await found.left.write("1", text="a")
        await asyncio.sleep(0.05)
        found.way.cut, found.process.away = True, False
        await found.left.write("2", text="b")
        await asyncio.sleep(0.05)
        found.way.cut = False
        await until(has(found.right, **{"1": "a", "2": "b"}))


async def test_why_a_site_does_not_take_what_it_follows_shows_where_it_is_from(tmp_path: Path) -> None:
    async with following(tmp_path) as found:
        await until(has(found.right))
        found.process.broken = "no room on its disk"
        await found.left.write("1", text="a")

        async def said() -> bool:
            (replica,) = (await found.left.collection()).replicas
            return replica.detail == "node node-1: no room on its disk"

        await until(said)
        found.process.broken = ""
        await until(has(found.right, **{"1": "a"}))

        async def well() -> bool:
            (replica,) = (await found.left.collection()).replicas
            return replica.connected and not replica.detail

        await until(well)


async def test_a_collection_that_is_dropped_there_goes_here(tmp_path: Path) -> None:
    async with following(tmp_path) as found:
        await until(has(found.right))
        await found.left.site.ask("DropCollection", pb.CollectionRef(name="docs"))

        async def gone() -> bool:
            return not found.right.names()

        await until(gone)


async def test_rows_of_another_version_of_the_embedder_are_embedded_anew(tmp_path: Path) -> None:
    asked: list[tuple[str, str, Sequence[str]]] = []

    async def embed(model: str, digest: str, texts: Sequence[str]) -> Any:
        asked.append((model, digest, list(texts)))
        return np.full((len(texts), 2), 0.5, np.float32)

    async with following(tmp_path, embed) as found:
        await until(has(found.right))
        collection = await found.right.site.keeper.get("default", "docs")
        another = replace(collection.spec.serving, digest="sha256:2")
        await found.right.site.keeper.update(collection, lambda spec: replace(spec, serving=another))
        await found.left.write("1", text="words")
        await until(has(found.right, **{"1": "words"}))
        assert asked == [("m", "sha256:2", ["words"])]
        (row,) = collection.serving.index.rows(["1"], vectors=True)
        assert row.vector.tolist() == [0.5, 0.5]
        await found.left.delete("1")
        await until(has(found.right))


async def test_one_site_reembeds_while_both_write(tmp_path: Path) -> None:
    """Each has the rows of both, in its own generation."""

    async def embed(model: str, digest: str, texts: Sequence[str]) -> Any:
        return np.full((len(texts), SIZES[digest]), int(digest[-1]), np.float32)

    async with following(tmp_path, embed) as found:
        await until(has(found.right))
        await found.left.write("1", "2", text="before")
        await until(has(found.right, **{"1": "before", "2": "before"}))
        fill = FillServicer(found.right.site.keeper)
        begin = pb.BeginFillingRequest(embedder="m", embedder_digest="sha256:2", dimension=SIZES["sha256:2"])
        begin.collection.name = "docs"
        await fill.Begin(begin, Context())
        await found.left.write("3", text="meanwhile")
        await found.left.delete("2")
        left = {"1": "before", "3": "meanwhile"}
        await until(has(found.right, **left))
        state = pb.Filling()
        while not state.serves:
            lacks = await fill.Lacking(pb.LackingRequest(collection=begin.collection, generation=2, most=9), Context())
            made = pb.FillRequest(collection=begin.collection, generation=2)
            for lack in lacks.lacks:
                vector = (await embed("m", "sha256:2", [lack.text]))[0].tobytes()
                made.made.add(id=lack.id, text_hash=text_hash(lack.text), vector=vector)
            state = await fill.Fill(made, Context())
        # The stream that was open had the former version's vectors taken as they came; these are refused, and asked for
        # again.
        await found.left.write("4", text="after")
        await until(has(found.right, **left, **{"4": "after"}))
        collection = await found.right.site.keeper.get("default", "docs")
        rows = collection.serving.index.rows(list("134"), vectors=True)
        assert [row.vector.tolist() for row in rows] == [[2, 2, 2]] * 3
        assert await found.left.texts() == await found.right.texts()


SIZES = {"sha256:1": 2, "sha256:2": 3}


class Channel:
    """To the process, noting what is passed on."""

    def __init__(self) -> None:
        self.more: list[Any] = []

    async def call(self, method: str, message: bytes, *, reach: str, timeout_s: float | None, more: Any) -> bytes:
        self.more.append((method, more))
        return b"answer"

    async def exchange(self, method: str, messages: Any, *, reach: str, more: Any) -> AsyncIterator[bytes]:
        self.more.append((method, more))
        for number in range(3):
            yield str(number).encode()


class Call:
    def time_remaining(self) -> float:
        return 1.0


NODES = [
    VectorNode(node="b", site="right", region="eu"),
    VectorNode(node="c", site="far", region="us", barred=True),
]


async def test_a_node_is_passed_on_under_its_certificates_name_and_place() -> None:
    channel = Channel()
    way = Passing(lambda: NODES, lambda: channel)  # type: ignore[arg-type, return-value]
    answering(Identity("b", "node"))
    assert await way._offered(b"", Call()) == b"answer"
    assert [one async for one in way._changes(_none(), Call())] == [b"0", b"1", b"2"]
    told = (("nearmesh-peer", "b right eu"),)
    assert channel.more == [(f"/{passing.SERVICE}/Offered", told), (f"/{passing.SERVICE}/Changes", told)]


@pytest.mark.parametrize(("node", "said"), [("c", "residency"), ("stranger", "not among those that keep vectors")])
async def test_p9_nothing_goes_to_a_node_that_a_rule_bars_or_nobody_knows(node: str, said: str) -> None:
    way = Passing(lambda: NODES, Channel)  # type: ignore[arg-type]
    answering(Identity(node, "node"))
    with pytest.raises(PermissionDenied, match=said):
        await way._offered(b"", Call())
    with pytest.raises(PermissionDenied, match=said):
        await anext(aiter(way._changes(_none(), Call())))


async def test_p9_a_rule_that_is_made_meanwhile_ends_what_is_under_way() -> None:
    nodes = [NODES[0]]
    way = Passing(lambda: nodes, Channel)  # type: ignore[arg-type]
    answering(Identity("b", "node"))
    changes = aiter(way._changes(_none(), Call()))
    await anext(changes)
    nodes[0] = VectorNode(node="b", site="right", region="eu", barred=True)
    with pytest.raises(PermissionDenied, match="residency"):
        await anext(changes)


async def test_p9_the_process_is_told_whose_rows_may_not_go_to_a_node() -> None:
    channel = Channel()
    nodes = [
        VectorNode(node="a", site="left", region="eu"),
        VectorNode(node="b", site="right", region="us", barred_from=["eu", "asia"]),
    ]
    way = Passing(lambda: nodes, lambda: channel)  # type: ignore[arg-type, return-value]
    answering(Identity("b", "node"))
    changes = aiter(way._changes(_none(), Call()))
    await anext(changes)
    assert channel.more == [(f"/{passing.SERVICE}/Changes", (("nearmesh-peer", "b right us left"),))]
    del nodes[1].barred_from[:]
    with pytest.raises(NotReady, match="ruled anew"):
        await anext(changes)


async def _none() -> AsyncIterator[bytes]:
    return
    yield b""
