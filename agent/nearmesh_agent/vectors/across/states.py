"""What becomes of a row when another site's state of it is heard of. Pure.

Of two states the write with the larger (written_after, written) counts, and the later delete; the row is there when the
write knew of the delete. So the order does not matter in which states are heard of, nor how often: it is a maximum.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

from nearmesh_agent.vectors.model import Clock, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a site knows of one id: the row, if it is there, and the newest delete of it, 0 if there was none."""

    row: Row | None = None
    deleted: int = 0


def merged(here: State, there: State) -> State:
    """Both together; `here` itself where `there` is no news."""
    deleted = max(here.deleted, there.deleted, _known(here.row), _known(there.row))
    alive = [row for row in (here.row, there.row) if row is not None and row.clock.written_after >= deleted]
    row = max(alive, key=_rank, default=None)
    if row is here.row and deleted == max(here.deleted, _known(here.row)):
        return here
    if row is not None and row.clock.deleted != deleted:
        clock = Clock(written=row.clock.written, written_after=row.clock.written_after, deleted=deleted)
        row = dataclasses.replace(row, clock=clock)
    return State(row=row, deleted=deleted)


def _known(row: Row | None) -> int:
    """The newest delete that the row itself tells of."""
    return max(row.clock.deleted, row.clock.written_after) if row else 0


def _rank(row: Row) -> tuple[int, int, bytes]:
    """Two writes of one stamp are as good as impossible; they must not part two sites for good either."""
    return row.clock.written_after, row.clock.written, content(row)


def content(row: Row) -> bytes:
    """A digest of what it says, its clock left out; and its vector where it has a text: of the same write, a site whose
    embedder is another version has another one.
    """
    origin = row.origin
    said = (
        row.text,
        sorted((name, type(value).__name__, value) for name, value in row.fields.items()),
        (origin.source, origin.hash, origin.part, origin.parts, origin.position),
    )
    vector = b"" if row.text else row.vector.tobytes()
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass") + vector).digest()
