"""A collection that is only pretended: what an import asks of a node, answered from a dictionary."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import cast

from nearmesh_agent.vectors.filters import read
from nearmesh_agent.vectors.model import Row

from nearmesh.errors import InvalidInput, MeshError
from nearmesh.v1 import vector_pb2 as pb


class FakeTarget:
    """Keeps rows by id, and notes what it was asked to do."""

    def __init__(self, *, embedder: str = "sentence-encoder", dimension: int = 384, **fields: pb.FieldType) -> None:
        kept = [pb.Field(name=name, type=kind) for name, kind in fields.items()]
        self.collection = pb.Collection(embedder=embedder, dimension=dimension, fields=kept)
        self.rows: dict[str, pb.Row] = {}
        self.upserts: list[list[str]] = []
        self.deletes: list[str] = []
        # Raised one after the other by the next calls that write.
        self.errors: list[MeshError] = []
        # A row with this in its text is refused, as one that is too long is.
        self.refuses = ""
        # Rows and deletes that are still taken; after that it is as if the node had died in the middle.
        self.writes_left = 10**9

    async def describe(self) -> pb.Collection:
        return self.collection

    async def sources(self, prefix: str) -> AsyncIterator[pb.Source]:
        for name in sorted({row.origin.source for row in self.rows.values()}):
            if name.startswith(prefix):
                yield self.source(name)

    def source(self, name: str) -> pb.Source:
        """The last row that was written says which content is the newest."""
        rows = [row for row in self.rows.values() if row.origin.source == name]
        newest = rows[-1].origin
        here = sum(row.origin.hash == newest.hash for row in rows)
        return pb.Source(name=name, hash=newest.hash, parts_here=here, parts=newest.parts, stale_parts=len(rows) - here)

    async def upsert(self, rows: Sequence[pb.Row], *, limit_s: float) -> pb.UpsertResponse:
        self._fail()
        if self.refuses and any(self.refuses in row.text for row in rows):
            raise InvalidInput(f"its text has {self.refuses!r} in it")
        self.upserts.append([row.id for row in rows])
        unchanged = 0
        for row in rows:
            self._die()
            unchanged += self.rows.get(row.id) == row
            self.rows.pop(row.id, None)
            self.rows[row.id] = row
        return pb.UpsertResponse(written=len(rows) - unchanged, unchanged=unchanged)

    async def delete(self, *, filter: str) -> pb.DeleteResponse:
        self._fail()
        self.deletes.append(filter)
        taken = [id_ for id_, row in self.rows.items() if _takes(filter, row)]
        for id_ in taken:
            self._die()
            del self.rows[id_]
        return pb.DeleteResponse(deleted=len(taken))

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def _die(self) -> None:
        if not self.writes_left:
            raise MeshError("killed")
        self.writes_left -= 1

    @property
    def texts(self) -> dict[str, str]:
        return {id_: row.text for id_, row in sorted(self.rows.items())}


def _takes(filter: str, row: pb.Row) -> bool:
    """As a node reads it."""
    found = read(filter, {})
    assert found is not None, "an empty filter takes everything"
    return found.matches(cast(Row, row))
