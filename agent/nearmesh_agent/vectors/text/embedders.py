"""The embedders of one node, as its vectors ask for them: by model and digest, for a question or for rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nearmesh.errors import EngineFailure, NotFound
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.vectors.text import rerank
from nearmesh_agent.vectors.text.embed import Embedding, Urgency, shape_of
from nearmesh_agent.vectors.text.pinned import Bring, PinnedVersions

# What a vector's length is learned from, where the package does not say it.
_WORD = "a"


class NodeEmbedders:
    """Of one node; belongs to one event loop."""

    def __init__(self, table: ReplicaTable, bring: Bring, remember: Path | None = None) -> None:
        """`remember` is the file of `PinnedVersions`."""
        self._table = table
        self.pins = PinnedVersions(table, bring, remember)
        self._embedding = Embedding()

    async def pinned(self, model: str) -> tuple[str, int]:
        """Digest of the version that serves, and the length of its vectors. Raises NotFound, NotReady, InvalidInput."""
        replica = self._serving(model, "embedder")
        dimension = shape_of(replica.package).dimension
        if dimension < 0:
            vectors = await self._embedding.embed(replica, [_WORD], urgency=Urgency.QUERY)
            dimension = vectors.shape[1]
        return replica.digest, dimension

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
        """A vector for each text, by that version. A `query` goes before rows, and what is `behind` after them.

        Raises MeshError.
        """
        replica = await self.pins.get(model, digest)
        urgency = Urgency.QUERY if query else Urgency.BACKGROUND if behind else Urgency.ROWS
        try:
            return await self._embedding.embed(replica, texts, urgency=urgency, timeout_s=timeout_s)
        except EngineFailure as error:
            raise EngineFailure(f"embedder {model!r}: {error.message}") from None

    async def score(
        self, model: str, query: str, texts: Sequence[str], *, timeout_s: float | None = None
    ) -> list[float]:
        """Of each passage, by a reranker in the version that serves; higher is better. Raises MeshError."""
        return await rerank.score(self._serving(model, "reranker"), query, texts, timeout_s=timeout_s)

    def stale(self, model: str, digest: str) -> bool:
        """Another version than that one serves now."""
        standing = self._table.standing(model)
        return bool(digest) and standing is not None and standing.digest != digest

    async def keep(self, digests: Collection[str]) -> None:
        """What collections are made with now."""
        await self.pins.keep(digests)

    async def close(self) -> None:
        await self.pins.close()

    def _serving(self, model: str, what: str) -> Replica:
        try:
            return self._table.get(model)
        except NotFound:
            raise NotFound(
                f"{what} {model[:64]!r} is no model of this node; deploy it to the node that keeps the vectors"
            ) from None
