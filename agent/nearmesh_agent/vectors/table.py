"""One generation of a collection in memory: its index and its words, and from where on the journal is needed for it."""

from __future__ import annotations

import threading

from nearmesh_agent.vectors.model import Index, Lexical, Table, Write


class OpenTable:
    """Writes come one at a time; searches, `maintain` and `save` run beside them."""

    def __init__(self, table: Table, index: Index, lexical: Lexical | None) -> None:
        """Without `lexical`, its rows are not searched by words."""
        self.table = table
        self.index = index
        self.lexical = lexical
        self._gate = threading.Lock()
        self._applied = self.position
        self._unsaved: int | None = None

    @property
    def unsaved(self) -> int | None:
        """Position of the first write that is not in what was saved; None: all are."""
        return self._unsaved

    @property
    def position(self) -> int:
        """From after here on the journal tells it what it lacks."""
        return min(self.index.position, self.lexical.position) if self.lexical else self.index.position

    def apply(self, write: Write, position: int) -> None:
        """Searches find it when it returns; what one of both has already changes nothing."""
        with self._gate:
            self._applied = position
            if self._unsaved is None:
                self._unsaved = position
        if position > self.index.position:
            self.index.apply(write, position)
        if self.lexical and position > self.lexical.position:
            self.lexical.apply(write, position)

    def maintain(self) -> None:
        """Takes fresh rows into both; for as long as it takes."""
        self.index.maintain()
        if self.lexical:
            self.lexical.maintain()

    def save(self) -> None:
        """Both on disk; the journal may forget what they have then."""
        saved = self.index.save()
        if self.lexical:
            saved = min(saved, self.lexical.save())
        with self._gate:
            self._unsaved = saved + 1 if self._applied > saved else None

    def close(self) -> None:
        self.index.close()
        if self.lexical:
            self.lexical.close()
