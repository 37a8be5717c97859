"""What takes the journal's entries into the store: in order, again after a failure, and forgotten only when safe."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from nearmesh_agent.vectors.model import Row, Write
from nearmesh_agent.vectors.store import journal as journal_file
from nearmesh_agent.vectors.store.applier import Applier, Pace
from nearmesh_agent.vectors.store.journal import Journal

from nearmesh.errors import NotFound, Unreachable
from tests.stored_rows import row


class Kept:
    """A store in memory, with a disk that a crash leaves it with."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.disk: dict[tuple[str, str], Row] = {}
        self.tables_here = {"books"}
        self.calls: list[int] = []
        self.flushed = threading.Event()
        self.failing: Callable[[], None] = lambda: None

    def write(self, writes: Sequence[Write]) -> None:
        self.failing()
        self.calls.append(len(writes))
        for write in writes:
            if write.table not in self.tables_here:
                raise NotFound(write.table)
            for row_id in write.deleted:
                self.rows.pop((write.table, row_id), None)
            self.rows.update({(write.table, each.id): each for each in write.rows})

    def flush(self) -> None:
        self.failing()
        self.disk = dict(self.rows)
        self.flushed.set()

    def crash(self) -> None:
        self.rows = dict(self.disk)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(journal_file, "_WORTH_LEAVING_BYTES", 1)
    made = Journal(tmp_path, segment_bytes=300)
    yield made
    made.close()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def applier(journal: Journal, store: Kept, **more: object) -> Applier:
    given: dict[str, object] = {
        "settle_s": math.inf,
        "known": store.tables_here.__contains__,
        "saved": lambda: 10**9,
        **more,
    }
    return Applier(journal, store, **given)  # type: ignore[arg-type]


def put(journal: Journal, *names: str, seed: int = 0, table: str = "books") -> int:
    return journal.append_now([Write(table=table, rows=[row(name, seed)]) for name in names])


def here(rows: dict[tuple[str, str], Row]) -> dict[str, str]:
    return {row_id: each.text for (_, row_id), each in rows.items()}


def test_what_is_in_the_journal_comes_into_the_store_and_is_forgotten(journal: Journal) -> None:
    store = Kept()
    taking = applier(journal, store)
    put(journal, "a", "b")
    journal.append_now([Write(table="books", rows=[row("c")], deleted=["a"])])
    assert taking.lag == 3
    taking.flush()
    assert here(store.disk).keys() == {"b", "c"}
    assert (taking.lag, taking.applied, taking.durable, journal.first, journal.size_bytes) == (0, 3, 3, 4, 0)


def test_no_more_is_forgotten_than_saved_indexes_know(journal: Journal) -> None:
    store, saved = Kept(), 1
    taking = applier(journal, store, saved=lambda: saved)
    put(journal, "a", "b", "c")
    taking.flush()
    assert journal.first <= 2
    saved = 3
    taking.flush()
    assert journal.first == 4


def test_after_a_failure_it_begins_again_behind_the_last_flush(journal: Journal) -> None:
    """What a store had taken and not flushed may be gone when it is back."""
    store = Kept()
    taking = applier(journal, store)
    put(journal, "a")
    taking.flush()
    put(journal, "b", "c")

    def fails() -> None:
        store.crash()
        raise Unreachable("Milvus is away")

    store.failing = fails
    with pytest.raises(Unreachable):
        taking.flush()
    assert (taking.applied, taking.durable) == (1, 1)
    store.failing = lambda: None
    taking.flush()
    assert here(store.disk).keys() == {"a", "b", "c"}


def test_a_server_keeps_what_it_took_and_gets_only_the_rest_after_a_failure(journal: Journal) -> None:
    """To write all of it again would bring a deleted row back, until its delete is written again."""
    store = Kept()
    taking = applier(journal, store, settle_s=0.0)
    put(journal, "a")
    taking.flush()
    put(journal, "b")

    def fails() -> None:
        raise Unreachable("Milvus is away")

    store.failing = fails
    with pytest.raises(Unreachable):
        taking.flush()
    assert (taking.applied, taking.visible) == (1, 1)
    store.failing = lambda: None
    store.calls.clear()
    taking.flush()
    assert store.calls == [1]
    assert here(store.disk).keys() == {"a", "b"}


