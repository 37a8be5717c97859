"""A collection goes from embedder to embedder while it is written, and its process is killed again and again.

    python -m tests.faults.vector_switches [--kills N] [--seed N]

Whatever was acknowledged has to be there once, in its newest state, with the vector that the serving generation's
embedder makes of its text; what was deleted has to stay away.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.part import Vectors
from nearmesh_agent.vectors.text.writing import Writing

from nearmesh.errors import MeshError
from nearmesh.v1 import vector_pb2 as pb
from tests.signals import send

REF = pb.CollectionRef(namespace="default", name="docs")
REACH = "default"
IDS = [f"row-{number}" for number in range(200)]
WITHIN_S = 60.0
# A caller asks again after so long; the process is away for a second or so.
AGAIN_S = 0.05
# Within about that a generation is full, and the switch is made.
FILLS_S = 0.5
# Pages of a check.
PAGE = 500


class HashEmbedders:
    """The newest version is "sha256:N"; each has vectors of its own length and directions."""

    def __init__(self) -> None:
        self.version = 1

    @staticmethod
    def vector(digest: str, text: str) -> np.ndarray:
        number = int(digest.rpartition(":")[2])
        seed = np.frombuffer(f"{digest} {text}".encode(), np.uint8)
        return np.random.default_rng(seed).normal(size=8 + number % 5).astype(np.float32)

    async def pinned(self, model: str) -> tuple[str, int]:
        return f"sha256:{self.version}", 8 + self.version % 5

    async def embed(
        self,
        model: str,
        digest: str,
        texts: Sequence[str],
        *,
        query: bool = False,
        behind: bool = False,
        **more: object,
    ) -> np.ndarray:
        # As long as a small model would take, so that kills fall in between.
        await asyncio.sleep(0.002 * len(texts) if behind else 0)
        return np.stack([self.vector(digest, text) for text in texts])

    def stale(self, model: str, digest: str) -> bool:
        return digest != f"sha256:{self.version}"

    async def keep(self, digests: object) -> None: ...

    async def score(self, *asked: object, **more: object) -> list[float]:
        raise NotImplementedError


@dataclass
class Book:
    """What was acknowledged by id, None for a delete; and what may have been done as well, since nobody said."""

    known: dict[str, str | None] = field(default_factory=dict)
    maybe: dict[str, set[str | None]] = field(default_factory=dict)
    acknowledged: int = 0

    def wrong(self, here: dict[str, str]) -> list[str]:
        return [
            f"{name} is {here.get(name)!r}, expected {self.known.get(name)!r} or one of {self.maybe.get(name, set())}"
            for name in IDS
            if here.get(name) != self.known.get(name) and here.get(name) not in self.maybe.get(name, set())
        ]


@dataclass
class Outcome:
    """Of one run."""

    kills: int = 0
    switches: int = 0
    acknowledged: int = 0
    kills_while_filling: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest_back_s: float = 0.0


class Run:
    """One site, whose process is killed."""

    def __init__(self, vectors: Vectors, embedders: HashEmbedders, seed: int) -> None:
        self.vectors, self.embedders = vectors, embedders
        self.writing = Writing(vectors.front, embedders, vectors.front._fill)
        self.draw = random.Random(seed)
        self.book, self.outcome = Book(), Outcome()
        self.over = False

    async def ask(self, method: str, request: Any) -> bytes:
        """Of this node's process."""
        data = request.SerializeToString()
        return await self._patiently(lambda: self.vectors.front.here(method, data, REACH, WITHIN_S))

    async def _patiently(self, call: Callable[[], Awaitable[bytes]]) -> bytes:
        """Until it is answered: the process is away at times."""
        while True:
            try:
                return await call()
            except MeshError as error:
                if error.reason not in ("NOT_READY", "UNREACHABLE"):
                    raise
                await asyncio.sleep(AGAIN_S)

    async def collection(self) -> pb.Collection:
        return pb.Collection.FromString(await self.ask("GetCollection", REF))

    async def write(self, worker: int, workers: int) -> None:
        """For as long as it goes on; each worker has ids of its own, so that the order of its writes is known."""
        mine, number = IDS[worker::workers], 0
        while not self.over:
            number += 1
            name, gone = self.draw.choice(mine), self.draw.random() < 0.3
            text = None if gone else f"text {number} of {name}"
            # What is under way at a kill may be done or not.
            self.book.maybe.setdefault(name, set()).add(text)
            await self._write(name, text)
            self.book.known[name], self.book.maybe[name] = text, set()
            self.book.acknowledged += 1

    async def _write(self, name: str, text: str | None) -> None:
        if text is None:
            await self.ask("Delete", pb.DeleteRequest(collection=REF, ids=[name]))
            return

        def again() -> Awaitable[bytes]:
            # Vectors are put into the message itself, by the version that serves then.
            request = pb.UpsertRequest(collection=REF, rows=[pb.Row(id=name, text=text)])
            return self.writing.upsert(request, REACH, None)

        await self._patiently(again)

    async def check(self) -> None:
        """While nobody writes."""
        digest, here = (await self.collection()).embedder_digest, {}
        request = pb.QueryRequest(collection=REF, page_size=PAGE, with_vectors=True)
        found = pb.QueryResponse.FromString(await self.ask("Query", request))
        for row in found.rows:
            if row.id in here:
                self.outcome.wrong.append(f"{row.id} is there twice")
            here[row.id] = row.text
            expected = HashEmbedders.vector(digest, row.text)
            vector = np.frombuffer(row.vector, "<f4")
            if vector.shape != expected.shape or not np.allclose(vector, expected, atol=1e-4):
                self.outcome.wrong.append(f"{row.id} has no vector of {digest}")
        count = pb.CountResponse.FromString(await self.ask("Count", pb.CountRequest(collection=REF))).rows
        if count != len(here):
            self.outcome.wrong.append(f"{count} rows are counted, {len(here)} are there")
        self.outcome.wrong += self.book.wrong(here)

    async def kill(self) -> None:
        """And waits until somebody answers again."""
        before = await self.collection()
        send(self.vectors.pid, signal.SIGKILL)
        began_s = time.monotonic()
        self.outcome.kills += 1
        self.outcome.kills_while_filling += bool(before.next_embedder)
        await self.collection()
        self.outcome.slowest_back_s = max(self.outcome.slowest_back_s, time.monotonic() - began_s)

    async def round(self) -> None:
        """Another embedder, a kill somewhere on the way to it, and a look at everything."""
        self.over = False
        writers = [asyncio.create_task(self.write(number, 4)) for number in range(4)]
        self.embedders.version += 1
        following = asyncio.create_task(self._reembed())
        if self.draw.random() < 0.8:
            await self._begun()
        await asyncio.sleep(self.draw.uniform(0.0, FILLS_S))
        await self.kill()
        async with asyncio.timeout(WITHIN_S):
            await following
        assert (await self.collection()).embedder_digest == f"sha256:{self.embedders.version}"
        self.outcome.switches += 1
        self.over = True
        await asyncio.gather(*writers)
        await self.check()

    async def _begun(self) -> None:
        """The next generation is being filled."""
        async with asyncio.timeout(WITHIN_S):
            while (told := await self.collection()).embedder_digest != f"sha256:{self.embedders.version}":
                if told.next_embedder:
                    return
                await asyncio.sleep(0)

    async def _reembed(self) -> None:
        """Asked again where the process was killed before it knew."""
        assert self.vectors.front.reembedding
        while True:
            try:
                request = pb.ReembedRequest(collection=REF)
                async for progress in self.vectors.front.reembedding.reembed(request, "encoder", REACH):
                    if progress.switched:
                        return
            except MeshError:
                await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def running(folder: Path, seed: int) -> AsyncIterator[Run]:
    embedders = HashEmbedders()
    at = Here(node="node-a", site="site-a", region="europe-west1")
    vectors = Vectors(VectorsConfig(enabled=True), folder, at, max_message_bytes=2**26, embedder=embedders)
    task = asyncio.create_task(vectors.run())
    try:
        found = Run(vectors, embedders, seed)
        request = pb.CreateCollectionRequest(
            collection=REF, embedder="encoder", embedder_digest="sha256:1", dimension=9
        )
        await found.ask("CreateCollection", request)
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await vectors.front.close()


async def switched(folder: Path, kills: int, seed: int = 0) -> Outcome:
    """The run, to its end."""
    async with running(folder, seed) as run:
        while run.outcome.kills < kills and not run.outcome.wrong:
            await run.round()
        run.outcome.acknowledged = run.book.acknowledged
        return run.outcome


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="nearmesh-switches-") as folder:
        outcome = asyncio.run(switched(Path(folder), chosen.kills, chosen.seed))
    print(outcome)
    raise SystemExit(bool(outcome.wrong))


if __name__ == "__main__":
    main()
