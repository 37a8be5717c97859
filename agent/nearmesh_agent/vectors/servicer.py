"""VectorService as the process that keeps the vectors answers it. Who may call has been decided before: by the agent.

Searches run in threads, and what they find is put into bytes there; so the event loop only hands things on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from nearmesh.errors import InvalidInput, NotReady, Overloaded
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1 import vector_pb2_grpc
from nearmesh_agent.vectors import answers, declared, limits, wire
from nearmesh_agent.vectors.across.child import Across
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.changes import Delete, Upsert
from nearmesh_agent.vectors.collection import Collection
from nearmesh_agent.vectors.collections import CollectionSpec, new_spec
from nearmesh_agent.vectors.keeper import Keeper
from nearmesh_agent.vectors.model import Row, Table, Where
from nearmesh_agent.vectors.moving import Mover
from nearmesh_agent.vectors.namespaces import ANY, chosen, told
from nearmesh_agent.vectors.room import Room
from nearmesh_agent.vectors.text.answer import answered, check_embedder
from nearmesh_agent.vectors.upkeep import Upkeep

T = TypeVar("T")

# Searches that may wait for a thread; one more is refused at once.
MOST_WAITING = 512
# Of requests whose rows wait for the disk; one more is refused. In memory, rows take about twice as much.
MOST_WAITING_BYTES = 256 * 1024 * 1024
_FILTERS = 256
# Longer ones are read each time: so many kept would take hundreds of megabytes.
_KEPT_CHARACTERS = 4_096


class VectorServicer(vector_pb2_grpc.VectorServiceServicer):
    """Over one keeper."""

    def __init__(self, keeper: Keeper, upkeep: Upkeep, here: Here, *, threads: int) -> None:
        """`threads` search at a time."""
        self._keeper = keeper
        self._upkeep = upkeep
        self._here = here
        self._threads = ThreadPoolExecutor(threads, "vector-search")
        self._waiting = 0
        self._room = Room(MOST_WAITING_BYTES)
        self._mover = Mover(keeper)
        # By text and fields, those read lately: an app asks with the same filters over and over.
        self._filters: dict[tuple[str, str], Where | None] = {}
        # Once the collections are open.
        self.across: Across | None = None

    # Collections.

    async def CreateCollection(self, request: pb.CreateCollectionRequest, context: Any) -> pb.Collection:
        namespace = chosen(told(context.invocation_metadata()), request.collection.namespace)
        collection = await self._keeper.create(self._stamped(new_spec(namespace=namespace, **declared.whole(request))))
        await self._settled(collection)
        return await asyncio.to_thread(self._message, collection)

    async def GetCollection(self, request: pb.CollectionRef, context: Any) -> pb.Collection:
        return await asyncio.to_thread(self._message, await self._of(request, context))

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Any) -> pb.ListCollectionsResponse:
        reach = told(context.invocation_metadata())
        everything = request.namespace == ANY and reach == ANY
        namespace = "" if everything else chosen(reach, request.namespace)
        found = [one for one in self._keeper if everything or one.spec.namespace == namespace]
        found.sort(key=lambda one: (one.spec.namespace, one.spec.name))
        names = {one.spec.namespace for one in found} | ({namespace} if namespace else set())

        def told_of() -> pb.ListCollectionsResponse:
            used = dict.fromkeys(names, (0, 0))
            messages = [self._message(one) for one in found]
            for one in messages:
                rows, size = used[one.collection.namespace]
                used[one.collection.namespace] = rows + one.rows, size + one.bytes
            uses = [self._use(name, *used[name]) for name in sorted(used)]
            return pb.ListCollectionsResponse(collections=messages, namespaces=uses)

        return await asyncio.to_thread(told_of)

    async def UpdateCollection(self, request: pb.UpdateCollectionRequest, context: Any) -> pb.Collection:
        collection = await self._of(request.collection, context)
        terms = declared.changed(request)
        await self._keeper.update(collection, lambda spec: self._stamped(replace(spec, **terms), spec))
        await self._settled(collection)
        return await asyncio.to_thread(self._message, collection)

    async def DropCollection(self, request: pb.CollectionRef, context: Any) -> pb.DropCollectionResponse:
        collection = await self._of(request, context)
        if self.across:
            await asyncio.to_thread(self.across.drops, collection.spec)
        return pb.DropCollectionResponse(rows=await self._keeper.drop(collection))

    async def ListReceipts(self, request: pb.ListReceiptsRequest, context: Any) -> pb.ListReceiptsResponse:
        collection = await self._of(request.collection, context)
        if self.across is None:
            raise NotReady("who has which deletes is not known yet; ask again in a moment", retry_after_ms=500)
        return await asyncio.to_thread(self.across.receipts, collection.spec, request)

    # Rows.

    async def Upsert(self, request: pb.UpsertRequest, context: Any) -> pb.UpsertResponse:
        limits.check_count("rows", len(request.rows), limits.MAX_ROWS)
        collection = await self._of(request.collection, context)
        with self._room.taken(request.ByteSize()):
            return await self._upserted(request, collection)

    async def _upserted(self, request: pb.UpsertRequest, collection: Collection) -> pb.UpsertResponse:
        check_embedder(request.embedder_digest, collection.spec)
        table = collection.serving.table
        rows = await self._searching(lambda: _rows(request.rows, table))
        namespace = collection.spec.namespace

        def check(more: int, size: int) -> None:
            # Again: another generation may serve by the time that it is this write's turn.
            check_embedder(request.embedder_digest, collection.spec)
            self._keeper.check_quota(namespace, more, size)

        change = Upsert(ids=list(rows), rows=list(rows.values()), table=table.name, check=check)
        if rows:
            await collection.put(change)
        return pb.UpsertResponse(written=len(change.written), unchanged=change.unchanged)

    async def Delete(self, request: pb.DeleteRequest, context: Any) -> pb.DeleteResponse:
        limits.check_count("ids", len(request.ids), limits.MAX_IDS)
        limits.check_ids(request.ids)
        if not request.ids and not request.filter.strip():
            raise InvalidInput("neither ids nor a filter; to delete everything, drop the collection")
        collection = await self._of(request.collection, context)
        ids = list(dict.fromkeys(request.ids)) or None
        where = await self._searching(lambda: self._filter(request.filter, collection))
        change = Delete(ids=ids, where=where)
        if request.dry_run:
            await self._searching(lambda: change.plan(collection))
            return pb.DeleteResponse(deleted=len(change.gone))
        await collection.put(change)
        # The ledger may be in the middle of a sync.
        last = await asyncio.to_thread(self._keeper.ledger.last, collection.identity)
        return pb.DeleteResponse(deleted=len(change.gone), change=last)

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> pb.FetchResponse:
        limits.check_count("ids", len(request.ids), limits.MAX_IDS)
        limits.check_ids(request.ids)
        collection = await self._of(request.collection, context)
        vectors = request.with_vectors

        def fetch() -> pb.FetchResponse:
            index = collection.serving.index
            if not request.in_parts:
                return pb.FetchResponse(rows=answers.whole(index, request.ids, vectors=vectors))
            rows, looked_up = answers.part(index, request.ids, vectors=vectors)
            return pb.FetchResponse(rows=rows, looked_up=looked_up)

        return await self._searching(fetch)

    async def Query(self, request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        size = limits.check_page(request.page_size)
        collection = await self._of(request.collection, context)
        vectors = request.with_vectors

        def query() -> pb.QueryResponse:
            index, where = collection.serving.index, self._filter(request.filter, collection)
            ids = index.select(where, after=request.page_token, limit=size + 1)
            rows, looked_up = answers.part(index, ids[:size], vectors=vectors)
            return pb.QueryResponse(rows=rows, next_page_token=ids[looked_up - 1] if looked_up < len(ids) else "")

        return await self._searching(query)

    async def Count(self, request: pb.CountRequest, context: Any) -> pb.CountResponse:
        collection = await self._of(request.collection, context)
        index = collection.serving.index
        count = await self._searching(lambda: index.count(self._filter(request.filter, collection)))
        return pb.CountResponse(rows=count)

    async def ListSources(self, request: pb.ListSourcesRequest, context: Any) -> pb.ListSourcesResponse:
        size = limits.check_page(request.page_size)
        collection = await self._of(request.collection, context)
        found, more = await collection.sources(request.prefix, request.page_token, size)
        messages = [
            pb.Source(
                name=one.name,
                hash=one.hash,
                parts_here=one.here,
                parts=one.parts,
                stale_parts=one.stale,
                written_at_s=one.written_at_s,
            )
            for one in found
        ]
        return pb.ListSourcesResponse(sources=messages, next_page_token=more)

    # Searches.

    async def Search(self, request: pb.SearchRequest, context: Any) -> bytes:
        began_s = time.perf_counter()
        collection = await self._of(request.collection, context)
        return await self._searching(lambda: self._search(request, collection, began_s))

    def _search(self, request: pb.SearchRequest, collection: Collection, began_s: float) -> bytes:
        table, k = collection.serving, limits.check_k(request.k)
        vector = limits.check_vector(request.vector, table.table)
        where = self._filter(request.filter, collection)
        found, way = table.index.search(vector, k, where, exact=request.exact)
        scores = {one.id: one.score for one in found}
        rows = answers.whole(table.index, [one.id for one in found], vectors=request.with_vectors)
        hits = wire.hits(rows, scores, node=self._here.node, site=self._here.site)
        took_ms = 1000 * (time.perf_counter() - began_s)
        if way == "index":
            self._upkeep.sample(collection, vector, k, where)
        return pb.SearchResponse(
            hits=hits,
            took_ms=took_ms,
            way=way,
            identity=collection.identity,
            metric=wire.metric_number(table.table.metric),
        ).SerializeToString()

    async def Retrieve(self, request: pb.RetrieveRequest, context: Any) -> bytes:
        collection = await self._of(request.collection, context)

        def found() -> bytes:
            where, here = self._filter(request.filter, collection), self._here
            answer = answered(request, collection, where, node=here.node, site=here.site)
            if answer.ByteSize() > limits.MAX_ANSWER_BYTES:
                raise answers.too_large(len(answer.hits))
            return answer.SerializeToString()

        return await self._searching(found)

    # The store.

    async def Migrate(self, request: pb.MigrateRequest, context: Any) -> AsyncIterator[pb.MigrateProgress]:
        async for progress in self._mover.move(request.uri, request.token_variable):
            yield progress

    # Inside.

    def _stamped(self, spec: CollectionSpec, before: CollectionSpec | None = None) -> CollectionSpec:
        return self.across.stamped(spec, before) if self.across else spec

    async def _settled(self, collection: Collection) -> None:
        if self.across:
            await asyncio.to_thread(self.across.settled, collection.spec)

    async def _of(self, ref: pb.CollectionRef, context: Any) -> Collection:
        namespace = chosen(told(context.invocation_metadata()), ref.namespace)
        if not ref.name:
            raise InvalidInput("no collection is named")
        return await self._keeper.get(namespace, ref.name)

    async def _searching(self, work: Callable[[], T]) -> T:
        if self._waiting >= MOST_WAITING:
            raise Overloaded(f"{self._waiting} searches wait on this node; another one may answer", retry_after_ms=100)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def _filter(self, text: str, collection: Collection) -> Where | None:
        """None: all rows. Raises InvalidInput. Blocks where the filter is long."""
        if not text.strip():
            return None
        read = partial(self._keeper.parts.read_filter, text, collection.serving.table.fields)
        if len(text) > _KEPT_CHARACTERS:
            return read()
        key = (text, collection.identity)
        # In one step: other threads may forget all of them between two.
        found = self._filters.get(key)
        if found is None:
            found = read()
            if len(self._filters) >= _FILTERS:
                self._filters.clear()
            self._filters[key] = found
        return found

    def _message(self, collection: Collection) -> pb.Collection:
        """Blocks for a moment: how far other sites are is looked up."""
        spec, index = collection.spec, collection.serving.index
        filling = collection.filling
        return pb.Collection(
            collection=pb.CollectionRef(namespace=spec.namespace, name=spec.name),
            dimension=spec.serving.dimension,
            metric=wire.metric_number(spec.table.metric),
            embedder=spec.serving.embedder,
            embedder_digest=spec.serving.digest,
            fields=wire.field_messages(spec.kinds),
            description=spec.description,
            replicate_to=spec.replicate_to,
            regions=spec.regions,
            index_type=spec.index_type,
            language=spec.language,
            generation=spec.serving.number,
            next_generation=filling.index.size / max(1, index.size) if filling else 0.0,
            next_embedder=spec.filling.embedder if spec.filling else "",
            next_embedder_digest=spec.filling.digest if spec.filling else "",
            next_generation_number=spec.filling.number if spec.filling else 0,
            rows=index.size,
            bytes=index.bytes,
            fresh_rows=index.fresh,
            recall=collection.recall.share,
            created_at_s=spec.created_at_s,
            written_at_s=collection.written_at_s,
            served_by=self._keeper.config.index,
            site=spec.site,
            replicas=self.across.replicas(spec) if self.across else (),
        )

    def _use(self, namespace: str, rows: int, size: int) -> pb.NamespaceUse:
        quota = self._keeper.config.quota(namespace)
        return pb.NamespaceUse(
            namespace=namespace,
            rows=rows,
            max_rows=quota.max_vectors,
            bytes=size,
            max_bytes=quota.max_bytes,
            max_requests_per_second=quota.requests_per_second,
        )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _rows(messages: Sequence[pb.Row], table: Table) -> Mapping[str, Row]:
    """By id; of rows of the same id the last one counts."""
    return {message.id: wire.row(message, table) for message in messages}
