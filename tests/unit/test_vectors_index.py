"""The index of a table against a dictionary that scores every row: whatever is written, tidied up and reopened."""

from __future__ import annotations

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
from nearmesh_agent.vectors.index import MemoryIndex, order, tuning
from nearmesh_agent.vectors.index.lists import Lists
from nearmesh_agent.vectors.index.slots import Slots, View
from nearmesh_agent.vectors.model import Clock, Found, Metric, Origin, Row, Vector, Write

from nearmesh.errors import InvalidInput
from tests.vector_rows import FIELDS, row, table

DIMENSION = 4


def score(metric: Metric, query: Vector, vector: Vector) -> float:
    a, b = query.astype(np.float64), vector.astype(np.float64)
    if metric is Metric.L2:
        return float(((a - b) ** 2).sum())
    lengths = np.linalg.norm(a) * np.linalg.norm(b) if metric is Metric.COSINE else 1.0
    return float(a @ b / lengths) if lengths else 0.0


def nearest(metric: Metric, rows: Sequence[Row], query: Vector, k: int) -> list[float]:
    """Their scores, best first."""
    return sorted((score(metric, query, one.vector) for one in rows), reverse=metric is not Metric.L2)[:k]


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists for a few rows, which are used then, and tidying for a few dead ones."""
    monkeypatch.setattr(tuning, "LEAST_ROWS", 40)
    monkeypatch.setattr(tuning, "_LEAST_ROWS_PER_LIST", 8)
    monkeypatch.setattr(tuning, "_LEAST_DEAD", 8)
    monkeypatch.setattr(tuning, "_ALONE", 0)
    monkeypatch.setattr(tuning, "_LEAST_TRIED", 2)
    monkeypatch.setattr(order, "_MOST_NEWER", 8)
    monkeypatch.setattr(order, "_PIECE", 16)


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
        self.index.maintain()

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


def clustered(count: int, dimension: int, seed: int = 1) -> np.ndarray:
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, dimension))
    return (centres[chance.integers(0, 40, count)] + chance.normal(size=(count, dimension)) * 0.5).astype(np.float32)


def filled(folder: Path, vectors: np.ndarray, metric: Metric = Metric.COSINE) -> MemoryIndex:
    index = MemoryIndex.new(table(vectors.shape[1], metric), folder)
    rows = [row(f"r{number}", {"year": number % 10}, vector=vector) for number, vector in enumerate(vectors)]
    index.apply(Write(table="notes", rows=rows), 1)
    return index


def recall(index: MemoryIndex, queries: np.ndarray, k: int, where: filters.Filter | None = None) -> float:
    shares = []
    for query in queries:
        found, way = index.search(query, k, where)
        assert way == "index"
        exact, _ = index.search(query, k, where, exact=True)
        shares.append(len({hit.id for hit in found} & {hit.id for hit in exact}) / k)
    return float(np.mean(shares))


@pytest.mark.parametrize("metric", list(Metric))
def test_recall_decides_how_far_a_search_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: Metric) -> None:
    monkeypatch.setattr(tuning, "LEAST_ROWS", 1000)
    index = filled(tmp_path, clustered(6000, 16), metric)
    assert index.fresh == 6000
    index.maintain()
    assert index.fresh == 0
    lists = index._state.lists
    assert lists is not None
    enough = lists.tuned.enough
    assert enough[10] < 2000 < 6000 and enough[10] <= enough[100]
    queries = clustered(50, 16, seed=2)
    assert recall(index, queries, 10) >= 0.96
    assert recall(index, queries[:10], 100) >= 0.96 or enough[100] * 1.5 >= 6000


def test_rows_of_a_filter_far_from_the_query_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists near the query hold none of them: the search goes on to those that do."""
    monkeypatch.setattr(tuning, "LEAST_ROWS", 1000)
    chance = np.random.default_rng(3)
    near = chance.normal(size=(4000, 8)) * 0.1 + np.eye(8)[0] * 3
    far = chance.normal(size=(4000, 8)) * 0.1 - np.eye(8)[0] * 3
    vectors = np.concatenate([near, far]).astype(np.float32)
    index = MemoryIndex.new(table(8, Metric.L2), tmp_path)
    rows = [row(f"r{number}", {"open": number >= 4000}, vector=vector) for number, vector in enumerate(vectors)]
    index.apply(Write(table="notes", rows=rows), 1)
    index.maintain()
    where = filters.read("open == true", FIELDS)
    assert recall(index, near[:20].astype(np.float32), 10, where) >= 0.9


