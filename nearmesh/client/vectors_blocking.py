"""The sync face of vectors, for scripts and notebooks: the same client on an event loop of its own, in a thread.

with BlockingVectors.near("bootstrap-europe-west1.json") as vectors:
    docs = vectors.collection("docs")
    print(docs.retrieve("When do you open?", k=3).hits[0].row.text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

from numpy.typing import ArrayLike

from nearmesh.client.own_loop import OwnLoop
from nearmesh.client.vectors import (
    CALL_LIMIT_S,
    Collection,
    FieldKind,
    Metric,
    Mode,
    Passage,
    Reach,
    VectorClient,
)
from nearmesh.v1 import vector_pb2 as pb


class BlockingVectors:
    """A VectorClient whose methods block, within a `with`. May be used from several threads."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[VectorClient]]) -> None:
        self._opening = opening
        self._loop = OwnLoop("these vectors are", "use them inside `with BlockingVectors...(...) as vectors:`")
        self.run, self.each = self._loop.run, self._loop.each
        self._opened: AbstractAsyncContextManager[VectorClient]
        self._client: VectorClient

    @classmethod
    def at(cls, address: str, ca_pem: bytes, token: str, *, server_name: str = "") -> BlockingVectors:
        """See `VectorClient`."""
        return cls(lambda: VectorClient(address, ca_pem, token, server_name=server_name))

    @classmethod
    def near(cls, bootstrap: Path | str, *, node: str = "", site: str = "") -> BlockingVectors:
        """See `VectorClient.near`."""
        return cls(lambda: VectorClient.near(bootstrap, node=node, site=site))

    def __enter__(self) -> BlockingVectors:
        self._client = self._loop.open(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.close(self._close)

    async def _open(self) -> VectorClient:
        self._opened = self._opening()
        return await self._opened.__aenter__()

    async def _close(self) -> None:
        await self._opened.__aexit__(None, None, None)

    def collection(self, name: str, *, namespace: str = "") -> BlockingCollection:
        """See `VectorClient.collection`."""
        return BlockingCollection(self, self._client.collection(name, namespace=namespace))

    def create(
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
    ) -> BlockingCollection:
        """See `VectorClient.create`."""
        made = self._client.create(
            name,
            namespace=namespace,
            dimension=dimension,
            metric=metric,
            embedder=embedder,
            fields=fields,
            description=description,
            replicate_to=replicate_to,
            regions=regions,
            index_type=index_type,
            language=language,
        )
        return BlockingCollection(self, self.run(made))

    def list(self, namespace: str = "") -> pb.ListCollectionsResponse:
        """See `VectorClient.list`."""
        return self.run(self._client.list(namespace))

    def migrate(self, uri: str, *, token_variable: str = "") -> Iterator[pb.MigrateProgress]:
        """See `VectorClient.migrate`."""
        return self.each(self._client.migrate(uri, token_variable=token_variable))


class BlockingCollection:
    """A Collection whose methods block."""

    def __init__(self, vectors: BlockingVectors, collection: Collection) -> None:
        self._vectors = vectors
        self._collection = collection
        self._run = vectors.run

    @property
    def name(self) -> str:
        return self._collection.name

    def describe(self) -> pb.Collection:
        """See `Collection.describe`."""
        return self._run(self._collection.describe())

    def update(
        self,
        *,
        description: str | None = None,
        replicate_to: Iterable[str] | None = None,
        regions: Iterable[str] | None = None,
    ) -> pb.Collection:
        """See `Collection.update`."""
        return self._run(self._collection.update(description=description, replicate_to=replicate_to, regions=regions))

    def drop(self) -> int:
        """See `Collection.drop`."""
        return self._run(self._collection.drop())

    def upsert(self, rows: Iterable[Passage | pb.Row], *, limit_s: float = CALL_LIMIT_S) -> pb.UpsertResponse:
        """See `Collection.upsert`."""
        return self._run(self._collection.upsert(rows, limit_s=limit_s))

    def delete(self, ids: Iterable[str] = (), *, filter: str = "", dry_run: bool = False) -> pb.DeleteResponse:
        """See `Collection.delete`."""
        return self._run(self._collection.delete(ids, filter=filter, dry_run=dry_run))

    def fetch(self, ids: Iterable[str], *, with_vectors: bool = False) -> Sequence[pb.Row]:
        """See `Collection.fetch`."""
        return self._run(self._collection.fetch(ids, with_vectors=with_vectors))

    def rows(self, filter: str = "", *, with_vectors: bool = False, page: int = 500) -> Iterator[pb.Row]:
        """See `Collection.rows`."""
        return self._vectors.each(self._collection.rows(filter, with_vectors=with_vectors, page=page))

    def count(self, filter: str = "") -> int:
        """See `Collection.count`."""
        return self._run(self._collection.count(filter))

    def search(
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
        """See `Collection.search`."""
        return self._run(
            self._collection.search(
                vector, k=k, filter=filter, exact=exact, with_vectors=with_vectors, reach=reach, limit_s=limit_s
            )
        )

    def retrieve(
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
        """See `Collection.retrieve`."""
        return self._run(
            self._collection.retrieve(
                text,
                k=k,
                filter=filter,
                mode=mode,
                dense_weight=dense_weight,
                reranker=reranker,
                rerank_k=rerank_k,
                reach=reach,
                limit_s=limit_s,
            )
        )

    def sources(self, prefix: str = "") -> Iterator[pb.Source]:
        """See `Collection.sources`."""
        return self._vectors.each(self._collection.sources(prefix))

    def reembed(self, embedder: str = "", *, cancel: bool = False) -> Iterator[pb.ReembedProgress]:
        """See `Collection.reembed`."""
        return self._vectors.each(self._collection.reembed(embedder, cancel=cancel))

    def receipts(self, id: str = "", *, most: int = 100, before: int = 0) -> Sequence[pb.ListReceiptsResponse.Receipt]:
        """See `Collection.receipts`."""
        return self._run(self._collection.receipts(id, most=most, before=before))
