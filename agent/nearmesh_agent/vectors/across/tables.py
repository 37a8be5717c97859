"""The tables in which a node keeps what was changed, for whom, and who knows of it: SQLite, beside the journal.

Made from the journal, as an index is: what is lost here with the process is applied again, from a position on that is
written in the same transaction. What other nodes build on is on disk before they are told.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nearmesh.errors import ConfigError, StorageFull

log = logging.getLogger(__name__)

_SCHEMA = """
create table if not exists collections(
    key integer primary key, identity text not null unique, log text not null, next integer not null,
    followed integer not null default 0, filled integer not null default 0);
create table if not exists changes(
    collection integer not null, id text not null, number integer not null, at_s real not null, source text not null,
    primary key (collection, id)) without rowid;
create unique index if not exists changes_in_order on changes(collection, number);
create table if not exists tombstones(
    collection integer not null, id text not null, deleted integer not null, number integer not null,
    at_s real not null, source text not null, site text not null, primary key (collection, id)) without rowid;
create index if not exists tombstones_in_order on tombstones(collection, number);
create table if not exists cursors(
    collection integer not null, node text not null, log text not null, number integer not null,
    primary key (collection, node)) without rowid;
create table if not exists acknowledged(
    collection integer not null, node text not null, site text not null, number integer not null, at_s real not null,
    primary key (collection, node)) without rowid;
create table if not exists receipts(
    collection integer not null, node text not null, number integer not null, site text not null, at_s real not null,
    primary key (collection, node, number)) without rowid;
create table if not exists kept(name text primary key, value integer not null) without rowid;
create table if not exists dropped(
    identity text primary key, at_s real not null, sites text not null, offer blob not null) without rowid;
"""
# Of what one statement may name; SQLite takes 32,766.
_MOST = 10_000
# On a disk that has less, what was lost is not begun anew: it would be lost again.
_ROOM_BYTES = 64 * 1024 * 1024


class Tables:
    """One connection for all threads, one at a time. What is written is seen at once, and on disk after `commit`."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that is none of ours."""
        self._lock = threading.RLock()
        self._path = path
        self._lost = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._connection.executescript("pragma journal_mode = wal; pragma synchronous = full;" + _SCHEMA)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ConfigError(f"{path} cannot be used: {error}; without it, other sites get every row anew") from None

    @contextmanager
    def use(self) -> Iterator[Tables]:
        """No other thread in between; what fails changes nothing. Raises StorageFull where the disk refuses."""
        with self._lock, self._told():
            if not self._connection.in_transaction:
                self._connection.execute("begin")
            self._connection.execute("savepoint part")
            try:
                yield self
            except BaseException:
                self._take_back()
                raise
            self._connection.execute("release part")

    def _take_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("rollback to part")
            self._connection.execute("release part")
        else:
            # A full disk takes the whole transaction back, and with it what others had written: the journal has it.
            self._lost = True

    def one(self, sql: str, *values: Any) -> Any:
        """The first row; None where there is none."""
        return self._connection.execute(sql, values).fetchone()

    def all(self, sql: str, *values: Any) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def among(self, sql: str, ids: list[str], *values: Any) -> Iterator[Any]:
        """`sql` ends in "in", and is asked for so many ids at a time as fit."""
        for at in range(0, len(ids), _MOST):
            part = ids[at : at + _MOST]
            yield from self._connection.execute(f"{sql} ({','.join('?' * len(part))})", (*values, *part))

    def run(self, sql: str, *values: Any) -> int:
        """How many rows were changed."""
        return self._connection.execute(sql, values).rowcount

    def many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._connection.executemany(sql, rows)

    def commit(self) -> None:
        """What was written is on disk when it returns. Raises StorageFull."""
        with self._lock, self._told():
            if not self._connection.in_transaction:
                return
            try:
                self._connection.execute("commit")
            except sqlite3.OperationalError:
                # SQLite takes everything back then, and what is written next would go as if it were whole.
                self._lost |= not self._connection.in_transaction
                raise

    @property
    def lost(self) -> bool:
        """They lack what was written to them; the journal has it, for a process that begins anew."""
        return self._lost

    @property
    def room(self) -> bool:
        """Whether their disk takes more."""
        return shutil.disk_usage(self._path.parent).free >= _ROOM_BYTES

    def close(self) -> None:
        """What was not committed is written as well. Safe to repeat."""
        with self._lock:
            try:
                self.commit()
            except sqlite3.ProgrammingError:
                return
            except StorageFull as error:
                log.warning("%s", error.message)
            self._connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        if self._lost:
            raise StorageFull(
                f"{self._path} lacks what its disk refused; it is written anew when the process begins anew"
            )
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageFull(f"{self._path} cannot be written: {error}") from None