def test_what_lite_may_lose_is_not_relied_on(journal: Journal) -> None:
    store = Kept()
    taking = applier(journal, store, pace=Pace(rows=10))
    put(journal, "a")
    taking._step()
    assert (taking.applied, taking.visible) == (1, 0)
    taking.flush()
    assert taking.visible == 1


def test_a_new_applier_takes_over_all_that_was_not_forgotten(journal: Journal) -> None:
    store = Kept()
    put(journal, "a", seed=1)
    applier(journal, store, saved=lambda: 0).flush()
    put(journal, "a", "b", seed=2)
    store.crash()
    taking = applier(journal, store)
    assert taking.applied == 0
    taking.flush()
    assert here(store.disk) == {"a": "text 2 of a", "b": "text 2 of b"}


def test_what_is_for_a_table_that_is_gone_is_passed_over(journal: Journal) -> None:
    store = Kept()
    put(journal, "a", table="dropped")
    put(journal, "b")
    applier(journal, store).flush()
    assert here(store.disk).keys() == {"b"}


def test_a_table_that_is_dropped_in_between_holds_nobody_up(journal: Journal) -> None:
    store = Kept()
    known = {"books", "other"}
    put(journal, "a", table="other")
    put(journal, "b")
    taking = applier(journal, store, known=lambda name: name in known)
    store.failing = lambda: known.discard("other")
    taking.flush()
    assert here(store.disk).keys() == {"b"}


def test_a_table_that_should_be_there_and_is_not_is_told(journal: Journal) -> None:
    store = Kept()
    put(journal, "a", table="other")
    with pytest.raises(NotFound):
        applier(journal, store, known=lambda _name: True).flush()


@pytest.mark.parametrize(
    ("rows", "since_s", "now_s", "due"),
    [(0, None, 100.0, False), (5, 0.0, 29.9, False), (5, 0.0, 30.0, True), (1000, 0.0, 0.0, True)],
)
def test_when_it_is_time_to_flush(rows: int, since_s: float | None, now_s: float, due: bool) -> None:
    assert Pace(rows=1000, after_s=30.0).due(rows, since_s, now_s) is due


def test_searches_of_the_engine_see_a_row_some_time_after_it_was_written(journal: Journal) -> None:
    clock = Clock()
    taking = applier(journal, Kept(), settle_s=6.0, clock=clock)
    put(journal, "a")
    taking.flush()
    assert (taking.applied, taking.visible) == (1, 0)
    clock.now_s = 5.0
    put(journal, "b")
    taking.flush()
    assert taking.visible == 0
    clock.now_s = 6.0
    assert taking.visible == 1
    clock.now_s = 11.0
    assert taking.visible == 2


@pytest.mark.parametrize(
    "failure", [Unreachable("Milvus is away"), RuntimeError("Milvus is away")], ids=["it", "a bug"]
)
def test_it_goes_on_by_itself_and_tells_of_a_failure(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr("nearmesh_agent.vectors.store.applier._AGAIN_S", 0.01)
    store = Kept()
    tried, back = threading.Semaphore(0), threading.Event()

    def fails() -> None:
        tried.release()
        if not back.is_set():
            raise failure

    store.failing = fails
    taking = applier(journal, store, pace=Pace(rows=1))
    taking.start()
    put(journal, "a")
    # At the second time the first failure has been told.
    assert tried.acquire(timeout=10) and tried.acquire(timeout=10)
    assert not store.flushed.is_set()
    assert "Milvus is away" in taking.failure
    back.set()
    assert store.flushed.wait(10)
    taking.stop()
    taking.stop()
    assert here(store.disk).keys() == {"a"}
    assert (taking.failure, journal.first) == ("", 2)


def test_nothing_comes_into_a_store_that_is_being_copied_and_then_all_comes_into_the_new_one(journal: Journal) -> None:
    old, new = Kept(), Kept()
    taking = applier(journal, old)
    put(journal, "a")
    taking.flush()
    put(journal, "b")
    with taking.paused():
        new.disk = new.rows = dict(old.disk)
        taking.use(new, 0.0)  # type: ignore[arg-type]
    taking.flush()
    assert here(new.disk).keys() == {"a", "b"}
    assert here(old.disk).keys() == {"a"}
