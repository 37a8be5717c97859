"""One generation of a collection in memory: its index and its words, and from where on the journal is needed for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from nearmesh.errors import StorageFull
from nearmesh_agent.vectors.model import Index, Lexical, Table, Write


class OpenTable:
    """Writes come one at a time; searches, `maintain` and `save` run beside them."""

    def __init__(self, table: Table, index: Index, lexical: Lexical, *, wordless: bool = False) -> None:
        self.table = table
        self.index = index
        self.lexical = lexical
        # The words were lost, and have yet to be given those of all rows.
        self.wordless = wordless
        self._gate = threading.Lock()
        # Held by whoever maintains, saves or closes it, which takes long.
        self._looked_after = threading.Lock()
        self._closed = False
        self._applied = self.position
        self._unsaved: int | None = None

    @property
    def unsaved(self) -> int | None:
        """Position of the first write that is not in what was saved; None: all are."""
        return self._unsaved

    @property
    def position(self) -> int:
        """From after here on the journal tells it what it lacks."""
        return self.index.position if self.wordless else min(self.index.position, self.lexical.position)

    def reserve(self, writes: Sequence[Write]) -> None:
        """So that what the journal has does not fail here. Raises StorageFull."""
        rows = [row for write in writes if write.table == self.table.name for row in write.rows]
        try:
            self.index.reserve(rows)
        except OSError as error:
            raise StorageFull(f"the disk has no room for {len(rows)} rows more in the index: {error}") from None

    def apply(self, write: Write, position: int) -> None:
        """Searches find it when it returns; what one of both has already changes nothing."""
        with self._gate:
            self._applied = position
            if self._unsaved is None:
                self._unsaved = position
        if position > self.index.position:
            self.index.apply(write, position)
        if position > self.lexical.position:
            self.lexical.apply(write, position)

    def touch(self) -> None:
        """What is on disk is not what is here."""
        with self._gate:
            self._applied = self.position
            self._unsaved = self._applied

    def maintain(self) -> None:
        """Takes fresh rows into both; for as long as it takes."""
        with self._looked_after:
            if not self._closed:
                self.index.maintain()
                self.lexical.maintain()

    def save(self) -> None:
        """Both on disk; the journal may forget what they have then."""
        with self._looked_after:
            if self._closed:
                return
            saved = min(self.index.save(), self.lexical.save())
            with self._gate:
                self._unsaved = saved + 1 if self._applied > saved else None

    def close(self) -> None:
        """Safe to repeat."""
        with self._looked_after:
            if not self._closed:
                self._closed = True
                self.index.close()
                self.lexical.close()
