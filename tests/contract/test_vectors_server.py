"""What is a Milvus server's alone: it goes away and comes back, and asks for a token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from nearmesh_agent.vectors.model import Write
from nearmesh_agent.vectors.store.applier import Applier
from nearmesh_agent.vectors.store.journal import Journal
from nearmesh_agent.vectors.store.milvus import MilvusStore

from nearmesh.errors import MeshError, NotReady, Unreachable
from tests.milvus_server import TOKEN, MilvusServer, milvus_server, why_not
from tests.stored_rows import row, table, told

BOOKS = table("away")


@pytest.fixture(scope="module")
def server() -> Iterator[MilvusServer]:
    """One that may be killed."""
    if why_not():
        pytest.skip(why_not())
    with milvus_server(silent_s=10) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearmesh_agent.vectors.store.milvus._CALL_S", 2.0)
    monkeypatch.setattr("nearmesh_agent.vectors.store.milvus._CONNECT_S", 2.0)


def test_who_has_no_token_is_told(server: MilvusServer, impatient: None) -> None:
    for token in ("", "root:wrong"):
        with pytest.raises(NotReady, match="refuses the node's token"):
            MilvusStore(server.uri, token).tables()


def test_a_server_that_is_not_there_is_told(impatient: None) -> None:
    # A port below 1024 that nobody has here.
    with pytest.raises(Unreachable, match="does not answer"):
        MilvusStore("http://127.0.0.1:1", TOKEN).tables()


def test_what_was_there_is_seen_at_once_when_a_table_is_opened(server: MilvusServer) -> None:
    """A search that does not wait would be some seconds behind."""
    opened = table("opened")
    first = MilvusStore(server.uri, TOKEN)
    first.create(opened)
    for turn in range(3):
        first.write([Write(table=opened.name, rows=[row(f"r{turn}")])])
        second = MilvusStore(server.uri, TOKEN)
        second.create(opened)
        hits = second.search(opened.name, row(f"r{turn}").vector, 5)
        assert (hits[0].id, len(hits)) == (f"r{turn}", turn + 1)
        second.close()
    first.drop(opened.name)
    first.close()


def test_writes_go_on_while_a_server_is_away_and_are_there_when_it_is_back(
    server: MilvusServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MilvusStore(server.uri, TOKEN, settle_s=0.0)
    store.create(BOOKS)
    journal = Journal(tmp_path)
    applier = Applier(journal, store, known=lambda _name: True, saved=lambda: 0)
    state: dict[str, int] = {}

    def write(turn: int) -> None:
        names = [f"r{number:03d}" for number in range(0, 60, turn)]
        gone = [f"r{number:03d}" for number in range(turn, 60, 9)]
        journal.append_now([Write(table=BOOKS.name, rows=[row(name, turn) for name in names], deleted=gone)])
        state.update(dict.fromkeys(names, turn))
        for name in gone:
            state.pop(name, None)

    for turn in (1, 2):
        write(turn)
    applier.flush()
    write(3)
    # In the server, and not flushed.
    applier._step()
    server.kill()
    with monkeypatch.context() as impatient:
        impatient.setattr("nearmesh_agent.vectors.store.milvus._CALL_S", 1.0)
        for turn in (4, 5):
            write(turn)
            with pytest.raises(MeshError):
                applier.flush()
    server.start()
    # It answers before all of it is there again.
    for _ in range(10):
        with contextlib.suppress(MeshError):
            applier.flush()
            break
    assert applier.lag == 0
    found = [told(each) for page in store.scan(BOOKS.name) for each in page]
    assert found == [told(row(name, turn)) for name, turn in sorted(state.items())]
    assert store.count(BOOKS.name) == len(state)
    store.close()
    journal.close()
