"""Where an import goes to: one collection of a node, as `nearmesh.client.vectors` reaches it."""

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

    async def upsert(self, rows: Sequence[pb.Row]) -> pb.UpsertResponse:
        """Written when it returns; the same again changes nothing."""
        ...

    async def delete(self, filter: str) -> int:
        """How many rows it took."""
        ...
