"""VectorService on the node's own listeners: who calls, whose vectors, how often; then on to the process that has them.

Requests go on as the bytes that came, but for those in which something has to be looked at or put in here: texts that
need a vector, and questions that travel to other nodes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from nearmesh.errors import InvalidInput, NotReady, Unsupported
from nearmesh.rpc import OPERATORS, PEOPLE, caller, unreadable
from nearmesh.transport.server import Server
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors import namespaces
from nearmesh_agent.vectors.across.links import Links, Nodes
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.across.reach import check_asked_from
from nearmesh_agent.vectors.channel import AWAY, Message, VectorChannel
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.namespaces import Rate
from nearmesh_agent.vectors.text.asking import Asking
from nearmesh_agent.vectors.text.reembed import Reembedding
from nearmesh_agent.vectors.text.writing import Writing

SERVICE = "nearmesh.v1.VectorService"
PEERS = "nearmesh.v1.VectorPeerService"
FILL = "nearmesh.v1.VectorFillService"
_DESCRIPTION = pb.DESCRIPTOR.services_by_name["VectorService"]
_WRITING = ("CreateCollection", "UpdateCollection", "DropCollection", "Upsert", "Delete", "Reembed")
_ALONE = ("Migrate",)
# Nodes ask each other on behalf of a caller, see `Reach`.
_ASKED_BY_NODES = ("Search", "Retrieve")

# Where the servers' gatekeeper looks up who may call what.
POLICY = {
    **{f"/{SERVICE}/{method.name}": PEOPLE for method in _DESCRIPTION.methods},
    **{f"/{SERVICE}/{name}": PEOPLE | {"node"} for name in _ASKED_BY_NODES},
    **{f"/{SERVICE}/{name}": namespaces.WRITERS for name in _WRITING},
    **{f"/{SERVICE}/{name}": OPERATORS for name in _ALONE},
    f"/{PEERS}/": frozenset({"node"}),
}
# What is known of a collection's embedder is asked for again after this.
_KNOWN_S = 2.0
# Rows of a generation are looked for among all, and written; a new table takes the store a while.
_FILL_WITHIN_S = 60.0


class Embedder(Protocol):
    """Models of this node that make vectors of texts."""

    async def pinned(self, model: str) -> tuple[str, int]:
        """Digest of the version that serves, and the length of its vectors. Raises NotFound, InvalidInput."""
        ...

    async def embed(
        self,
        model: str,
        digest: str,
        texts: Sequence[str],
        *,
        query: bool = False,
        behind: bool = False,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """A vector for each text, shape [texts, dimension]; a `query` goes before rows, what is `behind` after them.

        Raises MeshError.
        """
        ...

    async def score(
        self, model: str, query: str, texts: Sequence[str], *, timeout_s: float | None = None
    ) -> list[float]:
        """Of each text, by a reranker; higher is better. Raises MeshError."""
        ...

    def stale(self, model: str, digest: str) -> bool:
        """Another version than that one serves now."""
        ...

    async def keep(self, digests: Collection[str]) -> None:
        """Versions that collections are made with now."""
        ...


class Front:
    """What the agent answers itself, and hands on."""

    def __init__(
        self,
        config: VectorsConfig,
        channel: Callable[[], VectorChannel | None],
        *,
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`channel` is None while the process is not there."""
        self._config = config
        self._channel = channel
        self._clock = clock
        self.embedder = embedder
        # To other nodes that keep vectors; None: there are none.
        self.links: Links | None = None
        self._rates: dict[str, Rate] = {}
        self._known: dict[tuple[str, str, str], tuple[float, pb.Collection]] = {}
        self.reembedding = Reembedding(self._fill, embedder) if embedder else None

    def add_to(self, server: Server) -> None:
        """Every method of the contract."""
        handlers: dict[str, Any] = {}
        for method in _DESCRIPTION.methods:
            own = getattr(self, method.name, None)
            if method.server_streaming:
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(own or self._streamed(method.name))
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(own or self._handed_on(method.name))
        server.add_registered_method_handlers(SERVICE, {name: _raw(one) for name, one in handlers.items()})

    # Handed on as it came.

    def _handed_on(self, name: str) -> Callable[[Message, Any], Any]:
        async def method(message: Message, context: Any) -> bytes:
            return await self.here(name, message, self._admitted(context), context.time_remaining())

        return method

    def _streamed(self, name: str) -> Callable[[Message, Any], Any]:
        async def method(message: Message, context: Any) -> AsyncIterator[bytes]:
            reach = self._admitted(context)
            found = self.there().stream(f"/{SERVICE}/{name}", message, reach=reach, timeout_s=context.time_remaining())
            async for answer in found:
                yield answer

        return method

    async def here(self, name: str, message: Message, reach: str, timeout_s: float | None) -> bytes:
        """Asks this node's own process. Raises MeshError."""
        return await self.there().call(f"/{SERVICE}/{name}", message, reach=reach, timeout_s=timeout_s)

    def there(self) -> VectorChannel:
        """Raises NotReady."""
        channel = self._channel()
        if channel is None:
            raise NotReady(AWAY, retry_after_ms=500)
        return channel

    # Looked at.

    async def ListCollections(self, message: Message, context: Any) -> bytes:
        answer = await self.here("ListCollections", message, self._admitted(context), context.time_remaining())
        found = pb.ListCollectionsResponse.FromString(answer)
        self.mark_stale(found.collections)
        for use in found.namespaces:
            if rate := self._rates.get(use.namespace):
                use.requests_per_second = rate.lately(self._clock())
        return found.SerializeToString()

    async def CreateCollection(self, message: Message, context: Any) -> bytes:
        reach = self._admitted(context)
        request = _parsed(pb.CreateCollectionRequest, message)
        if request.embedder:
            digest, dimension = await self._embedder().pinned(request.embedder)
            if request.dimension not in (0, dimension):
                raise InvalidInput(
                    f"dimension {request.dimension}: embedder {request.embedder!r} makes vectors of {dimension}; "
                    "leave it out"
                )
            request.embedder_digest = request.embedder_digest or digest
            request.dimension = dimension
        return await self.here("CreateCollection", request.SerializeToString(), reach, context.time_remaining())

    async def Upsert(self, message: Message, context: Any) -> bytes:
        reach = self._admitted(context)
        request = _parsed(pb.UpsertRequest, message)
        if all(row.vector for row in request.rows):
            return await self.here("Upsert", message, reach, context.time_remaining())
        return await Writing(self, self._embedder(), self._fill).upsert(request, reach, context.time_remaining())

    async def retrieve(self, request: pb.RetrieveRequest, reach: str, timeout_s: float | None) -> pb.RetrieveResponse:
        """This node's own passages. Raises MeshError."""
        return await Asking(self, self._embedder()).retrieve(request, reach, timeout_s)

    async def Reembed(self, message: Message, context: Any) -> AsyncIterator[bytes]:
        reach = self._admitted(context)
        request = _parsed(pb.ReembedRequest, message)
        self._embedder()
        assert self.reembedding
        collection = await self.collection(request.collection, reach, context.time_remaining())
        async for progress in self.reembedding.reembed(request, collection.embedder, reach):
            if progress.switched:
                self.forget(request.collection)
            yield progress.SerializeToString()

    async def _fill(self, method: str, message: bytes, reach: str) -> bytes:
        return await self.there().call(f"/{FILL}/{method}", message, reach=reach, timeout_s=_FILL_WITHIN_S)

    def mark_stale(self, collections: Iterable[pb.Collection]) -> None:
        """Those whose embedder serves in another version than the one that made their vectors."""
        for each in collections:
            if self.embedder and each.embedder:
                each.embedder_stale = self.embedder.stale(each.embedder, each.embedder_digest)

    async def looked_at(self, collections: Sequence[pb.Collection]) -> None:
        """What the process says of all collections: what they were made with is kept, what was begun goes on."""
        self.mark_stale(collections)
        if self.embedder and self.reembedding:
            pinned = {digest for each in collections for digest in (each.embedder_digest, each.next_embedder_digest)}
            await self.embedder.keep(pinned)
            self.reembedding.resume(collections)

    async def close(self) -> None:
        if self.reembedding:
            await self.reembedding.close()

    async def GetCollection(self, message: Message, context: Any) -> bytes:
        answer = await self.here("GetCollection", message, self._admitted(context), context.time_remaining())
        found = pb.Collection.FromString(answer)
        self.mark_stale([found])
        return found.SerializeToString()

    def forget(self, ref: pb.CollectionRef) -> None:
        """What is known of the collection is old."""
        for key in [key for key in self._known if key[2] == ref.name]:
            del self._known[key]

    async def collection(self, ref: pb.CollectionRef, reach: str, timeout_s: float | None) -> pb.Collection:
        """As it was a moment ago. Raises NotFound."""
        key, now_s = (reach, ref.namespace, ref.name), self._clock()
        known = self._known.get(key)
        if known and now_s < known[0] + _KNOWN_S:
            return known[1]
        answer = await self.here("GetCollection", ref.SerializeToString(), reach, timeout_s)
        found = pb.Collection.FromString(answer)
        if len(self._known) > 1000:
            self._known.clear()
        self._known[key] = (now_s, found)
        return found

    # That may travel.

    async def Search(self, message: Message, context: Any) -> bytes:
        reach, left_s = self._admitted(context), context.time_remaining()
        request = _parsed(pb.SearchRequest, message)
        if not await self._travels(request, reach, left_s):
            return await self.here("Search", message, reach, left_s)

        async def own(request: pb.SearchRequest) -> pb.SearchResponse:
            answer = await self.here("Search", request.SerializeToString(), reach, left_s)
            return pb.SearchResponse.FromString(answer)

        assert self.links
        namespace = namespaces.chosen(reach, request.collection.namespace)
        found = await self.links.reach.search(request, namespace, own, left_s)
        return found.SerializeToString()

    async def Retrieve(self, message: Message, context: Any) -> bytes:
        reach, left_s = self._admitted(context), context.time_remaining()
        request = _parsed(pb.RetrieveRequest, message)
        if not await self._travels(request, reach, left_s):
            return (await self.retrieve(request, reach, left_s)).SerializeToString()

        async def own(request: pb.RetrieveRequest) -> pb.RetrieveResponse:
            return await self.retrieve(request, reach, left_s)

        assert self.links
        namespace = namespaces.chosen(reach, request.collection.namespace)
        found = await self.links.reach.retrieve(request, namespace, own, left_s)
        return found.SerializeToString()

    async def _travels(self, request: pb.SearchRequest | pb.RetrieveRequest, reach: str, left_s: float | None) -> bool:
        """Whether others are to be asked, too. Raises PermissionDenied for one that may not be answered there."""
        if self.links is None:
            return False
        if caller().role == "node":
            # One that has travelled goes no further; where it may be asked from, is asked each time.
            peer = self.links.asking(caller().name)
            self.forget(request.collection)
            check_asked_from(await self.collection(request.collection, reach, left_s), peer)
            return False
        return bool(request.reach.scope)

    # Who calls.

    def _admitted(self, context: Any) -> str:
        """What the caller reaches. Raises QuotaExceeded, InvalidInput."""
        who = caller()
        if who.role == "node":
            return namespaces.told(context.invocation_metadata())
        reach = namespaces.reach_of(who)
        if reach != namespaces.ANY:
            self._rate(reach).take(self._clock(), reach)
        return reach

    def _rate(self, namespace: str) -> Rate:
        found = self._rates.get(namespace)
        if found is None:
            found = self._rates[namespace] = Rate(self._config.quota(namespace).requests_per_second)
        return found

    def _embedder(self) -> Embedder:
        if self.embedder is None:
            raise Unsupported("this node has no embedder; send vectors")
        return self.embedder


