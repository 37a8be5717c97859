"""The control plane's database: SQLite for one alone and PostgreSQL for several keep the same promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.prices.book import Prices
from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.feed import FeedState
from nearmesh_controlplane.routing.residency import ResidencyRules

from nearmesh.package import RoutePolicy
from nearmesh.whole import settled, whole
from tests.control_plane_state import digest_of, manifest, stored

Opened = Callable[[], Database]


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens one and the same database, again and again."""
    if request.param == "sqlite":
        return lambda: Database.open(tmp_path / "state.db")
    url = request.getfixturevalue("database_server").new_database()
    return lambda: Database.at(url)


@pytest.fixture
async def db(opened: Opened) -> AsyncIterator[Database]:
    database = opened()
    yield database
    database.close()


def insert(connection: sa.Connection, model: str) -> None:
    connection.execute(sa.insert(tables.policies).values(model=model, objective="nearest", deadline_ms=1.0))


def models(connection: sa.Connection) -> list[str]:
    return [row.model for row in connection.execute(sa.select(tables.policies).order_by(tables.policies.c.model))]


async def test_what_returned_is_there_for_the_next_process(opened: Opened, db: Database) -> None:
    await db.run(insert, "a")
    other = opened()
    assert await other.run(models) == ["a"]
    other.close()


async def test_a_change_that_fails_leaves_nothing(db: Database) -> None:
    def half(connection: sa.Connection) -> None:
        insert(connection, "a")
        raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        await db.run(half)
    assert await db.run(models) == []


async def test_a_name_that_is_taken_stays_taken(db: Database) -> None:
    await db.run(insert, "a")
    with pytest.raises(sa.exc.IntegrityError):
        await db.run(insert, "a")
    await db.run(insert, "b")
    assert await db.run(models) == ["a", "b"]


async def test_opening_again_keeps_everything(opened: Opened) -> None:
    for expected in ([], ["a"]):
        database = opened()
        assert await database.run(models) == expected
        if not expected:
            await database.run(insert, "a")
        database.close()


async def test_the_migrations_make_the_tables_that_the_code_knows(db: Database) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        return list(compare_metadata(MigrationContext.configure(connection), tables.metadata))

    assert await db.run(differences) == []


async def test_a_change_whose_caller_went_away_is_made_to_its_end(db: Database) -> None:
    seen: list[str] = []

    @whole
    async def change() -> None:
        await db.run(insert, "a")
        seen.append("a")

    task = asyncio.ensure_future(change())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled()
    assert (seen, await db.run(models)) == (["a"], ["a"])


async def test_values_come_back_as_they_were(db: Database) -> None:
    """Booleans, JSON, bytes, large and fractional numbers: each dialect has its own types for them."""

    def write(connection: sa.Connection) -> None:
        place = {"site": "s", "region": "r", "joined_at_s": 1764115200.123456}
        connection.execute(sa.insert(tables.nodes).values(id="n", kind="node", draining=True, **place))
        connection.execute(sa.insert(tables.replicas).values(node="n", digest="d", status=b"\x00\xff"))
        version = {"digest": "d", "model": "m", "version": "1", "size_bytes": 2**40, "created_at_s": 0.1}
        connection.execute(sa.insert(tables.versions).values(**version))
        deployment = {"model": "m", "version": "1", "digest": "d", "created_at_s": 0.1, "actor": "me"}
        connection.execute(sa.insert(tables.deployments).values(sites=["a", "ü"], **deployment))

    def read(connection: sa.Connection) -> tuple[Any, ...]:
        node = connection.execute(sa.select(tables.nodes)).one()
        return (
            (node.draining, node.cordoned, node.joined_at_s, node.set_usd_per_hour),
            connection.execute(sa.select(tables.replicas.c.status)).scalar_one(),
            connection.execute(sa.select(tables.versions.c.size_bytes)).scalar_one(),
            connection.execute(sa.select(tables.deployments.c.sites)).scalar_one(),
        )

    await db.run(write)
    assert await db.run(read) == ((True, False, 1764115200.123456, None), b"\x00\xff", 2**40, ["a", "ü"])


async def test_what_operators_say_of_prices_and_regions_comes_back(db: Database) -> None:
    async def read() -> tuple[Prices, ResidencyRules, Catalog]:
        changes = Generation()
        parts = Prices(db, changes, Currencies({}), FeedState()), ResidencyRules(db, changes), Catalog(db, changes)
        for part in parts:
            await part.restore()
        return parts

    prices, residency, catalog = await read()
    await catalog.add(manifest("m", "1"), digest_of("m", "1"), RoutePolicy(regions=("a",)), stored)
    assert (await read())[2].policy("m") == RoutePolicy(regions=("a",))
    await catalog.set_policy("m", "nearest", 0.0, ("c", "b"))
    for usd in (0.1, 0.2):
        await prices.set_transfer("a", "*", usd)
    await prices.set_transfer("*", "*", 0.3)
    await prices.unset_transfer("*", "*")
    for regions in (["a"], ["b", "a"]):
        await residency.set("a", regions)
    await residency.set("b", ["b"])
    await residency.set("b", [])
    again = await read()
    assert again[0].transfers() == prices.transfers() and len(prices.transfers()) == 1
    assert again[0].transfer_usd_per_gb("a", "z") == 0.2
    assert again[1].all() == residency.all() == [("a", frozenset({"a", "b"}))]
    assert again[2].policy("m") == RoutePolicy(objective="nearest", regions=("b", "c"))
