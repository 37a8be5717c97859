"""PostgreSQL as the database of several control planes: how it is reached, and what a lost connection means.

An acknowledged change is on the server's disk (`synchronous_commit` at least `on`). A connection that breaks before the
commit was sent has changed nothing, so the change is made again on a new one, for a bounded time. One that breaks
during the commit leaves open what became of it: the caller is told just that, and never that it was made.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa

from nearmesh.errors import ConfigError, Unreachable

T = TypeVar("T")

log = logging.getLogger(__name__)

# By which control planes tell each other what was written.
CHANNEL = "nearmesh"
SCHEMES = ("postgresql", "postgres")

# How long a change waits for a server that went away: a restart of PostgreSQL takes less, a caller waits for longer.
PATIENCE_S = 10.0
AGAIN_AFTER_S = 0.1
# Connections of a control plane that froze must not keep locks: its transaction is ended by the server. Both bounds are
# far above what any transaction here takes.
IDLE_IN_TRANSACTION_MS = 2_000
STATEMENT_MS = 10_000
LOCK_MS = 4_000
# A server that is there answers at once; one that is cut off is found by TCP within the second.
CONNECT_S = 3
TCP_USER_MS = 5_000
# Any number that nobody else locks.
_START_LOCK = 7_400_001
_READ_ONLY = "25006"
# Failures that say "try again": a deadlock, a server that is starting or stopping, or that became a standby.
_PASSING = {"40P01", "40001", "57P01", "57P02", "57P03", _READ_ONLY}
_WEAK = ("off", "local")


def check_url(url: str) -> str:
    """The URL as it is. Raises ConfigError when it is none of PostgreSQL, or holds a password."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ConfigError(f"database: {url!r} is no URL; write postgresql://USER@HOST:PORT/NAME") from None
    if parsed.drivername not in SCHEMES:
        raise ConfigError(
            f"database: {parsed.drivername!r} is not offered; write postgresql://USER@HOST:PORT/NAME, "
            "or leave it out for SQLite below `data`"
        )
    if parsed.password is not None:
        raise ConfigError("database: a password does not belong into the file; set PGPASSWORD, or use ~/.pgpass")
    return url


def connect_arguments() -> dict[str, Any]:
    """What every connection asks of libpq."""
    return {
        "connect_timeout": CONNECT_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": TCP_USER_MS,
        "application_name": "nearmesh-controlplane",
    }


def conninfo(url: str) -> str:
    """The URL as libpq reads it."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def engine(url: str) -> sa.Engine:
    """One connection, opened when it is needed. Raises ConfigError when the driver is not installed."""
    try:
        made = sa.create_engine(
            sa.make_url(check_url(url)).set(drivername="postgresql+psycopg"),
            pool_size=1,
            max_overflow=0,
            connect_args=connect_arguments(),
        )
    except ModuleNotFoundError:
        raise ConfigError(
            "the driver for PostgreSQL is missing: pip install 'nearmesh-controlplane[postgresql]'"
        ) from None
    sa.event.listen(made, "connect", _set_up)
    sa.event.listen(made, "after_execute", _remember)
    return made


def _set_up(connection: Any, _record: Any) -> None:
    connection.autocommit = True
    connection.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}")
    connection.execute(f"SET statement_timeout = {STATEMENT_MS}")
    connection.execute(f"SET lock_timeout = {LOCK_MS}")
    commit = connection.execute("SELECT current_setting('synchronous_commit')").fetchone()[0]
    if commit in _WEAK:
        connection.execute("SET synchronous_commit = on")
    if connection.execute("SELECT current_setting('fsync')").fetchone()[0] != "on":
        log.error("the database server runs with fsync = off: what it acknowledges may be lost with its machine")
    connection.autocommit = False


def _remember(connection: sa.Connection, statement: Any, *_more: Any) -> None:
    """Which tables a transaction writes, so that the other control planes hear of it."""
    if isinstance(statement, sa.sql.dml.UpdateBase):
        connection.info.setdefault("written", set()).add(statement.table.name)  # type: ignore[union-attr]


@contextmanager
def transaction(engine: sa.Engine, author: str) -> Iterator[sa.Connection]:
    """A transaction whose end tells all control planes what was written, and by whom.

    Raises Broken when it may be tried again, and Unreachable when nobody knows whether it was committed.
    """
    committing = False
    try:
        with engine.connect() as connection, _dropped_if_read_only(connection):
            connection.info.pop("written", None)
            with connection.begin() as begun:
                yield connection
                written = connection.info.pop("written", None)
                if written:
                    connection.execute(sa.select(sa.func.pg_notify(CHANNEL, notice(author, written))))
                committing = bool(written)
                begun.commit()
    except (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError):
        raise
    except sa.exc.DBAPIError as error:
        raise _meant(error, committing) from None


@contextmanager
def _dropped_if_read_only(connection: sa.Connection) -> Iterator[None]:
    """A server that became a standby: the next connection may find the one that took its place."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _READ_ONLY:
            connection.invalidate()
        raise


def _meant(error: sa.exc.DBAPIError, committing: bool) -> Exception:
    """What a failure of the database, not of the change, comes to."""
    if not _passing(error):
        return Unreachable(
            f"the control plane's database cannot do it now, and nothing was changed: {_first_line(error)}"
        )
    if committing:
        return Unreachable(
            "the database went away while the change was being committed: it may have been made or not; look, and make "
            "it again if need be"
        )
    return Broken(_first_line(error))


def notice(author: str, tables: Iterable[str]) -> str:
    """By which a control plane tells the others what it wrote."""
    return json.dumps({"author": author, "tables": sorted(tables)})


class Broken(Exception):
    """The connection is gone, and nothing was changed through it."""


class Patience:
    """Tries again while the database is away, for `PATIENCE_S` from the start of its absence; after that each change
    has one try, so that they do not wait for one another."""

    def __init__(self, closing: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._closing = closing
        self._clock = clock
        self._away_since_s: float | None = None

    def keep_trying(self, once: Callable[[], T]) -> T:
        """The first result of `once` that is not Broken. Raises Unreachable."""
        while True:
            try:
                result = once()
            except Broken as broken:
                now_s = self._clock()
                if self._away_since_s is None:
                    self._away_since_s = now_s
                    log.warning("the database is away: %s", broken)
                if now_s - self._away_since_s >= PATIENCE_S or self._closing.wait(AGAIN_AFTER_S):
                    raise Unreachable(
                        f"the control plane's database is away, and nothing was changed: {broken}"
                    ) from None
            else:
                if self._away_since_s is not None:
                    log.info("the database is back after %.1f s", self._clock() - self._away_since_s)
                self._away_since_s = None
                return result


def _passing(error: sa.exc.DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    # Without a state it is libpq that speaks: it could not connect, or the connection is no more.
    connection = isinstance(error, sa.exc.OperationalError) and state is None
    return error.connection_invalidated or connection or state in _PASSING or str(state).startswith("08")


def _first_line(error: sa.exc.DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__


@contextmanager
def said_plainly(url: str) -> Iterator[None]:
    """For the start: a database that cannot be used is one clear line. Raises ConfigError, Unreachable."""
    place = sa.make_url(check_url(url)).render_as_string()
    try:
        yield
    except sa.exc.OperationalError as error:
        raise Unreachable(f"cannot use the database {place}: {_first_line(error)}") from None
    except sa.exc.ProgrammingError as error:
        raise ConfigError(f"cannot use the database {place}: {_first_line(error)}") from None


def one_at_a_time(connection: sa.Connection) -> None:
    """Of control planes that start at once, one makes what must be made once; until the end of the transaction."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_START_LOCK})")