class Nowhere:
    """VectorService of a node that keeps no vectors: says so, and who of its site does."""

    def __init__(self, at: Here, nodes: Nodes) -> None:
        self._at = at
        self._nodes = nodes

    def add_to(self, server: Server) -> None:
        async def method(message: Message, context: Any) -> bytes:
            others = sorted(node.node for node in self._nodes() if node.site == self._at.site)
            there = (
                f"at site {self._at.site} {', '.join(others)} does"
                if others
                else f"nobody at site {self._at.site} does"
            )
            raise Unsupported(
                f"node {self._at.node} keeps no vectors, {there}; to have it keep some, set `enabled` under [vectors] "
                "in its node.toml"
            )

        async def streamed(message: Message, context: Any) -> AsyncIterator[bytes]:
            await method(message, context)
            yield b""

        handlers: dict[str, Any] = {
            one.name: grpc.unary_stream_rpc_method_handler(streamed)
            if one.server_streaming
            else grpc.unary_unary_rpc_method_handler(method)
            for one in _DESCRIPTION.methods
        }
        server.add_registered_method_handlers(SERVICE, {name: _raw(one) for name, one in handlers.items()})


def _raw(handler: Any) -> Any:
    """Messages as bytes."""
    return handler._replace(request_deserializer=_same, response_serializer=_same)


def _same(message: Any) -> Any:
    return message


def _parsed(kind: Any, message: Message) -> Any:
    try:
        return kind.FromString(bytes(message))
    except DecodeError as error:
        raise unreadable(len(message), error) from None
