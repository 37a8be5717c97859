"""`Upsert` of rows that bring no vectors: their texts are embedded here, by the generation that serves, and by the next
one as well while that is being filled, so that it catches up however much is written.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from nearmesh.errors import InvalidInput, MeshError, Superseded
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.text.asking import Embedders, Process, Watch
from nearmesh_agent.vectors.text.generations import text_hash

log = logging.getLogger(__name__)

# Texts of one request are embedded so many at a time, so that none holds the others' turn for long.
TEXTS = 64

# Asks the process's VectorFillService: method, message, what the caller reaches.
Fill = Callable[[str, bytes, str], Awaitable[bytes]]


class Writing:
    """Of one node; belongs to one event loop."""

    def __init__(self, process: Process, embedders: Embedders, fill: Fill) -> None:
        self._process = process
        self._embedders = embedders
        self._fill = fill

    async def upsert(self, request: pb.UpsertRequest, reach: str, timeout_s: float | None) -> bytes:
        """Gives rows without vectors theirs, in `request`, and writes all. Raises MeshError."""
        watch = Watch(timeout_s)
        without = [row for row in request.rows if not row.vector]
        brought = len(without) < len(request.rows)
        if brought:
            # What is known of the collection may be old, and these are meant for what it is now.
            self._process.forget(request.collection)
        collection = await self._embed(request, without, reach, watch)
        try:
            answer = await self._process.here("Upsert", request.SerializeToString(), reach, watch.left_s())
        except Superseded:
            # Another generation has taken over between the two; vectors that were brought are not for it.
            self._process.forget(request.collection)
            if brought:
                raise
            request.embedder_digest = ""
            collection = await self._embed(request, without, reach, watch)
            answer = await self._process.here("Upsert", request.SerializeToString(), reach, watch.left_s())
        if collection.next_embedder:
            await self._also(collection, without, watch)
        return answer

    async def _embed(
        self, request: pb.UpsertRequest, rows: Sequence[pb.Row], reach: str, watch: Watch
    ) -> pb.Collection:
        collection = await self._process.collection(request.collection, reach, watch.left_s())
        if not collection.embedder:
            raise InvalidInput(
                f"row {rows[0].id[:64]!r} has no vector, and collection {request.collection.name!r} no embedder that "
                "could make one"
            )
        for row in rows:
            if not row.text.strip():
                raise InvalidInput(f"row {row.id[:64]!r} has neither a vector nor a text")
        if request.embedder_digest not in ("", collection.embedder_digest):
            raise Superseded(
                f"the vectors were made by {request.embedder_digest}, and collection {request.collection.name!r} has "
                f"those of {collection.embedder_digest}"
            )
        vectors = await self._vectors(collection.embedder, collection.embedder_digest, rows, watch)
        for row, vector in zip(rows, vectors, strict=True):
            row.vector = vector
        request.embedder_digest = collection.embedder_digest
        return collection

    async def _also(self, collection: pb.Collection, rows: Sequence[pb.Row], watch: Watch) -> None:
        """What is written is written; the next generation would get these rows later as well."""
        try:
            vectors = await self._vectors(collection.next_embedder, collection.next_embedder_digest, rows, watch)
            request = pb.FillRequest(collection=collection.collection, generation=collection.next_generation_number)
            for row, vector in zip(rows, vectors, strict=True):
                request.made.add(id=row.id, text_hash=text_hash(row.text), vector=vector)
            await self._fill("Fill", request.SerializeToString(), collection.collection.namespace)
        except MeshError as error:
            log.debug("rows are left to whoever fills collection=%s: %s", collection.collection.name, error.message)

    async def _vectors(self, model: str, digest: str, rows: Sequence[pb.Row], watch: Watch) -> list[bytes]:
        found: list[bytes] = []
        for start in range(0, len(rows), TEXTS):
            texts = [row.text for row in rows[start : start + TEXTS]]
            vectors = await self._embedders.embed(model, digest, texts, timeout_s=watch.left_s())
            found += [np.asarray(vector, "<f4").tobytes() for vector in vectors]
        return found
