"""The store on a Milvus server, where a connection or a table goes away in the middle of a call."""

from __future__ import annotations

from typing import Any

import pytest
from nearmesh_agent.vectors.model import Write
from nearmesh_agent.vectors.store.milvus import MilvusStore
from pymilvus.exceptions import MilvusException

from nearmesh.errors import MeshError, NotFound
from tests.stored_rows import row, table


class Closed:
    """A client of pymilvus whose connection was taken from it."""

    def _get_connection(self) -> Any:
        raise MilvusException(message="should create connection first")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MilvusStore:
    found = MilvusStore("http://milvus")
    monkeypatch.setattr(found, "_connected", Closed)
    found._tables["books"] = table("books")
    return found


def test_a_connection_that_is_closed_between_two_steps_of_a_write_is_an_error_of_the_mesh(store: MilvusStore) -> None:
    """The applier knows no other; its thread would end, and the journal fill up."""
    with pytest.raises(MeshError, match="should create connection first"):
        store.write([Write(table="books", rows=[row("a")])])


def test_a_table_that_was_dropped_while_it_was_written_to_holds_no_flush_up(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(method: str, name: str, **_: Any) -> None:
        raise NotFound(name)

    monkeypatch.setattr(store, "_call", gone)
    store._unflushed = {"books"}
    with pytest.raises(NotFound):
        store.flush()
    del store._tables["books"]
    store.flush()
    assert not store._unflushed
