"""Rows of one table in the order in which they were written, each in a slot whose content never changes.

A row that is written again takes a new slot; its old one is dead from then on, as is that of a deleted row. Which slots
live is in a view: readers take one and see the table as it was then, whatever the writer does meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearmesh.errors import InvalidInput
from nearmesh_agent.vectors.filters.tree import COMPARISONS, STANDING, value_of
from nearmesh_agent.vectors.index import records
from nearmesh_agent.vectors.index.columns import Numbers, Strings, column_for
from nearmesh_agent.vectors.index.growing import Arena, Growing
from nearmesh_agent.vectors.index.order import Order
from nearmesh_agent.vectors.model import Column, Mask, Row, Scalar, Table

# Of a vector without length, whose cosine with any other is said to be 0; and of one so short that FP32 has no number
# for what would make it 1.
_NO_SCALE, _LEAST_LENGTH = 0.0, float(np.finfo(np.float32).tiny)
# Rows that are copied in one go, so that a writer who waits does not wait for long.
_COPIED_ROWS = 2000
_ARENAS = ("vectors", "records")


@dataclass(frozen=True, eq=False)
class View:
    """A table at one moment."""

    slots: Slots
    # As many slots were taken.
    used: int
    alive: Mask
    live: int
    # Of what lives: its vectors and records.
    bytes: int
    # Of the journal.
    position: int

    @property
    def dead(self) -> int:
        return self.used - self.live

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        return self.slots.vectors(self.used)

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        return self.slots.scales.first(self.used)

    def column(self, name: str) -> Column:
        """For filters."""
        if name == "id":
            return _Ids(self)
        return self.slots.columns[name].at(self.used)

    def slot_of(self, id_: str) -> int | None:
        """Where a row is; None: it is not there."""
        slot = self.slots.newest.get(id_, -1)
        while slot >= self.used:
            # Written again since.
            slot = int(self.slots.before.first(slot + 1)[slot])
        return slot if slot >= 0 and self.alive[slot] else None

    def id_of(self, slot: int) -> str:
        return self.slots.ids[slot]

    def rows(self, slots: Iterable[int], *, vectors: bool) -> Sequence[Row]:
        return [self.slots.row(slot, with_vector=vectors) for slot in slots]

    def after(self, killed: Collection[int], position: int) -> View:
        """What the table is when the slots taken since are in it, and those killed are not."""
        used = len(self.slots.ids)
        alive = np.ones(used, np.bool_)
        alive[: self.used] = self.alive
        alive[list(killed)] = False
        freed = sum(map(self.slots.size_of, killed))
        added = self.slots.bytes_between(self.used, used)
        return View(
            slots=self.slots,
            used=used,
            alive=alive,
            live=self.live + used - self.used - len(killed),
            bytes=self.bytes + added - freed,
            position=max(self.position, position),
        )


class _Ids:
    """The column of ids, which are all different."""

    def __init__(self, view: View) -> None:
        self._view = view

    def compare(self, operator: str, value: Scalar) -> Mask:
        if operator in ("==", "!="):
            return self.within((value,), negated=operator == "!=")
        test = COMPARISONS[operator]
        return self._of(test(id_, value) for id_ in self._view.slots.ids[: self._view.used])

    def within(self, values: Collection[Scalar], *, negated: bool) -> Mask:
        takes = np.full(self._view.used, negated)
        takes[[slot for value in values if (slot := self._view.slot_of(str(value))) is not None]] = not negated
        return takes

    def prefixed(self, prefix: str, *, negated: bool) -> Mask:
        return self._of(id_.startswith(prefix) != negated for id_ in self._view.slots.ids[: self._view.used])

    def _of(self, answers: Iterator[bool]) -> Mask:
        return np.fromiter(answers, np.bool_, self._view.used)


class Slots:
    """The content of all slots. One writer; readers look at what their view says is there."""

    def __init__(self, table: Table, folder: Path, epoch: int, *, kept: Mapping[str, int] | None = None) -> None:
        """`kept`: how much of the files counts, where they were there before."""
        self.table = table
        self.folder = folder
        # Files of another epoch are another Slots': one that was tidied up has new ones.
        self.epoch = epoch
        kept = kept or {}
        self.arenas = {kind: Arena(path, kept=kept.get(kind, 0)) for kind, path in arena_paths(folder, epoch).items()}
        self.ids: list[str] = []
        self.order = Order(self.ids)
        # The newest slot of each id, dead or not.
        self.newest: dict[str, int] = {}
        # The slot that a row had before; -1: none.
        self.before = Growing(np.int64)
        # What a vector is multiplied with so that its length is 1.
        self.scales = Growing(np.float32)
        # Where a slot's record ends in its arena.
        self.ends = Growing(np.int64)
        kinds = {name: kind for name, kind in {**STANDING, **table.fields}.items() if name != "id"}
        self.columns: dict[str, Numbers | Strings] = {name: column_for(kind) for name, kind in kinds.items()}

    # Reading.

    def vectors(self, count: int) -> NDArray[np.float32]:
        """Of the first slots; shape [count, dimension], read from the page cache."""
        taken = self.arenas["vectors"].bytes[: count * self.table.dimension * 4]
        return taken.view(np.float32).reshape(count, self.table.dimension)

    def row(self, slot: int, *, with_vector: bool) -> Row:
        start, end = self._record(slot)
        vector = self.vectors(slot + 1)[slot].copy() if with_vector else np.empty(0, np.float32)
        return records.decode(self.arenas["records"].bytes[start:end].tobytes(), vector)

    def size_of(self, slot: int) -> int:
        return self.bytes_between(slot, slot + 1)

    def bytes_between(self, first: int, after: int) -> int:
        """What these slots' vectors and records take."""
        if after <= first:
            return 0
        return (after - first) * self.table.dimension * 4 + self._record(after - 1)[1] - self._record(first)[0]

    def _record(self, slot: int) -> tuple[int, int]:
        ends = self.ends.first(slot + 1)
        return (int(ends[slot - 1]) if slot else 0), int(ends[slot])

    @property
    def memory_bytes(self) -> int:
        """Roughly; without the arenas, which the system may put out of memory."""
        arrays = (self.before, self.scales, self.ends, *self.columns.values())
        # An id is a string, a place in the list and one in the dictionary.
        return sum(array.nbytes for array in arrays) + 160 * len(self.ids)

    # Writing.

    def append(self, rows: Sequence[Row]) -> None:
        """Takes a slot for each; none of their ids twice.

        Raises InvalidInput for a vector or a value that is none of the table's, OSError where the disk is full: nothing
        was taken then.
        """
        if not rows:
            return
        vectors = self._checked(rows)
        values = {name: [value_of(row, name) for row in rows] for name in self.columns}
        columns = {name: self._encoded(name, of_rows) for name, of_rows in values.items()}
        self._append(vectors, [records.encode(row) for row in rows])
        for name, encoded in columns.items():
            self.columns[name].extend(encoded, values[name])
        self._number([row.id for row in rows])

    def reserve(self, rows: Sequence[Row]) -> None:
        """Has place on the disk for them. Raises OSError where there is none."""
        self.arenas["vectors"].reserve(len(rows) * self.table.dimension * 4)
        self.arenas["records"].reserve(sum(map(records.most_bytes, rows)))

    def _encoded(self, name: str, values: Sequence[Scalar | None]) -> NDArray[Any]:
        try:
            return self.columns[name].encoded(values)
        except ValueError as error:
            raise InvalidInput(f"field {name!r} has another type: {error}") from None

    def _checked(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        for row in rows:
            if row.vector.shape != (self.table.dimension,):
                shape = list(row.vector.shape)
                raise InvalidInput(f"row {row.id!r}: vector of shape {shape}, expected [{self.table.dimension}]")
        vectors = np.ascontiguousarray([row.vector for row in rows], np.float32)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise InvalidInput(f"row {rows[int(np.argmin(finite))].id!r}: its vector has NaN or an infinite value")
        return vectors

    def _append(self, vectors: NDArray[np.float32], encoded: Sequence[bytes]) -> None:
        arena = self.arenas["vectors"]
        size, checksum = arena.size, arena.checksum
        arena.append(vectors.data.cast("B"))
        try:
            start = self.arenas["records"].append(b"".join(encoded))
        except OSError:
            arena.cut(size, checksum)
            raise
        self.ends.extend(start + np.cumsum([len(record) for record in encoded], dtype=np.int64))
        self.scales.extend(scales(vectors))

    def _number(self, ids: Sequence[str]) -> None:
        """Last of all: whoever finds an id finds the rest."""
        first = len(self.ids)
        self.before.extend(np.fromiter((self.newest.get(id_, -1) for id_ in ids), np.int64, len(ids)))
        self.ids.extend(ids)
        self.newest.update(zip(ids, range(first, first + len(ids)), strict=True))

    def copy(self, other: Slots, slots: NDArray[np.int64]) -> None:
        """Takes some of another's slots over into this one, which has none yet."""
        for name, column in other.columns.items():
            self.columns[name] = column.taken(slots)
        for start in range(0, len(slots), _COPIED_ROWS):
            some = slots[start : start + _COPIED_ROWS]
            data = other.arenas["records"].bytes
            encoded = [data[begin:end].tobytes() for begin, end in map(other._record, some.tolist())]
            ids = [other.ids[slot] for slot in some.tolist()]
            self._append(other.vectors(int(some.max()) + 1)[some], encoded)
            self._number(ids)

    def flush(self) -> None:
        for arena in self.arenas.values():
            arena.flush()

    def close(self) -> None:
        for arena in self.arenas.values():
            arena.close()

    def discard(self) -> None:
        """Closes it and removes its files."""
        self.close()
        for path in arena_paths(self.folder, self.epoch).values():
            path.unlink(missing_ok=True)


def arena_paths(folder: Path, epoch: int) -> dict[str, Path]:
    return {kind: folder / f"{kind}-{epoch}" for kind in _ARENAS}


def epochs(folder: Path) -> set[int]:
    """Of the files that are there."""
    names = (path.name.partition("-") for path in folder.iterdir())
    return {int(epoch) for kind, _, epoch in names if kind in _ARENAS and epoch.isdecimal()}


def scales(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What makes each vector's length 1."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    found: NDArray[np.float64] = np.full(len(vectors), _NO_SCALE)
    np.divide(1, lengths, out=found, where=lengths >= _LEAST_LENGTH)
    return found.astype(np.float32)
