"""What a site's vectors are made of, and what the parts that keep and search them are to each other.

A collection has one table for each generation of its embedder; one of them serves. What was written is in the journal
and in the index when it is acknowledged; the store (Milvus) takes it over from the journal, and the journal forgets it
then. The index is made from store and journal, so that there is one truth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# FP32, shape [dimension].
Vector = NDArray[np.float32]
Scalar = str | int | float | bool
# Which of a table's rows, in the order of its columns.
Mask = NDArray[np.bool_]


class Metric(StrEnum):
    """How near two vectors are."""

    COSINE = "cosine"
    INNER_PRODUCT = "ip"
    # Squared Euclidean distance; lower is nearer, all others are higher.
    L2 = "l2"


class FieldType(StrEnum):
    STRING = "string"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a row's text is from."""

    source: str = ""
    # Of the source's whole content.
    hash: str = ""
    # Which of how many, from 0.
    part: int = 0
    parts: int = 0
    # For people: a page, a line, a heading.
    position: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """When a row was written and deleted, by hybrid logical clocks, so that sites agree in whatever order they hear.

    Of two states of a row the one with the larger (written_after, written) wins, and the larger `deleted`; the row is
    there when `written_after >= deleted`: a write that did not know of the delete never brings it back.
    """

    written: int = 0
    # The newest delete of this id that the writer knew of.
    written_after: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One passage, or whatever has a vector."""

    id: str
    vector: Vector
    text: str = ""
    fields: Mapping[str, Scalar] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    clock: Clock = field(default_factory=Clock)
    # Since the epoch, seconds.
    written_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What the store and the index know of a generation of a collection."""

    # Unique on the node; letters, digits and underscores, as Milvus takes them.
    name: str
    dimension: int
    metric: Metric
    fields: Mapping[str, FieldType] = field(default_factory=dict)
    # As Milvus calls it; empty: the best that the engine has.
    index_type: str = ""
    # By whose rules words lose their endings, see `limits.LANGUAGES`.
    language: str = "english"


def presence(field: str) -> str:
    """The store's column that says whether a row has the field; older servers have no column that may be empty."""
    return f"_has_{field}"


@dataclass(frozen=True, slots=True)
class Found:
    """A row that a search found; `score` as the metric says."""

    id: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Rows that are written and then ids that are deleted, as the journal keeps them."""

    table: str
    rows: Sequence[Row] = ()
    deleted: Sequence[str] = ()
    # Hybrid logical clock of the delete; 0 where it has none, as of rows that only move.
    deleted_at: int = 0


class Column(Protocol):
    """One field of all rows of a table. A row that lacks the field is in no answer."""

    def compare(self, operator: str, value: Scalar) -> Mask:
        """`operator` is one of ==, !=, <, <=, >, >=; strings are ordered by code points."""
        ...

    def within(self, values: Collection[Scalar], *, negated: bool) -> Mask: ...

    def prefixed(self, prefix: str, *, negated: bool) -> Mask:
        """Of strings only."""
        ...


class Columns(Protocol):
    """Of a table: its declared fields, and what every row has: id, source, source_hash, part."""

    def column(self, name: str) -> Column: ...


class Where(Protocol):
    """A filter that was read and checked against a table's fields (`filters.read`)."""

    def milvus(self) -> str:
        """The same as Milvus reads it, every value quoted."""
        ...

    def matches(self, row: Row) -> bool:
        """Whether it takes the row."""
        ...

    def mask(self, columns: Columns) -> Mask:
        """Which rows it takes."""
        ...


