"""The lease on the leadership in a real PostgreSQL: who gets it, what it fences off, and a leader that froze."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psycopg
import pytest
import sqlalchemy as sa
from nearmesh_controlplane import database as tables
from nearmesh_controlplane import postgresql
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.peers import lease, told
from nearmesh_controlplane.peers.changes import Changes
from nearmesh_controlplane.peers.election import Election, steady_clock
from nearmesh_controlplane.peers.leadership import LEASE_S, Leadership
from nearmesh_controlplane.peers.role import Self, read_peers
from nearmesh_controlplane.peers.wire import connected

from nearmesh.errors import ConfigError, NotLeader, Unreachable
from tests.integration.mesh_processes import until
from tests.postgres import Postgres


@pytest.fixture
def url(database_server: Postgres) -> str:
    url = database_server.new_database()
    Database.at(url).close()
    return url


def one(name: str) -> Self:
    return Self(id=name, incarnation=f"{name}-1", public=f"{name}:1", mesh=f"{name}:2", http=f"{name}:3")


@dataclass
class Candidate:
    """A control plane as far as the election goes."""

    leadership: Leadership
    election: Election
    task: asyncio.Task[None]
    turned: asyncio.Event

    @property
    def term(self) -> int:
        return self.leadership.term(steady_clock())

    async def leads(self, within_s: float = 20.0) -> int:
        async with asyncio.timeout(within_s):
            while not self.term:
                self.turned.clear()
                await self.turned.wait()
        return self.term

    async def ends(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def candidate(url: str, name: str) -> AsyncIterator[Candidate]:
    leadership, turned = Leadership(f"{name}-1"), asyncio.Event()
    election = Election(url, one(name), leadership, turned.set)
    found = Candidate(leadership, election, asyncio.create_task(election.run()), turned)
    try:
        yield found
    finally:
        await found.ends()


@asynccontextmanager
async def database(url: str, term: Callable[[], int] = lambda: 0) -> AsyncIterator[Database]:
    db = await asyncio.to_thread(Database.at, url)
    db.term = term
    try:
        yield db
    finally:
        await asyncio.to_thread(db.close)


async def terms(db: Database) -> list[tuple[int, str]]:
    def read(connection: sa.Connection) -> list[tuple[int, str]]:
        rows = connection.execute(sa.select(tables.terms).order_by(tables.terms.c.term))
        return [(row.term, row.holder) for row in rows]

    return await db.run(read)


async def test_one_leads_and_who_gives_up_is_followed_at_once(url: str) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(candidate(url, "a"))
        assert await a.leads() == 1
        b = await stack.enter_async_context(candidate(url, "b"))
        db = await stack.enter_async_context(database(url))

        async def both() -> bool:
            listed = [peer.id for peer in await db.run(read_peers)]
            return listed == ["a", "b"] and b.leadership.holder is not None

        await until(both, what="both are listed, and b has heard who leads")
        assert (b.term, b.leadership.holder and b.leadership.holder.id) == (0, "a")
        assert [peer.term for peer in await db.run(read_peers)] == [1, 0]
        began = time.monotonic()
        await a.ends()
        assert (a.term, await b.leads()) == (0, 2)
        assert time.monotonic() - began < LEASE_S - 0.5
        assert await terms(db) == [(1, "a"), (2, "b")]


async def test_a_leader_that_says_nothing_more_is_replaced_when_its_lease_is_over(url: str) -> None:
    async with database(url) as db, connected(url) as dead:
        assert (await lease.claim(dead, one("dead"), LEASE_S)).term == 1
        began = time.monotonic()
        async with candidate(url, "b") as b:
            assert await b.leads() == 2
            assert LEASE_S - 0.5 < time.monotonic() - began < 5.0
        assert await terms(db) == [(1, "dead"), (2, "b")]


async def test_of_many_who_ask_for_an_expired_lease_one_gets_it(url: str) -> None:
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(connected(url)) for _ in range(8)]
        for term in range(1, 6):
            names = [one(f"plane-{term}-{n}") for n in range(len(wires))]
            answers = await asyncio.gather(
                *(lease.claim(wire, name, LEASE_S) for wire, name in zip(wires, names, strict=True))
            )
            won = [n for n, a in zip(names, answers, strict=True) if a.incarnation == n.incarnation]
            assert len(won) == 1
            assert {a.term for a, n in zip(answers, names, strict=True) if n in won} == {term}
            await wires[0].execute("UPDATE leadership SET expires_at_s = 0")


# What a leader writes


async def test_what_was_decided_in_a_term_that_is_over_is_refused(url: str) -> None:
    async with database(url, lambda: 1) as db, connected(url) as wire:
        with pytest.raises(NotLeader, match="term 1 is over"):
            await db.run_as_leader(told.write, told.ROUTES, 1, b"too early")
        await lease.claim(wire, one("a"), 0.01)
        await db.run_as_leader(told.write, told.ROUTES, 1, b"in time")
        await asyncio.sleep(0.05)
        # Expired, but nobody has taken it over: nobody else can have decided anything.
        await db.run_as_leader(told.write, told.ROUTES, 1, b"still")
        assert (await lease.claim(wire, one("b"), LEASE_S)).term == 2
        with pytest.raises(NotLeader, match="term 1 is over"):
            await db.run_as_leader(told.write, told.ROUTES, 1, b"too late")
        assert await db.run(told.read, told.ROUTES) == b"still"


async def test_a_change_of_the_leader_waits_for_what_the_leader_is_writing_and_a_renewal_does_not(url: str) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        writing.set()
        assert go_on.wait(5)
        told.write(connection, told.ROUTES, 1, b"whole")

    async with database(url, lambda: 1) as db, connected(url) as wire, connected(url) as rival:
        await lease.claim(wire, one("a"), 0.3)
        write = asyncio.ensure_future(db.run_as_leader(slow))
        await asyncio.to_thread(writing.wait)
        async with asyncio.timeout(1):
            assert (await lease.claim(wire, one("a"), 0.3)).term == 1
        await asyncio.sleep(0.35)
        taking_over = asyncio.ensure_future(lease.claim(rival, one("b"), LEASE_S))
        done, _ = await asyncio.wait({taking_over}, timeout=0.3)
        assert not done, "the leadership changed in the middle of its leader's transaction"
        go_on.set()
        await write
        assert (await taking_over).term == 2
        assert await db.run(told.read, told.ROUTES) == b"whole"


async def test_a_leader_that_froze_in_a_transaction_does_not_hold_up_the_next(url: str) -> None:
    frozen, thaw = threading.Event(), threading.Event()
    tries = 0

    def freezes(connection: sa.Connection) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            frozen.set()
            assert thaw.wait(10)
        told.write(connection, told.ROUTES, 1, b"too late")

    async with database(url, lambda: 1) as db, connected(url) as wire:
        await lease.claim(wire, one("a"), 0.1)
        write = asyncio.ensure_future(db.run_as_leader(freezes))
        await asyncio.to_thread(frozen.wait)
        await asyncio.sleep(0.15)
        began = time.monotonic()
        assert (await lease.claim(wire, one("b"), LEASE_S)).term == 2
        assert time.monotonic() - began < postgresql.IDLE_IN_TRANSACTION_MS / 1000 + 1.0
        thaw.set()
        with pytest.raises(NotLeader, match="term 1 is over"):
            await write
        assert await db.run(told.read, told.ROUTES) == b""


# What others hear


async def test_what_one_wrote_the_others_are_told_of_and_it_itself_is_not(url: str) -> None:
    heard: dict[str, asyncio.Queue[object]] = {"a": asyncio.Queue(), "b": asyncio.Queue()}
    async with database(url) as db:
        db.author = "a"
        tasks = []
        for name, queue in heard.items():

            async def read(written: object, queue: asyncio.Queue[object] = queue) -> None:
                queue.put_nowait(written)

            tasks.append(asyncio.create_task(Changes(url, name, read).run()))
        try:
            async with asyncio.timeout(10):
                assert [await queue.get() for queue in heard.values()] == [None, None], "all is read at the start"

                def write(connection: sa.Connection) -> None:
                    values = {"model": "m", "objective": "nearest", "deadline_ms": 1.0}
                    connection.execute(sa.insert(tables.policies).values(**values))

                await db.run(write)
                assert await heard["b"].get() == {"policies"}
                db.author = "c"
                await db.run(lambda connection: connection.execute(sa.delete(tables.policies)))
                assert await heard["a"].get() == {"policies"}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


# Without the server


async def test_a_change_outlasts_a_restart_of_the_server_and_a_longer_absence_is_said(
    url: str, database_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(connection: sa.Connection) -> None:
        told.write(connection, "test", 0, b"written")

    async with database(url) as db, candidate(url, "a") as a:
        await a.leads()
        database_server.stop()
        try:
            writing = asyncio.ensure_future(db.run(write))
            await asyncio.sleep(1.0)
            assert not writing.done()
        finally:
            database_server.start()
        await writing
        assert await db.run(told.read, "test") == b"written"
        assert await a.leads() >= 1
        monkeypatch.setattr(postgresql, "PATIENCE_S", 3.0)
        database_server.stop()
        try:
            began = time.monotonic()
            with pytest.raises(Unreachable, match="database is away, and nothing was changed"):
                await db.run(write)
            assert postgresql.PATIENCE_S <= time.monotonic() - began < postgresql.PATIENCE_S + 5
            assert a.term == 0, "nobody leads whom the database cannot confirm"
            # The next one does not wait as long again.
            began = time.monotonic()
            with pytest.raises(Unreachable):
                await db.run(write)
            assert time.monotonic() - began < 1.0
        finally:
            database_server.start()
        await db.run(write)
        await a.leads()


async def test_a_commit_of_which_nobody_heard_is_told_as_just_that(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with database(url) as db, connected(url) as wire:
        commit = sa.engine.RootTransaction.commit

        def cut(transaction: sa.engine.RootTransaction) -> None:
            pid = transaction.connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            with psycopg.connect(url) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            monkeypatch.setattr(sa.engine.RootTransaction, "commit", commit)
            commit(transaction)

        monkeypatch.setattr(sa.engine.RootTransaction, "commit", cut)
        with pytest.raises(Unreachable, match="may have been made or not"):
            await db.run(told.write, "test", 0, b"?")
        assert await db.run(told.read, "test") == b""
        await db.run(told.write, "test", 0, b"again")
        assert await db.run(told.read, "test") == b"again"
        assert (await (await wire.execute("SHOW synchronous_commit")).fetchone())[0] == "on"


async def test_a_server_that_is_not_there_or_lets_nobody_in_is_one_clear_line(database_server: Postgres) -> None:
    with pytest.raises(Unreachable, match=r"cannot use the database postgresql://mesh@127\.0\.0\.1:1/x: "):
        Database.at("postgresql://mesh@127.0.0.1:1/x")
    with pytest.raises(Unreachable, match='database "nowhere" does not exist'):
        Database.at(database_server.url("nowhere"))


async def test_a_database_of_a_newer_control_plane_is_left_alone(url: str) -> None:
    async with connected(url) as wire:
        await wire.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="newer control plane"):
        Database.at(url)
