"""`VectorFillService`: the next generation of a collection, as the process that keeps the vectors begins, fills and
ends it. The agent has the embedders and brings the vectors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from nearmesh.errors import StorageFull
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1 import vector_pb2_grpc
from nearmesh.whole import whole
from nearmesh_agent.vectors import limits
from nearmesh_agent.vectors.collection import Collection
from nearmesh_agent.vectors.collections import CollectionSpec, Generation
from nearmesh_agent.vectors.keeper import Keeper
from nearmesh_agent.vectors.namespaces import chosen, told
from nearmesh_agent.vectors.table import OpenTable
from nearmesh_agent.vectors.text import generations
from nearmesh_agent.vectors.text.generations import Cancel, Fill, Made, Switch

log = logging.getLogger(__name__)

# Rows of one message.
MOST_ROWS = 1_000
# Of other writes, in which the last rows are filled.
MOST_HOLD_MS = 5_000


class FillServicer(vector_pb2_grpc.VectorFillServiceServicer):
    """Over one keeper."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    @whole
    async def Begin(self, request: pb.BeginFillingRequest, context: Any) -> pb.Filling:
        collection = await self._of(request.collection, context)
        wanted = (request.embedder, request.embedder_digest)
        async with self._keeper.changing(collection):
            spec = collection.spec
            there = next((each for each in (spec.filling, spec.serving) if each and by(each) == wanted), None)
            if there is None or (there is spec.serving and spec.filling):
                spec = generations.begun(
                    spec,
                    embedder=request.embedder,
                    digest=request.embedder_digest,
                    dimension=limits.check_dimension(request.dimension),
                )
                await self._begin(collection, spec)
        return progress(collection)

    async def _begin(self, collection: Collection, spec: CollectionSpec) -> None:
        assert spec.filling
        table = await self._keeper.new_table(spec.table_of(spec.filling))
        await asyncio.to_thread(self._keeper.specs.put, spec)
        collection.spec, collection.filling = spec, table
        log.info("generation=%d is being filled collection=%s", spec.filling.number, spec.name)

    async def Lacking(self, request: pb.LackingRequest, context: Any) -> pb.LackingResponse:
        collection = await self._of(request.collection, context)
        filling = generations.still_filling(collection, request.generation)
        most = min(max(1, request.most), MOST_ROWS)
        if request.hold_ms:
            await self._hold(collection, filling, most, min(request.hold_ms, MOST_HOLD_MS) / 1000)
        found, after = await asyncio.to_thread(generations.lacking, collection.serving, filling, most, request.after)
        lacks = [pb.LackingResponse.Lack(id=each.id, text=each.text) for each in found]
        return pb.LackingResponse(lacks=lacks, after=after)

    async def _hold(self, collection: Collection, filling: OpenTable, most: int, seconds: float) -> None:
        """Has writes wait, if what is lacking can be filled in one go."""
        collection.hold(seconds)
        await collection.quiet()
        if await asyncio.to_thread(generations.lacks, collection.serving, filling) > most:
            collection.release()

    async def Fill(self, request: pb.FillRequest, context: Any) -> pb.Filling:
        limits.check_count("vectors", len(request.made), MOST_ROWS)
        collection = await self._of(request.collection, context)
        filling = generations.still_filling(collection, request.generation)
        made = {each.id: made_of(each, filling) for each in request.made}
        if made:
            await collection.put(Fill(ids=list(made), generation=request.generation, made=made))
        left = await asyncio.to_thread(generations.lacks, collection.serving, filling)
        if collection.filling is filling and left <= 0:
            await self._switch(collection, request.generation)
        return progress(collection)

    @whole
    async def _switch(self, collection: Collection, generation: int) -> None:
        """If it is whole still when no write is under way."""
        former = collection.serving
        async with self._keeper.changing(collection):
            # Vectors that were filled are no changes; the ledger is not to find any in the journal.
            await asyncio.to_thread(self._keeper.ledger.save, await self._keeper.desk.settled())
            take_over = self._changed(collection, generations.switched, lambda: collection.filling)
            switch = Switch(generation=generation, take_over=take_over)
            await collection.put(switch)
        if switch.lacks:
            return
        collection.release()
        log.info("generation=%d serves collection=%s", generation, collection.spec.name)
        await self._clear(collection, former)

    @whole
    async def Cancel(self, request: pb.CollectionRef, context: Any) -> pb.Filling:
        collection = await self._of(request, context)
        filling, spec = collection.filling, collection.spec
        if filling is None or spec.filling is None:
            return progress(collection)
        async with self._keeper.changing(collection):
            give_up = self._changed(collection, generations.given_up, lambda: collection.serving)
            await collection.put(Cancel(generation=spec.filling.number, give_up=give_up))
        collection.release()
        log.info("generation=%d is given up collection=%s", spec.filling.number, spec.name)
        await self._clear(collection, filling)
        return progress(collection)

    def _changed(
        self,
        collection: Collection,
        change: Callable[[CollectionSpec], CollectionSpec],
        serving: Callable[[], OpenTable | None],
    ) -> Callable[[], None]:
        """What says so on disk, and then in memory; for a thread that no write runs beside."""

        def done() -> None:
            spec, table = change(collection.spec), serving()
            assert table
            try:
                self._keeper.specs.put(spec)
            except (OSError, StorageFull):
                # Which of the two the disk has nobody knows, and a write to the other one would be lost: what is on
                # the disk is read anew.
                collection.broken = True
                raise
            # Whoever reads the spec behind the table finds one that is not older.
            collection.spec = spec
            collection.serving, collection.filling = table, None

        return done

    async def _clear(self, collection: Collection, former: OpenTable) -> None:
        await asyncio.to_thread(former.close)
        await self._keeper.clear_former(collection)

    async def _of(self, ref: pb.CollectionRef, context: Any) -> Collection:
        return await self._keeper.get(chosen(told(context.invocation_metadata()), ref.namespace), ref.name)


def by(generation: Generation) -> tuple[str, str]:
    return generation.embedder, generation.digest


def made_of(message: pb.FillRequest.Made, filling: OpenTable) -> Made:
    """Raises InvalidInput."""
    vector = limits.check_vector(message.vector, filling.table, f"row {message.id[:64]!r}: its vector")
    return Made(text_hash=message.text_hash, vector=vector)


def progress(collection: Collection) -> pb.Filling:
    """Of the generation that is filled, or else of the one that serves."""
    spec, filling = collection.spec, collection.filling
    of = spec.filling if spec.filling and filling else spec.serving
    rows = collection.serving.index.size
    return pb.Filling(
        collection=pb.CollectionRef(namespace=spec.namespace, name=spec.name),
        generation=of.number,
        embedder=of.embedder,
        embedder_digest=of.digest,
        rows_done=filling.index.size if filling else rows,
        rows_total=rows,
        serves=of is spec.serving,
    )
