"""The database: what returned is written, what failed is not, and a schema is whole or absent."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database, make_durable, migrate

from nearmesh.errors import Unreachable


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database.open(tmp_path / "state.db")
    yield database
    database.close()


def insert(connection: sa.Connection, model: str) -> None:
    connection.execute(sa.insert(tables.policies).values(model=model, objective="nearest", deadline_ms=1.0))


def models(connection: sa.Connection) -> list[str]:
    return [row.model for row in connection.execute(sa.select(tables.policies).order_by(tables.policies.c.model))]


async def test_what_returned_is_there_for_the_next_process(tmp_path: Path, db: Database) -> None:
    await db.run(insert, "a")
    with sqlite3.connect(f"file:{tmp_path / 'state.db'}?mode=ro", uri=True) as other:
        assert other.execute("SELECT model FROM policies").fetchall() == [("a",)]
    other.close()


async def test_a_change_that_fails_leaves_nothing(db: Database) -> None:
    def half(connection: sa.Connection) -> None:
        insert(connection, "a")
        raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        await db.run(half)
    assert await db.run(models) == []


async def test_a_full_disk_is_told_and_ends_nothing(db: Database) -> None:
    def full(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        for number in range(1000):
            insert(connection, f"{number}-{'x' * 1000}")

    def roomy(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")

    with pytest.raises(Unreachable, match="database or disk is full; look at the disk"):
        await db.run(full)
    await db.run(roomy)
    assert await db.run(models) == []
    await db.run(insert, "a")
    assert await db.run(models) == ["a"]


async def test_every_commit_is_synced(db: Database) -> None:
    def pragmas(connection: sa.Connection) -> tuple[Any, Any]:
        return tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous"))

    assert await db.run(pragmas) == ("wal", 2)


async def test_opening_again_keeps_everything(tmp_path: Path) -> None:
    for expected in ([], ["a"]):
        database = Database.open(tmp_path / "state.db")
        assert await database.run(models) == expected
        if not expected:
            await database.run(insert, "a")
        database.close()


@pytest.mark.parametrize("fails_at", range(1, 21))
def test_a_migration_that_was_cut_off_starts_anew(tmp_path: Path, fails_at: int) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'state.db'}", poolclass=sa.pool.StaticPool)
    seen = 0

    @sa.event.listens_for(engine, "before_cursor_execute")
    def cut(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        nonlocal seen
        changes = statement.lstrip().startswith(("CREATE", "INSERT", "ALTER", "UPDATE"))
        seen += changes
        if changes and seen == fails_at:
            raise ConnectionAbortedError(statement)

    make_durable(engine)
    with pytest.raises(ConnectionAbortedError):
        migrate(engine)
    engine.dispose()
    database = Database.open(tmp_path / "state.db")
    database.close()


async def test_the_migrations_make_the_tables_that_the_code_knows(db: Database) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        return list(compare_metadata(MigrationContext.configure(connection), tables.metadata))

    assert await db.run(differences) == []
