"""What another site says of rows, as a write of this one: what is newer there is taken over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nearmesh.errors import InvalidInput
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors import limits, wire
from nearmesh_agent.vectors.across.states import State, merged
from nearmesh_agent.vectors.changes import Change, Kept, check_table
from nearmesh_agent.vectors.model import Clock, Row, Table, Write
from nearmesh_agent.vectors.text.answer import check_embedder


@dataclass(slots=True, kw_only=True)
class Merge(Change):
    """States of rows by id, with vectors of that version of the embedder; `source` and `site` say who told of them."""

    states: Mapping[str, State] = field(default_factory=dict)
    # That the vectors were read for.
    table: str
    embedder_digest: str = ""

    def plan(self, kept: Kept) -> None:
        check_embedder(self.embedder_digest, kept.spec)
        check_table(self.table, kept)
        old = {row.id: row for row in kept.serving.index.rows(self.states, vectors=True)}
        stones = kept.ledger.tombstones(kept.identity, self.states)
        rows: list[Row] = []
        # By the clock of the delete: one call may have deleted many.
        gone: dict[int, list[str]] = {}
        for id, there in self.states.items():
            here = State(row=old.get(id), deleted=stones.get(id, 0))
            after = merged(here, there)
            if after is here:
                continue
            if after.row is not None:
                rows.append(after.row)
            else:
                gone.setdefault(after.deleted, []).append(id)
            if here.row is not None:
                self.old.append(here.row)
        table = kept.serving.table.name
        self.writes = [Write(table=table, rows=rows)] if rows else []
        self.writes += [Write(table=table, deleted=ids, deleted_at=at) for at, ids in sorted(gone.items())]


def states(changes: Sequence[pb.Change], table: Table) -> dict[str, State]:
    """Checked, as what anybody sends. Raises InvalidInput."""
    limits.check_ids([change.id for change in changes])
    return {change.id: _state(change, table) for change in changes}


def _state(change: pb.Change, table: Table) -> State:
    if not change.HasField("row"):
        return State(deleted=change.deleted)
    if change.row.id != change.id:
        raise InvalidInput(f"a change of row {change.id[:64]!r} has row {change.row.id[:64]!r}")
    if not math.isfinite(change.written_at_s):
        raise InvalidInput(f"row {change.id[:64]!r} was written at {change.written_at_s}, which is no moment")
    clock = Clock(written=change.written, written_after=change.written_after, deleted=change.deleted)
    row = wire.row(change.row, table)
    return State(
        row=Row(
            id=row.id,
            vector=row.vector,
            text=row.text,
            fields=row.fields,
            origin=row.origin,
            clock=clock,
            written_at_s=change.written_at_s,
        ),
        deleted=change.deleted,
    )


def change(number: int, id: str, row: Row | None, deleted: int) -> pb.Change:
    """A state on its way to another site."""
    message = pb.Change(number=number, id=id, deleted=deleted)
    if row is not None:
        message.row.CopyFrom(wire.row_message(row, vector=True))
        message.written, message.written_after = row.clock.written, row.clock.written_after
        message.deleted = max(deleted, row.clock.deleted)
        message.written_at_s = row.written_at_s
    return message


def stamps(changes: Sequence[pb.Change]) -> set[int]:
    """All that they name."""
    return {max(change.written, change.written_after, change.deleted) for change in changes}
