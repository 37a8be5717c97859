"""The lists of a table's index: when they are made, and how far searches look into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.vectors import filters
from nearmesh_agent.vectors.index import MemoryIndex, tuning
from nearmesh_agent.vectors.index.lists import Lists
from nearmesh_agent.vectors.index.slots import View
from nearmesh_agent.vectors.model import Metric, Write

from tests.vector_index import DIMENSION, clustered, filled, small
from tests.vector_rows import FIELDS, row, table


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
