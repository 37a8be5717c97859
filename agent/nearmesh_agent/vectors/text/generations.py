"""From one embedder's vectors to another's: a second table is filled behind the first, and takes over when it is whole.

The next generation never has a row that the serving one lacks, nor one of another text: whoever writes to the serving
table takes what it touches out of the next one. So it is whole when it has as many rows, and what it lacks is what the
one has and the other has not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from nearmesh.errors import InvalidInput, Superseded
from nearmesh_agent.vectors.changes import Change, Kept
from nearmesh_agent.vectors.collections import CollectionSpec, Generation
from nearmesh_agent.vectors.model import Row, Vector, Write
from nearmesh_agent.vectors.table import OpenTable

# Rows that are looked at for some that the next generation lacks: at first so many times as many as are asked for, and
# further where it has all of these, so that it takes no longer than writes wait to come to the end of a million.
_LOOK_AT, _LOOK_AT_MOST = 8, 8_192


@dataclass(frozen=True, slots=True)
class Lack:
    """A row that the next generation has no vector of."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A vector, and what it was made of."""

    text_hash: bytes
    vector: Vector


def text_hash(text: str) -> bytes:
    """By which a vector is known to be of a row's text still."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def lacking(serving: OpenTable, filling: OpenTable, most: int, after: str = "") -> tuple[list[Lack], str]:
    """Some of what the next generation lacks, behind `after`, and the id to go on after; empty: that was the end.

    Raises InvalidInput for a row that no embedder can do anything with.
    """
    found: list[Lack] = []
    look_at = _LOOK_AT * most
    while ids := serving.index.select(None, after=after, limit=look_at):
        # It has none that the other has not, so these reach at least as far.
        there = set(filling.index.select(None, after=after, limit=len(ids)))
        missing, room = [id for id in ids if id not in there], most - len(found)
        found += map(_lack, serving.index.rows(missing[:room]))
        if len(found) == most:
            return found, found[-1].id
        after = ids[-1] if len(missing) <= room else missing[room - 1]
        look_at = max(look_at, min(2 * look_at, _LOOK_AT_MOST))
    return found, ""


def _lack(row: Row) -> Lack:
    if not row.text.strip():
        raise InvalidInput(f"row {row.id!r} has no text to make a vector of; delete it, or give it one")
    return Lack(row.id, row.text)


def lacks(serving: OpenTable, filling: OpenTable) -> int:
    """How many rows the next generation has not."""
    return serving.index.count() - filling.index.count()


@dataclass(slots=True, kw_only=True)
class Fill(Change):
    """Vectors for the next generation: of rows that still have the text that they were made of."""

    fills: ClassVar[bool] = True
    generation: int
    made: Mapping[str, Made]

    def plan(self, kept: Kept) -> None:
        filling = still_filling(kept, self.generation)
        rows = [row for row in kept.serving.index.rows(list(self.made)) if self._fits(row)]
        # The same rows as before to everybody else: nothing that sources count comes or goes.
        self.old = rows
        if rows:
            filled = [replace(row, vector=self.made[row.id].vector) for row in rows]
            self.writes = [Write(table=filling.table.name, rows=filled)]

    def _fits(self, row: Row) -> bool:
        return text_hash(row.text) == self.made[row.id].text_hash


@dataclass(slots=True, kw_only=True)
class Switch(Change):
    """The next generation takes over if it is whole; without ids, so that no write is beside it."""

    fills: ClassVar[bool] = True
    generation: int
    # Says on disk that it serves, and has searches and writes go to it.
    take_over: Callable[[], None]
    lacks: int = 0

    def plan(self, kept: Kept) -> None:
        filling = still_filling(kept, self.generation)
        self.lacks = lacks(kept.serving, filling)
        if not self.lacks:
            self.take_over()


@dataclass(slots=True, kw_only=True)
class Cancel(Change):
    """The next generation is given up; without ids, so that no write is beside it."""

    fills: ClassVar[bool] = True
    generation: int
    give_up: Callable[[], None]

    def plan(self, kept: Kept) -> None:
        still_filling(kept, self.generation)
        self.give_up()


def still_filling(kept: Kept, generation: int) -> OpenTable:
    """Raises Superseded where another one is filled by now, or none."""
    filling = kept.filling
    if filling is None or kept.spec.filling is None or kept.spec.filling.number != generation:
        raise Superseded(f"generation {generation} of {kept.spec.name!r} is not being filled any more")
    return filling


def begun(spec: CollectionSpec, *, embedder: str, digest: str, dimension: int) -> CollectionSpec:
    """With the next generation to fill. Raises InvalidInput."""
    if not spec.serving.embedder:
        raise InvalidInput(f"collection {spec.name!r} has no embedder: its callers bring the vectors")
    if spec.filling:
        raise InvalidInput(
            f"generation {spec.filling.number} of {spec.name!r} is being filled by {spec.filling.embedder!r} "
            f"{spec.filling.digest}; cancel it first"
        )
    # A number that was given up is not used again: what was written under it is not to come into another's table.
    number = 1 + max(spec.last_number, spec.serving.number)
    filling = Generation(number=number, embedder=embedder, digest=digest, dimension=dimension)
    return replace(spec, filling=filling, last_number=number)


def switched(spec: CollectionSpec) -> CollectionSpec:
    """The next generation serves."""
    assert spec.filling
    return replace(spec, serving=spec.filling, filling=None, former=(*spec.former, spec.serving))


def given_up(spec: CollectionSpec) -> CollectionSpec:
    """Without a next generation."""
    assert spec.filling
    return replace(spec, filling=None, former=(*spec.former, spec.filling))
