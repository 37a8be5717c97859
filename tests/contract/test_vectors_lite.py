"""What is Milvus Lite's alone: its process ends and begins anew, and nobody else reaches it."""

from __future__ import annotations

import contextlib
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from nearmesh_agent.vectors.model import Table, Write
from nearmesh_agent.vectors.store import lite as lite_module
from nearmesh_agent.vectors.store.lite import LiteStore

from nearmesh.errors import NotReady, Unreachable
from tests.signals import send
from tests.stored_rows import row, table, told


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteStore]:
    """One for all tests; each takes tables of its own."""
    store = LiteStore(tmp_path_factory.mktemp("lite") / "milvus.db")
    yield store
    store.close()


def kill(store: LiteStore) -> None:
    process = psutil.Process(store.pid)
    process.kill()
    psutil.wait_procs([process], timeout=10)


def told_that_it_began_anew(call: Callable[[], None]) -> None:
    """By the first call that does not meet the old one's end."""
    with pytest.raises(NotReady, match="began anew: what it had not flushed is to be written again"):
        for _ in range(10):
            with contextlib.suppress(Unreachable):
                call()


def here(store: LiteStore, of: Table) -> list[str]:
    return [found.id for page in store.scan(of.name) for found in page]


def test_a_flush_answers_only_for_what_one_process_was_given(lite: LiteStore) -> None:
    """With an index of the engine's and without."""
    both = [table("flushed"), table("flushed_hnsw", index_type="HNSW")]
    for books in both:
        lite.create(books)
    lite.write([Write(table=books.name, rows=[row("flushed")]) for books in both])
    lite.flush()
    lite.write([Write(table=books.name, rows=[row("lost")], deleted=["flushed"]) for books in both])
    kill(lite)
    told_that_it_began_anew(lite.flush)
    for books in both:
        assert here(lite, books) == ["flushed"], books
        assert [hit.id for hit in lite.search(books.name, row("x").vector, 5)] == ["flushed"], books
    # The one who was told writes it again.
    lite.write([Write(table=books.name, rows=[row("lost")], deleted=["flushed"]) for books in both])
    lite.flush()
    kill(lite)
    for books in both:
        assert [told(found) for found in lite.get(books.name, ["flushed", "lost"])] == [told(row("lost"))], books
        assert [hit.id for hit in lite.search(books.name, row("x").vector, 5)] == ["lost"], books


def test_a_call_outlives_an_end_that_is_noticed_late(lite: LiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket closes first: both tries of a call have met the one that was ending."""
    books = table("noticed_late")
    lite.create(books)
    lite.write([Write(table=books.name, rows=[row("a")])])
    lite.flush()
    went = lite._process._went

    def late(*arguments: Any) -> float:
        time.sleep(0.5)
        return went(*arguments)

    monkeypatch.setattr(lite._process, "_went", late)
    kill(lite)
    assert [found.id for found in lite.get(books.name, ["a"])] == ["a"]


def test_what_was_not_flushed_is_not_written_on_in_another_process(lite: LiteStore) -> None:
    books = table("not_flushed")
    lite.create(books)
    lite.write([Write(table=books.name, rows=[row("a")])])
    kill(lite)
    told_that_it_began_anew(lambda: lite.write([Write(table=books.name, rows=[row("b")])]))
    lite.write([Write(table=books.name, rows=[row("c")])])
    lite.flush()
    assert here(lite, books) == ["c"]


def test_only_this_process_reaches_it(lite: LiteStore) -> None:
    """Lite's own server listens on a port of the machine, and asks nobody for a token."""
    lite.create(table("reached"))
    process = psutil.Process(lite.pid)
    assert [found.laddr for found in process.net_connections("inet") if found.status == psutil.CONN_LISTEN] == []
    (socket,) = {Path(found.laddr) for found in process.net_connections("unix") if found.laddr}
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


def test_an_orderly_end_keeps_what_was_not_flushed(tmp_path: Path) -> None:
    first, books = LiteStore(tmp_path / "milvus.db"), table()
    first.create(books)
    first.write([Write(table=books.name, rows=[row("a")])])
    pid = first.pid
    first.close()
    first.close()
    assert not psutil.pid_exists(pid)
    second = LiteStore(tmp_path / "milvus.db")
    second.create(books)
    assert here(second, books) == ["a"]
    second.close()


def test_a_terminal_that_is_interrupted_does_not_end_it(lite: LiteStore) -> None:
    lite.create(table("interrupted"))
    life = lite._process.life
    send(lite.pid, signal.SIGINT)
    assert lite.count("interrupted") == 0
    assert lite._process.life == life


def test_where_its_socket_lies(tmp_path: Path) -> None:
    folder = tmp_path / "milvus.db"
    live = lite_module.private_folder(folder)
    assert live.parent == tmp_path or len(str(tmp_path)) > 60
    gone = tmp_path / f".milvus.db.{2**30}.left"
    gone.mkdir()
    mine = tmp_path / ".milvus.db.1.somebody"
    mine.mkdir()
    again = lite_module.private_folder(folder)
    assert not gone.exists() and mine.exists() and live.exists() and again != live
    deep = tmp_path / ("x" * 90) / "milvus.db"
    deep.parent.mkdir()
    elsewhere = lite_module.private_folder(deep)
    assert deep.parent not in elsewhere.parents and len(str(elsewhere / "1000")) < 108
    for each in (live, again, elsewhere):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
        each.rmdir()
