"""`Reembed` as the node's agent carries it out: a generation is filled in the background, behind everybody else's work,
until it takes over. Who asked may leave; a node that restarts goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nearmesh.backoff import Backoff
from nearmesh.errors import DeadlineExceeded, MeshError, NotFound, NotReady, Overloaded, Superseded, Unreachable
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.namespaces import ANY
from nearmesh_agent.vectors.text.generations import text_hash

log = logging.getLogger(__name__)

# Rows that are fetched, embedded and written together.
ROWS = 64
# So many are the last, for which other writes wait: a small encoder makes them in a second on one core. No longer than
# the latter, whatever it takes.
LAST_ROWS, HOLD_MS = 16, 3_000
# A generation that cannot be filled now is tried again, less and less often.
RETRY_S = (0.5, 30.0)
# One that failed by itself, such as by a row without text, is begun again by nobody before this.
AGAIN_S = 60.0
_PASSING = (NotReady, Overloaded, Unreachable, DeadlineExceeded)

# Asks the process's VectorFillService: method, message, what the caller reaches.
Ask = Callable[[str, bytes, str], Awaitable[bytes]]


class Embedders(Protocol):
    """Models of this node; see `embedders.NodeEmbedders`."""

    async def pinned(self, model: str) -> tuple[str, int]: ...

    async def embed(
        self, model: str, digest: str, texts: Sequence[str], *, behind: bool = False
    ) -> NDArray[np.float32]: ...


class Filler:
    """Fills one generation."""

    def __init__(self, begun: pb.Filling, ask: Ask, embedders: Embedders) -> None:
        self.state = begun
        # Why it does not go on; None: it does, or is done.
        self.error: MeshError | None = None
        self._ask = ask
        self._embedders = embedders
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Until it serves, or is filled no more. Raises MeshError that trying again does not mend."""
        backoff = Backoff(*RETRY_S)
        after = ""
        while not self.state.serves:
            try:
                after = await self._some(after)
                backoff.reset()
            except _PASSING as error:
                log.info("a generation waits collection=%s: %s", self.state.collection.name, error.message)
                await asyncio.sleep(backoff.next_s())
        log.info("generation=%d serves collection=%s", self.state.generation, self.state.collection.name)

    async def _some(self, after: str) -> str:
        """Some of what it lacks; where to go on."""
        state = self.state
        request = pb.LackingRequest(collection=state.collection, generation=state.generation, most=ROWS, after=after)
        # The last ones are never had while others write: these wait a moment.
        last = state.rows_total - state.rows_done <= LAST_ROWS
        if last:
            request.most, request.hold_ms, request.after = LAST_ROWS, HOLD_MS, ""
        lacking = pb.LackingResponse.FromString(await self._ask("Lacking", request.SerializeToString(), ANY))
        texts = [lack.text for lack in lacking.lacks]
        fill = pb.FillRequest(collection=state.collection, generation=state.generation)
        if texts:
            vectors = await self._embedders.embed(state.embedder, state.embedder_digest, texts, behind=not last)
            for lack, vector in zip(lacking.lacks, vectors, strict=True):
                data = np.asarray(vector, "<f4").tobytes()
                fill.made.add(id=lack.id, text_hash=text_hash(lack.text), vector=data)
        # Without any it asks whether that was all.
        self._move(pb.Filling.FromString(await self._ask("Fill", fill.SerializeToString(), ANY)))
        return lacking.after

    def _move(self, state: pb.Filling) -> None:
        self.state = state
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def end(self, error: MeshError | None) -> None:
        """`run` is over."""
        self.error = error
        self._move(self.state)

    async def follow(self) -> AsyncIterator[pb.ReembedProgress]:
        """How far it is, as it goes on. Raises what it ended with."""
        while True:
            moved = self._moved
            yield progress(self.state)
            if self.error:
                raise self.error
            if self.state.serves:
                return
            await moved.wait()


class Reembedding:
    """Of one node; belongs to one event loop."""

    def __init__(self, ask: Ask, embedders: Embedders, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._embedders = embedders
        self._clock = clock
        # By namespace and name: those at work or done, and when one that failed may be tried again.
        self._not_before_s: dict[tuple[str, str], float] = {}
        self._fillers: dict[tuple[str, str], tuple[Filler, asyncio.Task[None]]] = {}

    async def reembed(self, request: pb.ReembedRequest, embedder: str, reach: str) -> AsyncIterator[pb.ReembedProgress]:
        """`embedder` is the collection's own. Goes on when the caller leaves. Raises MeshError."""
        if request.cancel:
            yield progress(await self._filling("Cancel", request.collection, reach))
            return
        model = request.embedder or embedder
        digest, dimension = await self._embedders.pinned(model)
        begin = pb.BeginFillingRequest(
            collection=request.collection, embedder=model, embedder_digest=digest, dimension=dimension
        )
        state = await self._filling("Begin", begin, reach)
        if state.serves:
            yield progress(state)
            return
        async for each in self._filler(state).follow():
            yield each

    def resume(self, collections: Iterable[pb.Collection]) -> None:
        """Goes on with what was begun before a restart, or could not be finished."""
        now_s = self._clock()
        for each in collections:
            key = (each.collection.namespace, each.collection.name)
            if each.next_embedder and now_s >= self._not_before_s.get(key, 0.0):
                self._filler(
                    pb.Filling(
                        collection=each.collection,
                        generation=each.next_generation_number,
                        embedder=each.next_embedder,
                        embedder_digest=each.next_embedder_digest,
                        rows_done=round(each.next_generation * each.rows),
                        rows_total=each.rows,
                    )
                )

    async def close(self) -> None:
        """Safe to repeat."""
        tasks = [task for _, task in self._fillers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _filler(self, state: pb.Filling) -> Filler:
        """The one that is at work, or a new one."""
        key = (state.collection.namespace, state.collection.name)
        filler, task = self._fillers.get(key, (None, None))
        if filler and task and not task.done() and filler.state.generation == state.generation:
            return filler
        if task:
            task.cancel()
        filler = Filler(state, self._ask, self._embedders)
        work = asyncio.create_task(self._fill(filler), name=f"reembed {state.collection.name}")
        self._fillers[key] = filler, work
        return filler

    async def _fill(self, filler: Filler) -> None:
        error: MeshError | None = None
        try:
            await filler.run()
        except (NotFound, Superseded) as caught:
            # Dropped, cancelled, or another one is filled.
            error = caught
        except MeshError as caught:
            error = caught
            ref = filler.state.collection
            self._not_before_s[ref.namespace, ref.name] = self._clock() + AGAIN_S
            log.warning("generation is not filled collection=%s: %s", ref.name, caught.message)
        except asyncio.CancelledError:
            # Another one took its place, or the node ends: who follows it does not wait for what never comes.
            error = Superseded(f"generation {filler.state.generation} is not being filled any more")
            raise
        finally:
            filler.end(error)

    async def _filling(self, method: str, request: Any, reach: str) -> pb.Filling:
        return pb.Filling.FromString(await self._ask(method, request.SerializeToString(), reach))


def progress(state: pb.Filling) -> pb.ReembedProgress:
    return pb.ReembedProgress(
        rows_done=state.rows_done,
        rows_total=state.rows_total,
        generation=state.generation,
        switched=state.serves,
    )