class Store(Protocol):
    """Milvus, Lite or a server. Called from threads, one at a time for each table. Raises MeshError."""

    def tables(self) -> Sequence[str]: ...

    def create(self, table: Table) -> None:
        """Makes the table if it is not there. Raises Unsupported for an index type that the engine does not build."""
        ...

    def drop(self, table: str) -> None:
        """Whether it is there or not."""
        ...

    def write(self, writes: Sequence[Write]) -> None:
        """In order; the same again changes nothing. On disk only after `flush`."""
        ...

    def flush(self) -> None:
        """Everything written so far is on disk when it returns, also after a loss of power."""
        ...

    def get(self, table: str, ids: Sequence[str]) -> Sequence[Row]:
        """Those that are there."""
        ...

    def scan(
        self, table: str, *, after: str = "", batch: int = 1000, where: Where | None = None
    ) -> Iterator[Sequence[Row]]:
        """All rows, or those that the filter takes, with vectors, in the order of their ids from after `after` on."""
        ...

    def everything(self, table: str) -> Iterator[Sequence[Row]]:
        """All rows that it has flushed, and perhaps some more, in any order: the quickest way to read it whole."""
        ...

    def count(self, table: str, where: Where | None = None) -> int: ...

    def search(self, table: str, vector: Vector, k: int, where: Where | None = None) -> Sequence[Found]:
        """The engine's own search, best first."""
        ...

    def close(self) -> None: ...


class Journal(Protocol):
    """What was acknowledged and is not yet in the store. One for each node; a position counts up with each write."""

    async def append(self, writes: Sequence[Write]) -> int:
        """On disk (fsync, shared by those who wait) when it returns; the position of the last."""
        ...

    def after(self, position: int) -> Iterator[tuple[int, Write]]:
        """What was appended after a position, in order."""
        ...

    def begin_after(self, position: int) -> None:
        """It was lost, and what was saved knows up to this position: positions go on from there."""
        ...

    def forget(self, position: int) -> None:
        """Everything up to it is in the store and in every saved index."""
        ...

    @property
    def position(self) -> int: ...

    @property
    def first(self) -> int:
        """The oldest that is still there."""
        ...

    def close(self) -> None: ...


class Index(Protocol):
    """One table in memory: vectors, scalar fields and what a hit shows. Threads search it beside one writer."""

    def reserve(self, rows: Sequence[Row]) -> None:
        """Has place on the disk for them, before the journal has them. Raises OSError where there is none."""
        ...

    def apply(self, write: Write, position: int) -> None:
        """Searches find it, or do not any more, when it returns."""
        ...

    def search(
        self, vector: Vector, k: int, where: Where | None = None, *, exact: bool = False
    ) -> tuple[Sequence[Found], str]:
        """Best first, and the way: "index" or "exact"."""
        ...

    def rows(self, ids: Iterable[str], *, vectors: bool = False) -> Sequence[Row]:
        """Those that are there, in the order asked for."""
        ...

    def select(self, where: Where | None, *, after: str = "", limit: int | None = None) -> Sequence[str]:
        """Ids that the filter takes, in order, from after `after` on."""
        ...

    def count(self, where: Where | None = None) -> int:
        """Rows that the filter takes."""
        ...

    def maintain(self) -> None:
        """Takes fresh rows into the index, trains it anew where it has grown; in a thread, for as long as it takes.

        Where there is nothing to do it returns at once.
        """
        ...

    def save(self) -> int:
        """Writes it to its folder, whole or not at all; the position up to which it knows."""
        ...

    @property
    def position(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def fresh(self) -> int:
        """Rows that are searched exactly, as they are not in the index yet."""
        ...

    def close(self) -> None:
        """Gives its files back; what was not saved is in the journal."""
        ...


class Lexical(Protocol):
    """Words of one table's texts, made from its rows as the index is."""

    def apply(self, write: Write, position: int) -> None: ...

    def search(self, text: str, k: int, among: Collection[str] | None = None) -> Sequence[Found]:
        """By BM25, best first; `among` are the ids that may be found, None: all."""
        ...

    def maintain(self) -> None:
        """Takes fresh rows into the index on disk; in a thread, for as long as it takes."""
        ...

    def save(self) -> int: ...

    @property
    def position(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def close(self) -> None: ...
