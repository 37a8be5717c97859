"""The SDK's half of retrieval: the collections of one node, which may ask others.

async with VectorClient.near("bootstrap-europe-west1.json") as vectors:
    docs = await vectors.create("docs", embedder="sentence-encoder")
    await docs.upsert([Passage(id="1", text="Open from nine to five.", source="hours.md")])
    answer = await docs.retrieve("When do you open?", k=3)
    print(answer.hits[0].row.text)

Answers are the contract's own messages; what is sent may be NumPy arrays and plain values.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import grpc
from numpy.typing import ArrayLike

from nearmesh.client.admin import AdminClient
from nearmesh.client.bootstrap import read_bootstrap
from nearmesh.client.passages import Passage, messages, vector_bytes, vector_of
from nearmesh.errors import InvalidInput, NotFound, Unreachable
from nearmesh.rpc import REASON_KEY, from_rpc_error
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1 import vector_pb2_grpc
from nearmesh.vector_values import FIELD_KINDS, METRICS, FieldKind, Metric, Scalar, value_of

__all__ = [
    "Collection",
    "FieldKind",
    "Metric",
    "Mode",
    "Passage",
    "Reach",
    "Scalar",
    "Scope",
    "VectorClient",
    "value_of",
    "vector_bytes",
    "vector_of",
]

T = TypeVar("T")

Mode = Literal["hybrid", "dense", "lexical"]
Scope = Literal["node", "site", "region", "mesh"]

# Embedding a few hundred texts takes a node with one core some seconds.
CALL_LIMIT_S = 60.0
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.enable_retries", 0),
)
_MODES: Mapping[str | None, pb.RetrieveRequest.Mode] = {
    None: pb.RetrieveRequest.MODE_DEFAULT,
    "hybrid": pb.RetrieveRequest.MODE_HYBRID,
    "dense": pb.RetrieveRequest.MODE_DENSE,
    "lexical": pb.RetrieveRequest.MODE_LEXICAL,
}
_SCOPES: Mapping[str, pb.Reach.Scope] = {
    "node": pb.Reach.SCOPE_NODE,
    "site": pb.Reach.SCOPE_SITE,
    "region": pb.Reach.SCOPE_REGION,
    "mesh": pb.Reach.SCOPE_MESH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far a query travels: the node that is asked, every node of a site or a region, or all of the mesh."""

    scope: Scope = "node"
    # Which site or region; empty: the asked node's own.
    name: str = ""
    # What has come by then is merged; 0: what the call's deadline leaves.
    within_ms: int = 0

    def message(self) -> pb.Reach:
        return pb.Reach(scope=_known(_SCOPES, self.scope, "scope"), name=self.name, within_ms=self.within_ms)


