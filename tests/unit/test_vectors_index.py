"""The index of a table against a dictionary that scores every row: whatever is written, tidied up and reopened."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from nearmesh_agent.vectors import filters
from nearmesh_agent.vectors.index import MemoryIndex, saved
from nearmesh_agent.vectors.index.slots import Slots
from nearmesh_agent.vectors.model import Clock, Found, Metric, Origin, Row, Vector, Write

from nearmesh.errors import InvalidInput
from tests.vector_index import DIMENSION, clustered, filled, small
from tests.vector_rows import FIELDS, row, table


def score(metric: Metric, query: Vector, vector: Vector) -> float:
    a, b = query.astype(np.float64), vector.astype(np.float64)
    if metric is Metric.L2:
        return float(((a - b) ** 2).sum())
    lengths = np.linalg.norm(a) * np.linalg.norm(b) if metric is Metric.COSINE else 1.0
    return float(a @ b / lengths) if lengths else 0.0


def nearest(metric: Metric, rows: Sequence[Row], query: Vector, k: int) -> list[float]:
    """Their scores, best first."""
    return sorted((score(metric, query, one.vector) for one in rows), reverse=metric is not Metric.L2)[:k]


def reopened(folder: Path, metric: Metric = Metric.COSINE) -> MemoryIndex:
    index = MemoryIndex.opened(table(DIMENSION, metric), folder)
    assert index is not None
    return index


class Tables(RuleBasedStateMachine):
    """One writer's life of a table."""

    @initialize(metric=st.sampled_from(Metric), seed=st.integers(0, 1000))
    def begin(self, metric: Metric, seed: int) -> None:
        self.patch = pytest.MonkeyPatch()
        small(self.patch)
        self.metric, self.chance = metric, np.random.default_rng(seed)
        self.folder = Path(tempfile.mkdtemp())
        self.index = MemoryIndex.new(table(DIMENSION, metric), self.folder)
        self.rows: dict[str, Row] = {}
        self.saved: tuple[dict[str, Row], int] = ({}, 0)
        self.position = 0

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            shutil.rmtree(self.folder)
            self.patch.undo()

    def _vector(self) -> Vector:
        # Whole numbers make equal scores, and vectors without length.
        return self.chance.integers(-2, 3, DIMENSION).astype(np.float32)

    @rule(count=st.integers(1, 40), first=st.integers(0, 60))
    def write(self, count: int, first: int) -> None:
        rows = [
            row(f"r{number}", {"year": number % 5}, vector=self._vector(), source=f"s{number % 3}")
            for number in range(first, first + count)
        ]
        self.position += 1
        self.index.apply(Write(table="notes", rows=rows), self.position)
        self.rows |= {one.id: one for one in rows}

    @rule(first=st.integers(0, 100), count=st.integers(1, 30))
    def delete(self, first: int, count: int) -> None:
        ids = [f"r{number}" for number in range(first, first + count)]
        self.position += 1
        self.index.apply(Write(table="notes", deleted=ids), self.position)
        for id_ in ids:
            self.rows.pop(id_, None)

    @rule()
    def maintain(self) -> None:
        before = self._file()
        self.index.maintain()
        if self._file() != before:
            # It saves lists that it has made anew, and all that they are of.
            self.saved = (dict(self.rows), self.position)

    def _file(self) -> int | None:
        """Another number when the index was saved, which replaces the file."""
        path = self.folder / saved.FILE
        return path.stat().st_ino if path.exists() else None

    @rule()
    def save(self) -> None:
        assert self.index.save() == self.position
        self.saved = (dict(self.rows), self.position)

    @precondition(lambda self: self.saved[1])
    @rule(kill=st.booleans())
    def reopen(self, kill: bool) -> None:
        """What was not saved is gone; the journal would tell it again."""
        if not kill:
            self.save()
        self.index.close()
        self.index = reopened(self.folder, self.metric)
        self.rows, self.position = dict(self.saved[0]), self.saved[1]

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        if not hasattr(self, "index"):
            return
        index, rows = self.index, self.rows
        assert (index.size, index.position) == (len(rows), self.position)
        assert index.bytes == sum(DIMENSION * 4 for _ in rows) + self._record_bytes()
        assert list(index.select(None)) == sorted(rows)
        for found, expected in zip(index.rows(sorted(rows), vectors=True), sorted(rows), strict=True):
            assert found.vector.tolist() == rows[expected].vector.tolist()
            assert (found.id, found.origin) == (expected, rows[expected].origin)
        self._searches(None, list(rows.values()))
        for text in ("year == 2", 'year in [0, 1] or source like "s2%"', 'id > "r3" and id != "r40"'):
            where = filters.read(text, FIELDS)
            assert where is not None
            takes = [one for one in rows.values() if where.matches(one)]
            assert index.count(where) == len(takes)
            assert list(index.select(where, after="r2", limit=5)) == sorted(o.id for o in takes if o.id > "r2")[:5]
            self._searches(where, takes)

    def _record_bytes(self) -> int:
        from nearmesh_agent.vectors.index.records import encode

        return sum(len(encode(one)) for one in self.rows.values())

    def _searches(self, where: filters.Filter | None, rows: list[Row]) -> None:
        query = self._vector()
        expected = nearest(self.metric, rows, query, 7)
        exact, way = self.index.search(query, 7, where, exact=True)
        assert way == "exact"
        assert [hit.score for hit in exact] == pytest.approx(expected, abs=1e-5)
        found, _ = self.index.search(query, 7, where)
        assert len(found) == len(expected)
        for hits in (exact, found):
            assert len({hit.id for hit in hits}) == len(hits)
            self._true(hits, query, {one.id for one in rows})

    def _true(self, hits: Sequence[Found], query: Vector, allowed: set[str]) -> None:
        for hit in hits:
            assert hit.id in allowed
            assert hit.score == pytest.approx(score(self.metric, query, self.rows[hit.id].vector), abs=1e-5)


