"""The sync face of vectors, for scripts and notebooks: the same client on an event loop of its own, in a thread.

with BlockingVectors.near("bootstrap-europe-west1.json") as vectors:
    docs = vectors.collection("docs")
    print(docs.retrieve("When do you open?", k=3).hits[0].row.text)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import ArrayLike

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
from nearmesh.errors import ConfigError
from nearmesh.v1 import vector_pb2 as pb

T = TypeVar("T")


class BlockingVectors:
    """A VectorClient whose methods block, within a `with`. May be used from several threads."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[VectorClient]]) -> None:
        self._opening = opening
        # Made when it is entered, so that one that never is leaves nothing behind.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread
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
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nearmesh-vectors", daemon=True)
        self._thread.start()
        try:
            self._client = self.run(self._open())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self._opened.__aexit__(None, None, None))
        finally:
            self._stop()

    async def _open(self) -> VectorClient:
        self._opened = self._opening()
        return await self._opened.__aenter__()

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
        )
        return BlockingCollection(self, self.run(made))

    def list(self, namespace: str = "") -> pb.ListCollectionsResponse:
        """See `VectorClient.list`."""
        return self.run(self._client.list(namespace))

    def migrate(self, uri: str, *, token_variable: str = "") -> Iterator[pb.MigrateProgress]:
        """See `VectorClient.migrate`."""
        return self.each(self._client.migrate(uri, token_variable=token_variable))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the loop. Raises what it raises, and ConfigError outside of the `with`."""
        if self._loop is None:
            work.close()
            raise ConfigError("these vectors are not open: use them inside `with BlockingVectors...(...) as vectors:`")
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while waiting: the call must not live on in the thread.
            future.cancel()
            raise

    def each(self, stream: AsyncIterator[T]) -> Iterator[T]:
        """What comes, one after the other."""

        async def following() -> list[T]:
            """One more, or none."""
            async for one in stream:
                return [one]
            return []

        while found := self.run(following()):
            yield from found

    def _stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()


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

    def receipts(self, id: str = "", *, most: int = 100) -> Sequence[pb.ListReceiptsResponse.Receipt]:
        """See `Collection.receipts`."""
        return self._run(self._collection.receipts(id, most=most))