class VectorClient:
    """A connection to one node's public listener; enter it with `async with`.

    Every method raises PermissionDenied or Unauthenticated when the token does not do, NotFound for a collection that
    the node has not, InvalidInput for what cannot be done, QuotaExceeded, Unreachable, DeadlineExceeded, and what its
    own line names.
    """

    def __init__(self, address: str, ca_pem: bytes, token: str, *, server_name: str = "") -> None:
        """`address` is host:port; `server_name` the name in the node's certificate, where it does not hold for it."""
        self._address = address
        self._credentials = grpc.ssl_channel_credentials(ca_pem)
        self._options = (*_OPTIONS, *([("grpc.ssl_target_name_override", server_name)] if server_name else []))
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._channel: grpc.aio.Channel
        self.stub: vector_pb2_grpc.VectorServiceStub

    async def __aenter__(self) -> VectorClient:
        self._channel = grpc.aio.secure_channel(self._address, self._credentials, self._options)
        self.stub = vector_pb2_grpc.VectorServiceStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    @classmethod
    @asynccontextmanager
    async def near(cls, bootstrap: Path | str, *, node: str = "", site: str = "") -> AsyncIterator[VectorClient]:
        """The nearest node that keeps vectors, found through a bootstrap file (`nearmesh client bootstrap`).

        Of a `site`, or that `node`, if one is named. Raises NotFound where there is none, ConfigError for the file.
        """
        found = read_bootstrap(Path(bootstrap))
        async with AdminClient(found.control_plane, found.ca_pem, found.token) as control:
            nodes = await control.vector_nodes(found.region)
        wanted = [one for one in nodes if node in ("", one.node) and site in ("", one.site) and one.live]
        if not wanted:
            told = (
                ", ".join(f"{one.node} at {one.site}{'' if one.live else ', away'}" for one in nodes) or "none at all"
            )
            asked = f"node {node!r}" if node else f"site {site!r}" if site else f"region {found.region!r}"
            raise NotFound(f"no node that is there keeps vectors for {asked}; those of the mesh: {told}")
        best = wanted[0]
        async with cls(best.address, found.ca_pem, found.token, server_name=best.server_name) as client:
            yield client

    def collection(self, name: str, *, namespace: str = "") -> Collection:
        """A collection by its name; nothing is asked yet. Without a namespace, the caller's own."""
        return Collection(self, pb.CollectionRef(namespace=namespace, name=name))

    async def create(
        self,
        name: str,
        *,
        namespace: str = "",
        dimension: int = 0,
        metric: Metric = "cosine",
        embedder: str = "",
        fields: Mapping[str, FieldKind] | None = None,
        description: str = "",
        replicate_to: Iterable[str] = (),
        regions: Iterable[str] = (),
        index_type: str = "",
        language: str = "",
    ) -> Collection:
        """A new collection: of vectors of a `dimension`, or of texts that a model makes vectors of.

        `fields` are what filters ask about, beside id, source, source_hash and part. `language` is that of the texts,
        such as "german", by whose rules words lose their endings; "none" keeps them; empty: "english". Raises
        AlreadyExists, Unsupported for an index type that the engine lacks.
        """
        ref = pb.CollectionRef(namespace=namespace, name=name)
        request = pb.CreateCollectionRequest(
            collection=ref,
            dimension=dimension,
            metric=_known(METRICS, metric, "metric"),
            embedder=embedder,
            fields=[pb.Field(name=n, type=_known(FIELD_KINDS, k, "type")) for n, k in (fields or {}).items()],
            description=description,
            replicate_to=_listed(replicate_to, "replicate_to"),
            regions=_listed(regions, "regions"),
            index_type=index_type,
            language=language,
        )
        made = await self.call(self.stub.CreateCollection, request)
        return Collection(self, made.collection)

    async def list(self, namespace: str = "") -> pb.ListCollectionsResponse:
        """The caller's own collections; of a namespace, or of "*": all, for operators. And what they may take."""
        return await self.call(self.stub.ListCollections, pb.ListCollectionsRequest(namespace=namespace))

    async def migrate(self, uri: str, *, token_variable: str = "") -> AsyncIterator[pb.MigrateProgress]:
        """Copies all that the node keeps to another Milvus, verifies it, and uses it from then on."""
        request = pb.MigrateRequest(uri=uri, token_variable=token_variable)
        async with aclosing(self.stream(self.stub.Migrate, request)) as stream:
            async for progress in stream:
                yield progress

    async def call(self, method: Callable[..., Awaitable[T]], request: Any, *, limit_s: float = CALL_LIMIT_S) -> T:
        """One question, one answer."""
        return await self._translated(method(request, timeout=limit_s, metadata=self._metadata))

    async def stream(self, method: Callable[..., Any], request: Any) -> AsyncGenerator[Any, None]:
        """Answers for as long as there are any; leaving early ends the call."""
        found = method(request, metadata=self._metadata)
        try:
            while (message := await self._translated(found.read())) is not grpc.aio.EOF:
                yield message
        finally:
            found.cancel()

    async def _translated(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            task = asyncio.current_task()
            if error.code() is grpc.StatusCode.CANCELLED and task and task.cancelling():
                raise asyncio.CancelledError from error
            found = from_rpc_error(error)
            ours = any(key == REASON_KEY for key, _ in error.trailing_metadata() or ())
            if isinstance(found, Unreachable) and not ours:
                raise Unreachable(f"the node at {self._address} cannot be reached: {found.message}") from None
            raise found from None


class Collection:
    """One collection of a node. `limit_s` is how long a call may take."""

    def __init__(self, client: VectorClient, ref: pb.CollectionRef) -> None:
        self._client = client
        self.ref = ref

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def namespace(self) -> str:
        """Empty: the caller's own."""
        return self.ref.namespace

    async def describe(self) -> pb.Collection:
        """What it is, how much is in it, and how well searches do."""
        return await self._client.call(self._client.stub.GetCollection, self.ref)

    async def update(
        self,
        *,
        description: str | None = None,
        replicate_to: Iterable[str] | None = None,
        regions: Iterable[str] | None = None,
    ) -> pb.Collection:
        """What is None stays."""
        request = pb.UpdateCollectionRequest(
            collection=self.ref,
            description=description,
            replicate_to=_listed(() if replicate_to is None else replicate_to, "replicate_to"),
            set_replicate_to=replicate_to is not None,
            regions=_listed(() if regions is None else regions, "regions"),
            set_regions=regions is not None,
        )
        return await self._client.call(self._client.stub.UpdateCollection, request)

    async def drop(self) -> int:
        """How many rows it had."""
        found: pb.DropCollectionResponse = await self._client.call(self._client.stub.DropCollection, self.ref)
        return found.rows

    async def upsert(self, rows: Iterable[Passage | pb.Row], *, limit_s: float = CALL_LIMIT_S) -> pb.UpsertResponse:
        """On disk and found by searches when it returns; the same rows again change nothing.

        Many rows go in several messages; after a failure those of the first ones are there.
        """
        done = pb.UpsertResponse()
        for part in messages([row if isinstance(row, pb.Row) else row.message() for row in rows]):
            request = pb.UpsertRequest(collection=self.ref, rows=part)
            answer = await self._client.call(self._client.stub.Upsert, request, limit_s=limit_s)
            done.written += answer.written
            done.unchanged += answer.unchanged
        return done

    async def delete(self, ids: Iterable[str] = (), *, filter: str = "", dry_run: bool = False) -> pb.DeleteResponse:
        """By ids, by a filter, or those of the ids that the filter takes."""
        request = pb.DeleteRequest(collection=self.ref, ids=_listed(ids, "ids"), filter=filter, dry_run=dry_run)
        return await self._client.call(self._client.stub.Delete, request)

    async def fetch(self, ids: Iterable[str], *, with_vectors: bool = False) -> Sequence[pb.Row]:
        """Those that are there, in the order asked for."""
        left = [*_listed(ids, "ids")]
        rows: list[pb.Row] = []
        while True:
            request = pb.FetchRequest(collection=self.ref, ids=left, with_vectors=with_vectors, in_parts=True)
            found: pb.FetchResponse = await self._client.call(self._client.stub.Fetch, request)
            rows += found.rows
            # A node that does not know of parts has looked up all.
            left = left[found.looked_up :] if found.looked_up else []
            if not left:
                return rows

    async def rows(self, filter: str = "", *, with_vectors: bool = False, page: int = 500) -> AsyncIterator[pb.Row]:
        """All that the filter takes, in the order of their ids."""
        request = pb.QueryRequest(collection=self.ref, filter=filter, page_size=page, with_vectors=with_vectors)
        while True:
            found = await self._client.call(self._client.stub.Query, request)
            for row in found.rows:
                yield row
            if not found.next_page_token:
                return
            request.page_token = found.next_page_token

    async def count(self, filter: str = "") -> int:
        request = pb.CountRequest(collection=self.ref, filter=filter)
        found: pb.CountResponse = await self._client.call(self._client.stub.Count, request)
        return found.rows

    async def search(
        self,
        vector: ArrayLike,
        *,
        k: int = 10,
        filter: str = "",
        exact: bool = False,
        with_vectors: bool = False,
        reach: Reach | None = None,
        limit_s: float = CALL_LIMIT_S,
    ) -> pb.SearchResponse:
        """The nearest rows to a vector, best first."""
        request = pb.SearchRequest(
            collection=self.ref,
            vector=vector_bytes(vector),
            k=k,
            filter=filter,
            exact=exact,
            with_vectors=with_vectors,
            reach=reach.message() if reach else None,
        )
        return await self._client.call(self._client.stub.Search, request, limit_s=limit_s)

    async def retrieve(
        self,
        text: str,
        *,
        k: int = 10,
        filter: str = "",
        mode: Mode | None = None,
        dense_weight: float | None = None,
        reranker: str = "",
        rerank_k: int = 0,
        reach: Reach | None = None,
        limit_s: float = CALL_LIMIT_S,
    ) -> pb.RetrieveResponse:
        """The passages that answer a text best: by meaning and by words, unless `mode` says one of them."""
        request = pb.RetrieveRequest(
            collection=self.ref,
            text=text,
            k=k,
            filter=filter,
            mode=_known(_MODES, mode, "mode"),
            dense_weight=dense_weight,
            reranker=reranker,
            rerank_k=rerank_k,
            reach=reach.message() if reach else None,
        )
        return await self._client.call(self._client.stub.Retrieve, request, limit_s=limit_s)

    async def sources(self, prefix: str = "") -> AsyncIterator[pb.Source]:
        """What has been imported, by name."""
        request = pb.ListSourcesRequest(collection=self.ref, prefix=prefix, page_size=1000)
        while True:
            found = await self._client.call(self._client.stub.ListSources, request)
            for source in found.sources:
                yield source
            if not found.next_page_token:
                return
            request.page_token = found.next_page_token

    async def reembed(self, embedder: str = "", *, cancel: bool = False) -> AsyncIterator[pb.ReembedProgress]:
        """Vectors of another embedder, or of the version that serves now; the old ones serve until all are there."""
        request = pb.ReembedRequest(collection=self.ref, embedder=embedder, cancel=cancel)
        async with aclosing(self._client.stream(self._client.stub.Reembed, request)) as stream:
            async for progress in stream:
                yield progress

    async def receipts(
        self, id: str = "", *, most: int = 100, before: int = 0
    ) -> Sequence[pb.ListReceiptsResponse.Receipt]:
        """Which sites have taken a delete, or the last deletes, 1,000 of them at most; `before` is the number of a
        change, to go on from the last receipt.
        """
        request = pb.ListReceiptsRequest(collection=self.ref, id=id, page_size=most, before=before)
        found: pb.ListReceiptsResponse = await self._client.call(self._client.stub.ListReceipts, request)
        return found.receipts


def _listed(names: Iterable[str], what: str) -> Iterable[str]:
    """One name alone would be taken for a list of its letters."""
    if isinstance(names, str):
        raise InvalidInput(f"{what} is {names!r}, where a list of such is expected: [{names!r}]")
    return names


def _known(names: Mapping[Any, T], name: Any, what: str) -> T:
    if name not in names:
        raise InvalidInput(f"{what} {name!r} is none of {', '.join(str(one) for one in names if one)}")
    return names[name]