TestTables = Tables.TestCase
TestTables.settings = settings(
    max_examples=20, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = Row(
        id="ä/1",
        vector=np.array([0.1, 2e-30, -7, 3e10], np.float32),
        text='two\nlines, "quotes", \u2028 and 中文',
        fields={"lang": "de", "year": 2**62, "score": 0.1, "open": False},
        origin=Origin(source="a.md", hash="ff", part=1, parts=3, position="p. 4"),
        clock=Clock(written=2**63 + 5, written_after=7, deleted=3),
        written_at_s=1764148000.25,
    )
    index = MemoryIndex.new(table(), tmp_path)
    index.apply(Write(table="notes", rows=[written, row("b")]), 5)
    for _ in range(2):
        (found,) = index.rows(["none", "ä/1"], vectors=True)
        assert found.vector.tobytes() == written.vector.tobytes()
        for name in ("id", "text", "fields", "origin", "clock", "written_at_s"):
            assert getattr(found, name) == getattr(written, name)
        assert index.rows(["b"])[0].vector.size == 0
        index.save()
        index.close()
        index = reopened(tmp_path)
    index.close()


@pytest.mark.parametrize(
    ("vector", "says"),
    [([1, 2, 3], r"shape \[3\], expected \[4\]"), ([1, 2, 3, np.nan], "'bad'.*NaN"), ([1, 2, 3, np.inf], "infinite")],
)
def test_a_vector_that_is_none_of_the_tables_changes_nothing(
    tmp_path: Path, vector: Sequence[float], says: str
) -> None:
    index = MemoryIndex.new(table(), tmp_path)
    with pytest.raises(InvalidInput, match=says):
        index.apply(Write(table="notes", rows=[row("good"), row("bad", vector=vector)]), 1)
    assert (index.size, index.position) == (0, 0)
    with pytest.raises(InvalidInput, match="expected \\[4\\] finite values"):
        index.search(np.array(vector, np.float32), 1)
    index.close()


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(tmp_path, clustered(10, DIMENSION))
    arena = index._state.view.slots.arenas["records"]
    with monkeypatch.context() as patch:
        patch.setattr(arena, "append", lambda data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            index.apply(Write(table="notes", rows=[row("more")]), 2)
    index.apply(Write(table="notes", rows=[row("last", vector=[1, 2, 3, 4])]), 3)
    assert index.size == 11
    index.save()
    again = reopened(tmp_path)
    assert again.rows(["last"], vectors=True)[0].vector.tolist() == [1, 2, 3, 4]


def test_a_row_that_has_its_place_on_the_disk_keeps_it_over_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has it by then, and every start writes it again, full as the disk may be."""
    index = MemoryIndex.new(table(DIMENSION), tmp_path)
    index.save()
    rows = [row(f"r{number}", text="text " * 9_000) for number in range(40)]
    index.reserve(rows)
    (records,) = tmp_path.glob("records-*")
    placed = records.stat().st_blocks
    assert placed * 512 >= sum(len(one.text) for one in rows)
    again = reopened(tmp_path)
    assert records.stat().st_blocks == placed
    again.apply(Write(table="notes", rows=rows), 1)
    # But for a block or two in which the file system itself notes where they are.
    assert records.stat().st_blocks - placed <= 16
    for each in (index, again):
        each.close()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    other = MemoryIndex.new(table(DIMENSION), tmp_path / "other")
    with pytest.raises(OSError, match="No space left"):
        other.reserve(rows)
    other.close()


def test_files_that_nobody_saved_are_gone_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    index = filled(tmp_path, clustered(20, DIMENSION))
    index.save()
    for name in ("vectors-99", "records-99"):
        (tmp_path / name).write_bytes(b"of a process that was tidying up")
    index.close()
    reopened(tmp_path).close()
    assert not list(tmp_path.glob("*-99"))


def test_a_value_of_another_type_changes_nothing(tmp_path: Path) -> None:
    index = MemoryIndex.new(table(), tmp_path)
    with pytest.raises(InvalidInput, match="field 'year' has another type"):
        index.apply(Write(table="notes", rows=[row("good", {"year": 1}), row("bad", {"year": "x"})]), 1)
    index.apply(Write(table="notes", rows=[row("good", {"year": 2})]), 2)
    assert [one.fields for one in index.rows(["good"])] == [{"year": 2}]
    assert index.select(filters.read("year == 2", FIELDS)) == ["good"]
    index.close()


def test_without_room_what_is_dead_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small(monkeypatch)
    index = filled(tmp_path, clustered(100, DIMENSION))
    index.apply(Write(table="notes", deleted=[f"r{number}" for number in range(50)]), 2)
    index.save()

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Slots, "copy", full)
        index.maintain()
        assert "stays there for now: [Errno 28]" in caplog.text
        assert sorted(path.name for path in tmp_path.iterdir()) == ["index.npz", "records-1", "vectors-1"]
    index.apply(Write(table="notes", deleted=[f"r{number}" for number in range(50, 90)]), 3)
    index.maintain()
    assert len(index._state.view.slots.ids) == index.size == 10
    index.close()


def test_an_index_that_is_not_whole_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def damaged(name: str, change: object) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        # With headers that lie, more than is read in one go.
        index = filled(folder, clustered(5000 if change in headers else 50, DIMENSION))
        index.save()
        index.close()
        (path,) = folder.glob(name)
        change(path)  # type: ignore[operator]
        return folder

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:100])

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    def shorter(path: Path) -> None:
        """NumPy would take half of each array, and never come to its checksum."""
        path.write_bytes(path.read_bytes().replace(b"'shape': (5000,)", b"'shape': (2500,)"))

    def open_ended(path: Path) -> None:
        path.write_bytes(path.read_bytes().replace(b"'shape': (5000,), }", b"'shape': (5000,),  "))

    changes = (flip, cut, empty, Path.unlink)
    headers = (shorter, open_ended)
    for name, change in [*product(("index.npz", "vectors-*", "records-*"), changes), *product(("index.npz",), headers)]:
        caplog.clear()
        folder = damaged(name, change)
        assert MemoryIndex.opened(table(DIMENSION), folder) is None, (name, change)
        if (name, change) != ("index.npz", Path.unlink):
            assert "is made anew" in caplog.text
        index = MemoryIndex.new(table(DIMENSION), folder)
        index.apply(Write(table="notes", rows=[row("a")]), 1)
        assert (index.size, index.position) == (1, 1)


def test_an_index_of_other_fields_is_made_anew(tmp_path: Path) -> None:
    index = filled(tmp_path, clustered(5, DIMENSION))
    index.save()
    index.close()
    assert MemoryIndex.opened(table(DIMENSION, Metric.L2), tmp_path) is None


def test_searches_go_on_beside_writes_and_maintenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is written again and again is found all the time, and once."""
    small(monkeypatch)
    vectors = clustered(300, DIMENSION)
    index = filled(tmp_path, vectors)
    index.maintain()
    stop = threading.Event()
    wrong: list[object] = []
    where = filters.read('id == "r7"', FIELDS)

    ways: list[str] = []

    def search() -> None:
        while not stop.is_set():
            for filtered in (None, where):
                hits, way = index.search(vectors[7], 300, filtered)
                ways.append(way)
                ids = [hit.id for hit in hits]
                if ids.count("r7") != 1 or (filtered is None and len(ids) != 300):
                    wrong.append(ids)

    def maintain() -> None:
        while not stop.is_set():
            index.maintain()
            index.save()

    threads = [threading.Thread(target=search), threading.Thread(target=search), threading.Thread(target=maintain)]
    for thread in threads:
        thread.start()
    position = 1
    while position < 150 or len(ways) < 400:
        position += 1
        rows = [row(f"r{number}", vector=vectors[number]) for number in (7, position % 300)]
        index.apply(Write(table="notes", rows=rows), position)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert index.size == 300
    assert "index" in ways
    index.close()


def test_what_is_dead_is_tidied_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    vectors = clustered(200, DIMENSION)
    index = filled(tmp_path, vectors)
    index.maintain()
    index.apply(Write(table="notes", deleted=[f"r{number}" for number in range(150)]), 2)
    before = index._state.view.slots
    index.maintain()
    after = index._state.view.slots
    assert (len(before.ids), len(after.ids)) == (200, 50)
    assert index.fresh == 0
    index.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.npz", "records-2", "vectors-2"]


def test_scores_of_vectors_at_the_ends_of_fp32_are_numbers(tmp_path: Path) -> None:
    vectors = np.array([[1e-45, 0, 0, 0], [1e-42] * 4, [1e-30] * 4, [9e18, 0, 0, 0], [1, 2, 3, 4]], np.float32)
    for metric in Metric:
        index = filled(tmp_path / metric.name, vectors, metric)
        for query in (*vectors, np.full(4, 3e38, np.float32)) if metric is Metric.COSINE else vectors[:4]:
            found, _ = index.search(query, 5)
            assert len(found) == 5 and np.isfinite([hit.score for hit in found]).all()
            assert metric is not Metric.COSINE or max(abs(hit.score) for hit in found) <= 1.00001
    best, _ = filled(tmp_path / "again", vectors).search(np.full(4, 3e38, np.float32), 2)
    assert [hit.id for hit in best] == ["r2", "r4"]
