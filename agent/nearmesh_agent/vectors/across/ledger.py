"""What was changed in each collection, in order: for the sites that are to have it too, and so that deletes stay.

A third thing that is made from the journal, beside index and words. Of an id it keeps the number of the newest change
alone: who is behind gets its present state. A delete leaves a tombstone, and what is written over it says that it knew
of it. Rows of a collection that stays at its node are not counted; should others get it one day, they are then.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nearmesh_agent.vectors.across.clock import HybridClock
from nearmesh_agent.vectors.across.tables import Tables
from nearmesh_agent.vectors.model import Clock, Row, Write

_CHANGE = """
insert into changes(collection, id, number, at_s, source) values (?, ?, ?, ?, ?)
on conflict(collection, id) do update set number = excluded.number, at_s = excluded.at_s, source = excluded.source"""
_TOMBSTONE = """
insert into tombstones(collection, id, deleted, number, at_s, source, site) values (?, ?, ?, ?, ?, ?, ?)
on conflict(collection, id) do update set deleted = excluded.deleted, number = excluded.number, at_s = excluded.at_s,
source = excluded.source, site = excluded.site"""


@dataclass(frozen=True, slots=True)
class Changed:
    """That something happened to an id; what it is now, the collection knows."""

    number: int
    id: str


class NodeLedger:
    """Of all collections of a node, by identity. Implements `vectors.ledger.Ledger`."""

    def __init__(self, path: Path, *, node: str, wall_s: Callable[[], float] = time.time) -> None:
        """Raises ConfigError for a file that cannot be used."""
        self.tables = Tables(path)
        with self.tables.use() as tables:
            kept = dict(tables.all("select name, value from kept"))
        self.clock = HybridClock(node, last=kept.get("clock", 0), wall_s=wall_s)
        self._wall_s = wall_s
        self._position: int = kept.get("position", 0)
        # Those that other nodes are to have, and those that may have tombstones.
        with self.tables.use() as tables:
            followed = tables.all("select identity from collections where followed")
            deleted = tables.all(
                "select identity from collections where key in (select distinct collection from tombstones)"
            )
        self._followed = {identity for (identity,) in followed}
        self._deleted = {identity for (identity,) in deleted}
        # The last number of each collection before this process gave any.
        with self.tables.use() as tables:
            self._at_start = dict(tables.all("select identity, next - 1 from collections"))
        # Called in any thread when there is something for other nodes.
        self.news: Callable[[str], None] = lambda identity: None

    # Stamps.

    def now(self) -> int:
        """For a delete, or a change of a collection's settings; greater than any before."""
        return self.clock.now()

    def stamped(self, identity: str, rows: Sequence[Row]) -> list[Row]:
        """Rows that are written here, each with a clock of its own, over what is known to be deleted."""
        known = self.tombstones(identity, [row.id for row in rows])
        return [dataclasses.replace(row, clock=self._over(known.get(row.id, 0))) for row in rows]

    def _over(self, deleted: int) -> Clock:
        return Clock(written=self.clock.now(), written_after=deleted, deleted=deleted)

    def tombstones(self, identity: str, ids: Iterable[str]) -> Mapping[str, int]:
        """Of those that were deleted one day, when that was last."""
        if identity not in self._deleted:
            return {}
        with self.tables.use():
            return self._stones(self._key(identity), [*ids])

    def _stones(self, key: int, ids: list[str]) -> dict[str, int]:
        return dict(self.tables.among("select id, deleted from tombstones where collection = ? and id in", ids, key))

    # What the journal says.

    def apply(self, identity: str, write: Write, position: int = 0, *, source: str = "", site: str = "") -> None:
        """In the journal's order, once searches find it; the same again changes nothing but numbers.

        `source` is the node that it came from, at `site`; empty: here.
        """
        self.clock.heard(max((row.clock.written for row in write.rows), default=write.deleted_at))
        self.clock.heard(write.deleted_at)
        removed = [(id, write.deleted_at) for id in write.deleted if write.deleted_at]
        removed += [(row.id, row.clock.deleted) for row in write.rows if row.clock.deleted]
        followed = identity in self._followed
        if not (followed or removed):
            return
        with self.tables.use() as tables:
            key, now_s = self._key(identity), self._wall_s()
            news = self._news(key, removed)
            ids = [row.id for row in write.rows if followed] + [*news]
            numbers = self._numbers(key, ids)
            if followed:
                self._count(key, numbers, now_s, source)
            tables.many(_TOMBSTONE, ((key, id, at, numbers[id], now_s, source, site) for id, at in news.items()))
        if removed:
            self._deleted.add(identity)
        if followed:
            self.news(identity)

    def _news(self, key: int, removed: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Deletes that were not known."""
        known = self._stones(key, [id for id, _ in removed])
        return {id: at for id, at in sorted(removed, key=lambda one: one[1]) if at > known.get(id, 0)}

    def _count(self, key: int, numbers: Mapping[str, int], now_s: float, source: str = "") -> None:
        self.tables.many(_CHANGE, ((key, id, number, now_s, source) for id, number in numbers.items()))

    def _numbers(self, key: int, ids: Iterable[str]) -> dict[str, int]:
        """The next ones."""
        first = self.tables.one("select next from collections where key = ?", key)[0]
        numbers = {id: first + n for n, id in enumerate(dict.fromkeys(ids))}
        self.tables.run("update collections set next = ? where key = ?", first + len(numbers), key)
        return numbers

    def last(self, identity: str) -> int:
        """Number of the newest change; 0 where there was none, or none that is counted."""
        with self.tables.use() as tables:
            found = tables.one("select next from collections where identity = ?", identity)
            return int(found[0]) - 1 if found else 0

    # For the sites that are to have it.

    def follow(self, identity: str, followed: bool) -> None:
        """Whether other nodes are to have it: from now on its rows are counted, or no more."""
        if followed == (identity in self._followed):
            return
        with self.tables.use() as tables:
            key = self._key(identity)
            tables.run("update collections set followed = ? where key = ?", followed, key)
            if not followed and tables.run("update collections set filled = 0 where key = ? and filled", key):
                tables.run("delete from changes where collection = ?", key)
            (self._followed.add if followed else self._followed.discard)(identity)
        self.tables.commit()

    def filled(self, identity: str) -> bool:
        """Rows that were there before it was followed are counted, too."""
        with self.tables.use() as tables:
            return bool(tables.one("select filled from collections where key = ?", self._key(identity))[0])

    def fill(self, identity: str, ids: Sequence[str], *, last: bool = False) -> None:
        """Counts rows that were there before; with the `last` of them, what was deleted before."""
        with self.tables.use() as tables:
            key = self._key(identity)
            counted = "select id from changes where collection = ? and id in"
            there = {id for (id,) in tables.among(counted, [*ids], key)}
            self._count(key, self._numbers(key, [id for id in ids if id not in there]), self._wall_s())
            if last:
                tables.run(
                    "insert or ignore into changes select collection, id, number, at_s, source from tombstones "
                    "where collection = ?",
                    key,
                )
                tables.run("update collections set filled = 1 where key = ?", key)

    def log(self, identity: str) -> str:
        """Names the numbers' beginning."""
        with self.tables.use() as tables:
            return str(tables.one("select log from collections where key = ?", self._key(identity))[0])

    def since(self, identity: str, number: int, most: int, *, but: str = "") -> tuple[list[Changed], int]:
        """Changes after a number, in order, without those that the node `but` told of; and up to where was looked.

        They are on disk when it returns.
        """
        with self.tables.use() as tables:
            key = self._key(identity)
            found = tables.all(
                "select number, id, source from changes where collection = ? and number > ? order by number limit ?",
                *(key, number, most),
            )
            newest = int(tables.one("select next from collections where key = ?", key)[0]) - 1
        self.tables.commit()
        last = found[-1][0] if len(found) == most else newest
        return [Changed(n, id) for n, id, source in found if not but or source != but], max(last, number)

    def followed_by(self, identity: str, node: str) -> bool:
        """Whether a node has ever asked for its changes."""
        with self.tables.use() as tables:
            asked = (
                "select 1 from acknowledged where node = ? and collection = "
                "(select key from collections where identity = ?)"
            )
            return tables.one(asked, node, identity) is not None

    def begins_anew(self, identity: str, node: str, after: int) -> None:
        """A node has nothing after a number, or nothing any more: it is sent what it told of itself, too."""
        told = "collection = ? and source = ? and number > ?"
        with self.tables.use() as tables:
            tables.run(f"update changes set source = '' where {told}", self._key(identity), node, after)

    def at_start(self, identity: str) -> int:
        """Number of the newest change when the process began."""
        return int(self._at_start.get(identity, 0))

    def counts_anew(self, identity: str) -> str:
        """Another log, since others know numbers of this one that stand for other changes; on disk when it returns."""
        log = uuid.uuid4().hex
        with self.tables.use() as tables:
            tables.run("update collections set log = ? where key = ?", log, self._key(identity))
        self.tables.commit()
        return log

    # What this node has from others.

    def cursor(self, identity: str, node: str) -> tuple[str, int]:
        """Whose numbers, and up to which of them; ("", 0) where nothing came yet."""
        with self.tables.use() as tables:
            key = self._key(identity)
            found = tables.one("select log, number from cursors where collection = ? and node = ?", key, node)
            return (str(found[0]), int(found[1])) if found else ("", 0)

    def came(self, identity: str, node: str, log: str, number: int) -> None:
        """Everything up to it is in the journal."""
        with self.tables.use() as tables:
            tables.run("insert or replace into cursors values (?, ?, ?, ?)", self._key(identity), node, log, number)

    # The whole.

    @property
    def position(self) -> int:
        """Up to here the journal is not needed for it."""
        return self._position

    def save(self, position: int) -> None:
        """Everything up to it was applied; on disk when it returns."""
        position = max(position, self._position)
        with self.tables.use() as tables:
            for name, value in (("position", position), ("clock", self.clock.last)):
                tables.run("insert or replace into kept values (?, ?)", name, value)
        self.tables.commit()
        self._position = position

    @property
    def broken(self) -> bool:
        """It lacks what its disk refused, and the disk takes it by now."""
        return self.tables.lost and self.tables.room

    def forget(self, identity: str, before: int, up_to: int) -> int:
        """Tombstones from before a stamp that all have who are to; how many there were."""
        old = "collection = ? and deleted < ? and number <= ?"
        gone = f"(select id, number from tombstones where {old})"
        with self.tables.use() as tables:
            key = self._key(identity)
            tables.run(f"delete from changes where collection = ? and (id, number) in {gone}", key, key, before, up_to)
            return tables.run(f"delete from tombstones where {old}", key, before, up_to)

    def drop(self, identity: str) -> None:
        """The collection is gone."""
        with self.tables.use() as tables:
            key = self._key(identity)
            for table in ("changes", "tombstones", "cursors", "acknowledged", "receipts"):
                tables.run(f"delete from {table} where collection = ?", key)
            tables.run("delete from collections where key = ?", key)
        self._followed.discard(identity)
        self._deleted.discard(identity)
        self.tables.commit()

    def close(self) -> None:
        self.tables.close()

    def key(self, identity: str) -> int:
        """Of a collection in the tables."""
        with self.tables.use():
            return self._key(identity)

    def _key(self, identity: str) -> int:
        found = self.tables.one("select key from collections where identity = ?", identity)
        if found is None:
            log = uuid.uuid4().hex
            self.tables.run("insert into collections(identity, log, next) values (?, ?, 1)", identity, log)
            found = self.tables.one("select key from collections where identity = ?", identity)
        return int(found[0])
