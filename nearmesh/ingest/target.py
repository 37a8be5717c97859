"""Where an import goes to: one collection; `nearmesh.client.vectors.Collection` is such a one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from nearmesh.v1 import vector_pb2 as pb


class Target(Protocol):
    """Every call raises MeshError."""

    async def describe(self) -> pb.Collection:
        """What the collection is."""
        ...

    def sources(self, prefix: str) -> AsyncIterator[pb.Source]:
        """What has been imported, of names that begin so."""
        ...

    async def upsert(self, rows: Sequence[pb.Row], *, limit_s: float) -> pb.UpsertResponse:
        """Written when it returns; the same again changes nothing."""
        ...

    async def delete(self, *, filter: str) -> pb.DeleteResponse:
        """Rows that the filter takes; none of them is found when it returns."""
        ...
