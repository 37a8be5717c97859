"""A real node with vectors, killed again and again while its vectors are written, re-embedded or moved.

Its clients know what was acknowledged. After each kill all of that has to be there, once and in its newest state; what
was deleted is not found by any way of asking. Last of all the node loses what it makes from Milvus and its journal, and
the same has to be there again.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nearmesh.client.vectors import Collection, Passage, VectorClient, vector_of
from nearmesh.errors import InvalidInput, MeshError
from nearmesh.v1 import vector_pb2 as pb
from tests.integration.mesh_processes import Node, control_plane, until
from tests.integration.text_place import TextPlace
from tests.signals import send

PROCESS, AGENT = "the vectors' process", "the agent"
WHO = (PROCESS, AGENT)
INGEST, UPSERTS, SWITCH, MOVE = "an ingest", "upserts and deletes", "another embedder", "a move to another store"
DOING = (INGEST, UPSERTS, SWITCH, MOVE)
# What a client begins and the node goes on with, beside the writes.
BEGUN = (SWITCH, MOVE)

DIMENSION = 16
# Writers of a collection, where there is one, and of each where there are several.
WRITERS, WRITERS_OF_EACH, BATCH = 4, 2, 20
# Of each writer, of rows that are written over and over.
IDS = 60
WITHIN_S = 60.0
# From when writes are acknowledged, or a switch or a move has begun, at any moment of these.
KILL_AFTER_S = {INGEST: (0.0, 0.8), UPSERTS: (0.0, 0.8), SWITCH: (0.0, 0.6), MOVE: (0.0, 1.5)}
# Rows that a switch or a move has to carry, so that there is a middle of it.
CARRIED = 1_500
# By version of the embedder, how long its vectors are.
SIZES = {"1": 16, "2": 24}


@dataclass
class Book:
    """What was acknowledged: the newest text of each id, None for a delete; and what may have been done, since nobody
    said."""

    known: dict[str, str | None] = field(default_factory=dict)
    maybe: dict[str, set[str | None]] = field(default_factory=dict)
    acknowledged: int = 0

    async def write(self, texts: Mapping[str, str | None], call: Callable[[], Awaitable[Any]]) -> None:
        for name, text in texts.items():
            self.maybe.setdefault(name, set()).add(text)
        await call()
        for name, text in texts.items():
            self.known[name] = text
            del self.maybe[name]
        self.acknowledged += len(texts)

    def settle(self, here: Mapping[str, str]) -> None:
        """Compares, and knows from then on what became of the calls that were cut off. Raises AssertionError."""
        for name in {*self.known, *self.maybe, *here}:
            may_be = {self.known.get(name), *self.maybe.get(name, ())}
            assert here.get(name) in may_be, f"{name} is {here.get(name)!r}, expected one of {may_be}"
        for name in self.maybe:
            self.known[name] = here.get(name)
        self.maybe = {}


class Shelf:
    """A collection of the node: what is done with it, and what its clients know of it."""

    def __init__(self, place: TextPlace, doing: str, writers: int, chance: random.Random) -> None:
        self.place = place
        self.doing = doing
        self.writers = writers
        self.chance = chance
        self.book = Book()
        self.number = 0
        self.name = doing.replace(" ", "-")
        # Texts are embedded on the node, or rows bring vectors, which depend on id and text alike.
        self.embeds = doing == SWITCH
        self.version = "1"
        self.moves = 0
        self.over = False

    def client(self) -> VectorClient:
        return self.place.client("operator")

    # Writing.

    async def make(self) -> None:
        async with self.client() as client:

            async def made() -> bool:
                try:
                    if self.embeds:
                        await client.create(self.name, embedder="embedder")
                    else:
                        await client.create(self.name, dimension=DIMENSION)
                except MeshError as error:
                    if error.reason not in ("NOT_READY", "UNREACHABLE"):
                        raise
                    return False
                return True

            await until(made, within_s=WITHIN_S, what="the vectors are open")
            if self.doing in BEGUN:
                docs = client.collection(self.name)
                for first in range(0, CARRIED, 500):
                    await self._put(docs, [f"carried-{n}" for n in range(first, first + 500)])

    async def write(self, writer: int) -> None:
        """Until it is over, with a call that is cut off."""
        async with self.client() as client:
            docs = client.collection(self.name)
            while not self.over:
                try:
                    await self._write(docs, writer)
                except MeshError:
                    # Its model may be on its way back from the kill before.
                    await asyncio.sleep(0.05)

    async def _write(self, docs: Collection, writer: int) -> None:
        if self.doing == INGEST:
            self.number += BATCH
            await self._put(docs, [f"{writer}-new-{self.number + n}" for n in range(BATCH)])
        elif self.chance.random() < 0.35:
            await self._delete(docs, self._some(writer, 5))
        else:
            await self._put(docs, self._some(writer, BATCH))

    def _some(self, writer: int, count: int) -> list[str]:
        """A writer has ids of its own, so that the order of its writes is known."""
        return [f"{writer}-{n}" for n in self.chance.sample(range(IDS), count)]

    async def _put(self, docs: Collection, names: list[str]) -> None:
        self.number += 1
        texts = {name: f"text {self.number} of {name}" for name in names}
        rows = [Passage(id=n, text=t, vector=None if self.embeds else _vector(t)) for n, t in texts.items()]
        await self.book.write(texts, lambda: docs.upsert(rows))

    async def _delete(self, docs: Collection, names: list[str]) -> None:
        await self.book.write(dict.fromkeys(names), lambda: docs.delete(names))

    # Looking.

    async def check(self) -> None:
        """While nobody writes."""
        try:
            await self._check()
        except AssertionError as error:
            raise AssertionError(f"{self.doing}: {error}") from error

    async def _check(self) -> None:
        async with self.client() as client:
            docs = client.collection(self.name)
            before = (await docs.describe()).dimension
            here: dict[str, str] = {}
            vectors = []
            async for row in docs.rows(with_vectors=True):
                assert row.id not in here, f"{row.id} is there twice"
                here[row.id] = row.text
                vectors.append(vector_of(row))
            # Another generation may have taken over between two pages.
            dimensions = {before, (await docs.describe()).dimension}
            assert {vector.size for vector in vectors} <= dimensions, dimensions
            if here and not self.embeds:
                np.testing.assert_allclose(np.stack(vectors), np.stack([*map(_vector, here.values())]), rtol=1e-6)
            assert await docs.count() == len(here)
            self.book.settle(here)
            gone = [name for name, text in self.book.known.items() if text is None]
            assert not await docs.fetch(gone[:1000])
            await self._not_found(docs, set(gone))

    async def _not_found(self, docs: Collection, gone: set[str]) -> None:
        """Neither by vectors, through the index and without, nor by words."""
        for name in sorted(gone)[:5]:
            for exact in (False, True):
                hits = (await self._near(docs, name, exact=exact)).hits
                assert gone.isdisjoint(hit.row.id for hit in hits)
            hits = (await docs.retrieve(f"text of {name}", k=200, mode="lexical")).hits
            assert gone.isdisjoint(hit.row.id for hit in hits)

    async def _near(self, docs: Collection, name: str, *, exact: bool) -> pb.SearchResponse:
        if not self.embeds:
            return await docs.search(_vector(name), k=200, exact=exact)
        while True:
            dimension = (await docs.describe()).dimension
            try:
                return await docs.search(np.ones(dimension, np.float32), k=200, exact=exact)
            except InvalidInput:
                # Unless another generation has taken over just now, whose vectors are of another length.
                if (await docs.describe()).dimension == dimension:
                    raise

    # What may be under way.

    async def begin(self) -> Callable[[], Awaitable[None]]:
        """A switch or a move that has begun; what to call so that it comes to its end, however often it was killed."""
        if self.doing == SWITCH:
            self.version = "2" if self.version == "1" else "1"
            await self.place.use(self.version)
            return await self._begun(self._switched)
        if self.doing == MOVE:
            self.moves += 1
            return await self._begun(self._moved)
        return self._nothing

    async def _begun(self, follow: Callable[[asyncio.Event], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        begun = asyncio.Event()
        following = asyncio.create_task(follow(begun))
        async with asyncio.timeout(WITHIN_S):
            await begun.wait()

        async def ended() -> None:
            async with asyncio.timeout(WITHIN_S):
                await following

        return ended

    async def _switched(self, begun: asyncio.Event) -> None:
        size = SIZES[self.version]
        async with self.client() as client:
            docs = client.collection(self.name)
            while True:
                with suppress(MeshError):
                    if (await docs.describe()).dimension == size:
                        return
                    async for _ in docs.reembed():
                        begun.set()
                await asyncio.sleep(0.05)

    async def _moved(self, begun: asyncio.Event) -> None:
        """The same again goes on where it was."""
        target = str(self.place.node.data / f"elsewhere-{self.moves}.db")
        async with self.client() as client:
            while True:
                with suppress(MeshError):
                    async for progress in client.migrate(target):
                        begun.set()
                        if progress.phase == "done":
                            return
                await asyncio.sleep(0.05)

    async def _nothing(self) -> None: ...


class Site:
    """The node, and its collections."""

    def __init__(self, place: TextPlace, doings: Sequence[str], seed: int) -> None:
        self.place = place
        self.chance = random.Random(seed)
        writers = WRITERS if len(doings) == 1 else WRITERS_OF_EACH
        self.shelves = [Shelf(place, doing, writers, self.chance) for doing in doings]
        self.back_s: list[float] = []

    @property
    def rounds(self) -> list[Shelf]:
        """By what a client begins beside the writes; a round of writes alone, where nobody begins anything."""
        return [shelf for shelf in self.shelves if shelf.doing in BEGUN] or self.shelves[:1]

    async def make(self) -> None:
        for shelf in self.shelves:
            await shelf.make()

    async def kill(self, who: str) -> None:
        """And starts what nobody else would."""
        node = self.place.node
        if who == PROCESS:
            send(_vectors_pid(node), signal.SIGKILL)
            return
        await node.kill()
        await node.start()

    async def answers(self) -> None:
        began_s = time.monotonic()
        async with self.place.client("operator") as client:

            async def counts() -> bool:
                try:
                    for shelf in self.shelves:
                        await client.collection(shelf.name).count()
                except MeshError as error:
                    if error.reason not in ("NOT_READY", "UNREACHABLE"):
                        raise
                    return False
                return True

            await until(counts, within_s=WITHIN_S, what=f"an answer:\n{self.place.node.child.last_words(30)}")
        self.back_s.append(time.monotonic() - began_s)

    async def check(self) -> None:
        for shelf in self.shelves:
            await shelf.check()

    async def round(self, beside: Shelf, who: str) -> None:
        """Writers, a kill somewhere among their writes and what is begun beside them, and a look at what it left."""
        before = [shelf.book.acknowledged for shelf in self.shelves]
        self._over(False)
        writers = [
            asyncio.create_task(shelf.write(number)) for shelf in self.shelves for number in range(shelf.writers)
        ]

        async def at_work() -> bool:
            return all(shelf.book.acknowledged > old for shelf, old in zip(self.shelves, before, strict=True))

        await until(at_work, within_s=WITHIN_S, what="a write of each collection is acknowledged")
        ended = await beside.begin()
        # The moment is the point of the test.
        await asyncio.sleep(self.chance.uniform(*KILL_AFTER_S[beside.doing]))
        self._over(True)
        await self.kill(who)
        await asyncio.gather(*writers)
        await self.answers()
        await self.check()
        await ended()
        await self.check()

    def _over(self, over: bool) -> None:
        for shelf in self.shelves:
            shelf.over = over

    async def made_anew(self) -> None:
        """From Milvus and the journal alone."""
        await self.place.node.kill()
        shutil.rmtree(self.place.node.data / "vectors" / "tables")
        await self.place.node.start()
        await self.answers()
        await self.check()


def _vectors_pid(node: Node) -> int:
    for child in psutil.Process(node.child.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "nearmesh_agent.vectors.process" in child.cmdline():
                return child.pid
    raise AssertionError(f"no process of vectors below {node.child.pid}")


def _vector(text: str) -> np.ndarray:
    return np.random.default_rng(np.frombuffer(text.encode(), np.uint8)).normal(size=DIMENSION).astype(np.float32)


@asynccontextmanager
async def site(folder: Path, doings: Sequence[str], seed: int) -> AsyncIterator[Site]:
    """With the collections made, and rows in them where they are to be carried."""
    async with control_plane(folder / "plane") as plane:
        node = Node(plane, folder / "node", "node-a", vectors={"enabled": True})
        try:
            await node.start()
            place = TextPlace(plane, node, folder)
            if SWITCH in doings:
                for version in ("2", "1"):
                    await place.embedder(version, SIZES[version])
            made = Site(place, doings, seed)
            await made.make()
            yield made
        finally:
            await node.end()


async def killed(folder: Path, doings: Sequence[str], kills: int, seed: int = 1) -> dict[str, Any]:
    """Each of the two so many times, in whatever is begun beside the writes of all collections; the figures.

    Raises AssertionError for what was lost.
    """
    started_s = time.monotonic()
    async with site(folder, doings, seed) as found:
        for beside in found.rounds:
            for _ in range(kills):
                for who in WHO:
                    await found.round(beside, who)
        await found.made_anew()
    books = [shelf.book for shelf in found.shelves]
    return {
        "kills": kills * len(WHO) * len(found.rounds),
        "acknowledged": sum(book.acknowledged for book in books),
        "fewest_of_a_collection": min(book.acknowledged for book in books),
        "rows": sum(text is not None for book in books for text in book.known.values()),
        "slowest_back_s": round(max(found.back_s), 2),
        "seconds": round(time.monotonic() - started_s, 1),
    }
