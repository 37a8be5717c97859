"""What was changed and deleted in collections, and who knows of it."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.vectors.across import tables
from nearmesh_agent.vectors.across.ledger import NodeLedger
from nearmesh_agent.vectors.across.receipts import Receipts
from nearmesh_agent.vectors.model import Row, Write

from nearmesh.errors import ConfigError, StorageFull

VECTOR = np.zeros(2, np.float32)
C = "collection"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[NodeLedger]:
    found = NodeLedger(tmp_path / "changes.db", node="a", wall_s=clock)
    yield found
    found.close()


@pytest.fixture
def receipts(ledger: NodeLedger) -> Receipts:
    ledger.follow(C, True)
    return Receipts(ledger, C, node="a", site="here")


def write(ledger: NodeLedger, *ids: str, source: str = "") -> Sequence[Row]:
    rows = ledger.stamped(C, [Row(id=id, vector=VECTOR) for id in ids])
    ledger.apply(C, Write(table="t", rows=rows), source=source, site=source and f"site-{source}")
    return rows


def delete(ledger: NodeLedger, *ids: str, source: str = "") -> int:
    at = ledger.now()
    write = Write(table="t", deleted=ids, deleted_at=at)
    ledger.apply(C, write, source=source, site=source and f"site-{source}")
    return at


def numbers(ledger: NodeLedger, after: int = 0, **more: str) -> list[tuple[int, str]]:
    return [(one.number, one.id) for one in ledger.since(C, after, 100, **more)[0]]


def test_of_an_id_the_newest_change_counts(ledger: NodeLedger) -> None:
    ledger.follow(C, True)
    write(ledger, "x", "y")
    write(ledger, "x")
    delete(ledger, "y")
    assert numbers(ledger) == [(3, "x"), (4, "y")]
    assert numbers(ledger, 3) == [(4, "y")]
    assert ledger.since(C, 0, 1)[1] == 3
    assert (ledger.since(C, 4, 100), ledger.last(C)) == (([], 4), 4)


def test_what_a_node_told_of_is_not_sent_back_to_it(ledger: NodeLedger) -> None:
    ledger.follow(C, True)
    write(ledger, "x", source="b")
    write(ledger, "y")
    assert ledger.since(C, 0, 100, but="b")[1] == 2
    assert (numbers(ledger, but="b"), numbers(ledger, but="c")) == ([(2, "y")], [(1, "x"), (2, "y")])
    # From here on it is this node's own.
    write(ledger, "x")
    assert numbers(ledger, but="b") == [(2, "y"), (3, "x")]


def test_a_write_over_a_delete_says_that_it_knew_of_it(ledger: NodeLedger) -> None:
    (before,) = write(ledger, "x")
    at = delete(ledger, "x")
    (after,) = write(ledger, "x")
    assert (before.clock.written_after, after.clock.written_after) == (0, at)
    assert ledger.tombstones(C, ["x", "y"]) == {"x": at}
    assert before.clock.written < at < after.clock.written


def test_a_delete_that_was_known_is_no_news(ledger: NodeLedger) -> None:
    at = delete(ledger, "x")
    for older in (at, at - 1):
        ledger.apply(C, Write(table="t", deleted=["x"], deleted_at=older))
    assert (ledger.tombstones(C, ["x"]), ledger.last(C)) == ({"x": at}, 1)


def test_rows_that_only_move_are_not_deleted(ledger: NodeLedger) -> None:
    ledger.apply(C, Write(table="t", deleted=["x"]))
    assert (ledger.tombstones(C, ["x"]), ledger.last(C)) == ({}, 0)


def test_what_was_there_before_others_were_to_have_it_is_counted_then(ledger: NodeLedger) -> None:
    write(ledger, "x", "y")
    at = delete(ledger, "gone")
    assert (numbers(ledger), ledger.filled(C)) == ([], False)
    ledger.follow(C, True)
    # In the middle of it.
    write(ledger, "y")
    ledger.fill(C, ["x"])
    ledger.fill(C, ["y"], last=True)
    assert {id for _, id in numbers(ledger)} == {"x", "y", "gone"}
    assert (ledger.filled(C), ledger.tombstones(C, ["gone"])) == (True, {"gone": at})
    # What changes while it stays here is not counted, so all is counted anew.
    ledger.follow(C, False)
    write(ledger, "x")
    assert (numbers(ledger), ledger.filled(C)) == ([], False)


def test_it_comes_back_as_it_was_saved(tmp_path: Path, ledger: NodeLedger, clock: Clock) -> None:
    ledger.follow(C, True)
    write(ledger, "x")
    at = delete(ledger, "x")
    log = ledger.log(C)
    ledger.came(C, "b", "their log", 7)
    ledger.save(12)
    clock.now_s = 0.0
    again = NodeLedger(tmp_path / "changes.db", node="a", wall_s=clock)
    assert (again.position, again.log(C), again.last(C), again.cursor(C, "b")) == (12, log, 2, ("their log", 7))
    assert again.tombstones(C, ["x"]) == {"x": at}
    assert again.now() > at
    again.close()


def test_what_others_are_told_of_is_on_disk_before(tmp_path: Path, ledger: NodeLedger, clock: Clock) -> None:
    ledger.follow(C, True)
    write(ledger, "x")
    other = NodeLedger(tmp_path / "changes.db", node="a", wall_s=clock) if ledger.since(C, 0, 10)[0] else None
    assert other
    assert other.last(C) == 1
    other.close()


def test_a_dropped_collection_begins_anew(ledger: NodeLedger) -> None:
    ledger.follow(C, True)
    write(ledger, "x")
    delete(ledger, "x")
    log = ledger.log(C)
    ledger.drop(C)
    assert (ledger.last(C), ledger.tombstones(C, ["x"]), ledger.filled(C)) == (0, {}, False)
    assert ledger.log(C) != log


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "changes.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match=r"changes\.db cannot be used"):
        NodeLedger(path, node="a")


def test_a_delete_has_a_receipt_of_each_site_from_when_it_had_it(
    ledger: NodeLedger, receipts: Receipts, clock: Clock
) -> None:
    receipts.acknowledged("b", "there", 0, 1000.0)
    write(ledger, "x")
    delete(ledger, "x")
    delete(ledger, "y")
    assert [by.at_s for by in receipts.of(id="x")[0].by] == [1000.0, 0.0]
    receipts.acknowledged("b", "there", 2, 1005.0)
    receipts.acknowledged("b", "there", 3, 1009.0)
    y, x = receipts.of()
    assert [(by.site, by.node, by.at_s) for by in x.by] == [("here", "a", 1000.0), ("there", "b", 1005.0)]
    assert (y.id, y.change, y.deleted_at_s, y.by[1].at_s) == ("y", 3, 1000.0, 1009.0)
    assert [one.id for one in receipts.of(before=3)] == ["x"]
    # Whoever says that it has more than there is, has what there is.
    receipts.acknowledged("c", "far", 99, 1010.0)
    assert [(lag.node, lag.acknowledged) for lag in receipts.lags()] == [("c", 3), ("b", 3)]


def test_who_told_of_a_delete_has_it(ledger: NodeLedger, receipts: Receipts) -> None:
    receipts.acknowledged("b", "site-b", 0, 1000.0)
    delete(ledger, "x", source="b")
    assert [(by.node, by.at_s) for by in receipts.of()[0].by] == [("a", 1000.0), ("b", 1000.0)]


def test_how_far_behind_a_site_is(ledger: NodeLedger, receipts: Receipts, clock: Clock) -> None:
    receipts.acknowledged("b", "there", 0, 1000.0)
    write(ledger, "x", "y")
    clock.now_s = 1010.0
    write(ledger, "z", source="b")
    (lag,) = receipts.lags()
    assert (lag.rows, lag.oldest_s, lag.acknowledged) == (2, 1000.0, 0)
    receipts.acknowledged("b", "there", 3, 1011.0)
    (lag,) = receipts.lags()
    assert (lag.rows, lag.oldest_s, lag.acknowledged, lag.at_s) == (0, 0.0, 3, 1011.0)


def test_a_disk_that_refuses_is_told_and_nothing_that_was_lost_counts_as_applied(
    tmp_path: Path, ledger: NodeLedger, clock: Clock
) -> None:
    ledger.follow(C, True)
    write(ledger, "kept")
    ledger.save(1)
    with ledger.tables.use() as found:
        found.one(f"pragma max_page_count = {found.one('pragma page_count')[0]}")
    write(ledger, "lost")
    with pytest.raises(StorageFull, match=r"changes\.db cannot be written: database or disk is full"):
        write(ledger, *(f"{number}" * 50 for number in range(10_000)))
    with pytest.raises(StorageFull, match="written anew when the process begins anew"):
        ledger.save(3)
    ledger.close()
    again = NodeLedger(tmp_path / "changes.db", node="a", wall_s=clock)
    assert (again.position, [one for _, one in numbers(again)]) == (1, ["kept"])
    again.close()


def test_what_a_commit_that_failed_took_back_is_not_passed_over(
    tmp_path: Path, ledger: NodeLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.follow(C, True)
    ledger.save(1)
    delete(ledger, "lost")
    with _files_of(tmp_path / "changes.db-wal"), pytest.raises(StorageFull, match="cannot be written: disk I/O error"):
        ledger.save(2)
    # The disk takes more again, but what went with the commit is not there: nothing after it may count.
    with pytest.raises(StorageFull, match="written anew when the process begins anew"):
        ledger.save(3)
    assert ledger.broken
    monkeypatch.setattr(tables, "_ROOM_BYTES", 1 << 62)
    assert not ledger.broken
    ledger.close()
    again = NodeLedger(tmp_path / "changes.db", node="a", wall_s=clock)
    assert (again.position, again.broken) == (1, False)
    again.close()


@contextmanager
def _files_of(path: Path) -> Iterator[None]:
    """No file may be larger than this one is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tombstones_go_when_all_have_them(ledger: NodeLedger, receipts: Receipts) -> None:
    at = delete(ledger, "x")
    assert receipts.everybody_has(["there"]) == 0
    receipts.acknowledged("b", "there", 1, 1000.0)
    write(ledger, "y")
    assert receipts.everybody_has(["there"]) == 1
    # A node of the same site that follows it and has been away.
    receipts.acknowledged("a2", "here", 0, 1000.0)
    assert receipts.everybody_has(["there"]) == 0
    receipts.acknowledged("a2", "here", 1, 1001.0)
    assert receipts.everybody_has(["there"]) == 1
    assert ledger.forget(C, at, 1) == 0
    assert ledger.forget(C, at + 1, 1) == 1
    assert (ledger.tombstones(C, ["x"]), numbers(ledger)) == ({}, [(2, "y")])
