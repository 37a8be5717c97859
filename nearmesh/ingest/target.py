"""Where an import goes to: one collection, and how a node's VectorService has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc

from nearmesh.rpc import from_rpc_error
from nearmesh.v1 import vector_pb2 as pb

# For a batch of texts that a node with a slow processor turns into vectors, while it has other things to do.
CALL_LIMIT_S = 120.0
PAGE = 1000


class Target(Protocol):
    """Every call raises MeshError."""

    async def describe(self) -> pb.Collection:
        """What the collection is."""
        ...

    def sources(self, prefix: str) -> AsyncIterator[pb.Source]:
        """What has been imported, of names that begin so."""
        ...

    async def upsert(self, rows: Sequence[pb.Row]) -> pb.UpsertResponse:
        """Written when it returns; the same again changes nothing."""
        ...

    async def delete(self, filter: str) -> int:
        """How many rows it took."""
        ...


class NodeTarget:
    """Over a stub of the service."""

    def __init__(self, stub: Any, collection: pb.CollectionRef, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._stub = stub
        self._collection = collection
        self._metadata = metadata

    async def describe(self) -> pb.Collection:
        """See Target."""
        found: pb.Collection = await self._call(self._stub.GetCollection, self._collection)
        return found

    async def sources(self, prefix: str) -> AsyncIterator[pb.Source]:
        """See Target."""
        request = pb.ListSourcesRequest(collection=self._collection, prefix=prefix, page_size=PAGE)
        while True:
            page: pb.ListSourcesResponse = await self._call(self._stub.ListSources, request)
            for source in page.sources:
                yield source
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def upsert(self, rows: Sequence[pb.Row]) -> pb.UpsertResponse:
        """See Target."""
        done: pb.UpsertResponse = await self._call(
            self._stub.Upsert, pb.UpsertRequest(collection=self._collection, rows=rows)
        )
        return done

    async def delete(self, filter: str) -> int:
        """See Target."""
        done: pb.DeleteResponse = await self._call(
            self._stub.Delete, pb.DeleteRequest(collection=self._collection, filter=filter)
        )
        return done.deleted

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=CALL_LIMIT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
