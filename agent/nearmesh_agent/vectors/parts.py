"""What a site's vectors are made of, as the process that keeps them opens it: a seam, so that tests bring their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from nearmesh_agent.vectors.ledger import Ledger
from nearmesh_agent.vectors.model import FieldType, Index, Journal, Lexical, Store, Table, Where


class Applier(Protocol):
    """Takes what is in the journal over into the store, in a thread of its own, and has the journal forget it."""

    def start(self) -> None: ...

    def stop(self) -> None:
        """What is not taken over stays in the journal. Safe to repeat."""
        ...

    def flush(self) -> None:
        """All that is in the journal by now is on the store's disk when it returns. Raises MeshError."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """The store changes no more inside; the journal goes on."""
        ...

    def use(self, store: Store, settle_s: float) -> None:
        """Another store, which has all that this one had; only inside `paused`."""
        ...

    @property
    def visible(self) -> int:
        """Up to here the store's own searches see everything."""
        ...

    @property
    def failure(self) -> str:
        """Why nothing goes on at the moment; empty: it does."""
        ...


class Door(Protocol):
    """To the store, for those who search it themselves."""

    def the_store(self) -> Store:
        """Raises NotReady while there is none."""
        ...

    def visible(self) -> int:
        """Up to here the store's searches see everything that was written."""
        ...


class Parts(Protocol):
    """Called from threads. Raises MeshError, OSError."""

    def journal(self) -> Journal:
        """Opened, and whole up to where a crash tore it."""
        ...

    def ledger(self) -> Ledger: ...

    def store(self) -> Store:
        """Opened; may take seconds."""
        ...

    def elsewhere(self, uri: str, token_variable: str) -> Store | None:
        """Another one, opened; None where it is the one in use. Raises InvalidInput for what names none."""
        ...

    def use_elsewhere(self, uri: str, token_variable: str) -> None:
        """That one is the store from now on, over a restart too."""
        ...

    def applier(
        self, journal: Journal, store: Store, *, known: Callable[[str], bool], saved: Callable[[], int]
    ) -> Applier:
        """Writes to tables that are not `known` are passed over: they were dropped. Up to `saved` the journal is not
        needed for anything but the store."""
        ...

    def index(self, table: Table, door: Door) -> Index | None:
        """As it was saved; None where there is none, or a damaged one."""
        ...

    def new_index(self, table: Table, door: Door) -> Index:
        """Empty, in the place of one that was there."""
        ...

    def lexical(self, table: Table) -> Lexical | None:
        """As `index`."""
        ...

    def new_lexical(self, table: Table) -> Lexical:
        """As `new_index`."""
        ...

    def read_filter(self, text: str, fields: Mapping[str, FieldType]) -> Where | None:
        """None: everything. Raises InvalidInput that says what and where."""
        ...

    def remove(self, table: Table) -> None:
        """The files of its index and its words, if there are any."""
        ...