def test_fresh_rows_are_found_before_they_are_in_the_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    index = filled(tmp_path, clustered(400, DIMENSION))
    index.maintain()
    new = np.array([9, -9, 9, -9], np.float32)
    index.apply(Write(table="notes", rows=[row("new", vector=new)]), 2)
    assert index.fresh == 1
    assert index.search(new, 1)[0][0].id == "new"
    index.apply(Write(table="notes", rows=[row("new", vector=-new)]), 3)
    assert index.search(new, 1)[0][0].id != "new"
    index.maintain()
    assert index.fresh == 0
    assert index.search(-new, 1)[0][0].id == "new"


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


def test_a_table_that_is_emptied_while_its_lists_are_made_has_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    index = filled(tmp_path, clustered(100, DIMENSION))
    made = Lists.made_for

    def emptied(view: View) -> Lists:
        index.apply(Write(table="notes", deleted=[f"r{number}" for number in range(100)]), 2)
        return made(view)

    monkeypatch.setattr(Lists, "made_for", emptied)
    index.maintain()
    assert index.size == 0 and isinstance(index._state.lists, Lists)
    index.apply(Write(table="notes", rows=[row("new")]), 3)
    index.maintain()
    assert [hit.id for hit in index.search(np.ones(DIMENSION, np.float32), 3)[0]] == ["new"]


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


def test_lists_are_made_anew_when_the_table_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    index = filled(tmp_path, clustered(100, DIMENSION))
    index.maintain()
    first = index._state.lists
    assert isinstance(first, Lists) and first.trained.rows == 100
    rows = [row(f"n{number}", vector=vector) for number, vector in enumerate(clustered(160, DIMENSION))]
    index.apply(Write(table="notes", rows=rows[:100]), 2)
    index.maintain()
    assert index._state.lists is first
    index.apply(Write(table="notes", rows=rows[100:]), 3)
    index.maintain()
    second = index._state.lists
    assert isinstance(second, Lists) and second.trained.rows == 260


def test_searches_that_find_too_little_make_it_look_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was measured with was easier than what is asked."""
    monkeypatch.setattr(tuning, "LEAST_ROWS", 1000)
    index = filled(tmp_path, clustered(3000, 16))
    index.maintain()
    lists = index._state.lists
    assert lists is not None
    lists.tuned = tuning.Tuned({10: 20, 100: 200}, {10: 20, 100: 200}, 3000)
    queries = np.random.default_rng(5).normal(size=(300, 16)).astype(np.float32)
    before = recall(index, queries, 10)
    assert before < tuning.LEAST_RECALL
    index.maintain()
    assert lists.tuned.enough[10] > 20
    assert recall(index, queries[:40], 10) > max(before, 0.95)


def test_rows_with_the_same_vector_are_no_lack_of_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boilerplate that stands in every document: which of them are found is all one."""
    monkeypatch.setattr(tuning, "LEAST_ROWS", 1000)
    vectors = np.repeat(clustered(60, 16), 50, axis=0)
    index = filled(tmp_path, vectors)
    index.maintain()
    lists = index._state.lists
    assert lists is not None
    assert lists.tuned.enough[10] < 1000


def test_real_searches_are_looked_at_ever_more_rarely() -> None:
    checks = [tuning.next_check(0)]
    while len(checks) < 12:
        checks.append(tuning.next_check(checks[-1]))
    assert checks[:4] == [256, 512, 1024, 2048]
    assert checks[-1] - checks[-2] == 65_536


@pytest.mark.parametrize(
    ("recalls", "enough"),
    [
        ({160: 0.95, 240: 0.99}, 240),
        # More than a small part of all rows: somewhat less will do, but not much less.
        ({4103: 0.985, 6155: 0.99}, 4103),
        ({4103: 0.97, 6155: 0.979, 9233: 0.985}, 9233),
        # Rows as far from one another as random ones are: all of them.
        ({}, 100_000),
    ],
)
def test_how_many_rows_are_enough(recalls: dict[int, float], enough: int) -> None:
    assert tuning.least_enough(10, 100_000, lambda tried: recalls.get(tried, 0.5)) == enough


def test_lists_that_new_rows_make_uneven_are_made_anew() -> None:
    before = tuning.Trained(10_000, 1.5)
    assert not tuning.trains(20_000, before, 1.6)
    assert tuning.trains(20_000, before, 3.0)
    assert not tuning.trains(11_000, before, 3.0)
    assert tuning.trains(25_000, before, 1.0)
    assert tuning.trains(8_000, None) and not tuning.trains(7_999, None)
