"""What was deleted when, and what was changed in which order: for writes that come late, for receipts, and for sites
that keep copies. Made from the journal, as an index is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from nearmesh_agent.vectors.model import Row, Write


class Ledger(Protocol):
    """Of all collections of a node, by their identities. Any thread may call it."""

    def now(self) -> int:
        """A stamp for a delete, greater than any before."""
        ...

    def stamped(self, identity: str, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows that are written here, each with a clock of its own, over what is known to be deleted."""
        ...

    def tombstones(self, identity: str, ids: Iterable[str]) -> Mapping[str, int]:
        """Of those that were deleted one day, when that was last."""
        ...

    def apply(self, identity: str, write: Write, position: int, *, source: str = "", site: str = "") -> None:
        """In the journal's order. `source` is the node that it came from, at `site`; empty: here."""
        ...

    def last(self, identity: str) -> int:
        """Number of the newest change."""
        ...

    @property
    def position(self) -> int:
        """Up to here the journal is not needed for it."""
        ...

    def save(self, position: int) -> None:
        """Everything up to it was applied; on disk when it returns."""
        ...

    @property
    def broken(self) -> bool:
        """Only a restart brings what it lacks, and would bring it now."""
        ...

    def drop(self, identity: str) -> None:
        """The collection is gone."""
        ...

    def close(self) -> None: ...
