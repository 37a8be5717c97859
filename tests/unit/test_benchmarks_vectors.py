"""The benchmark of vectors: what it searches, in what order it measures, and what it makes of the figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.vectors import corpus
from benchmarks.vectors.corpus import SHARES, K, Shape, asked_share, nearest
from benchmarks.vectors.environments import ENVIRONMENTS
from benchmarks.vectors.figures import Cell, Filled, Start, promises
from benchmarks.vectors.page import page
from benchmarks.vectors.plan import DEFAULT, QUICK, turns
from benchmarks.vectors.systems import OURS, SYSTEMS
from benchmarks.vectors.workers.worker import EXTRA_ROWS, Task, Worker

SHAPE = Shape(rows=600, queries=30, tuning=10, dimension=32, clusters=6)


@pytest.fixture(scope="module")
def made() -> corpus.Corpus:
    return corpus.make(SHAPE)


def test_vectors_are_of_length_one_and_the_same_from_the_same_seed(made: corpus.Corpus) -> None:
    assert made.vectors.shape == (600, 32) and made.queries.shape == (30, 32)
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(corpus.make(SHAPE).vectors, made.vectors)
    assert not (corpus.make(replace(SHAPE, seed=12)).vectors == made.vectors).any()


def test_vectors_are_in_clusters(made: corpus.Corpus) -> None:
    found = corpus.loneliness(made)
    assert found["nearest"] > found["tenth"] > found["any"] + 0.3


def test_the_truth_is_what_comparing_with_all_rows_finds(made: corpus.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = made.queries @ made.vectors.T
    np.testing.assert_array_equal(made.truth, np.argsort(-scores, axis=1, kind="stable")[:, :K])
    # However the rows are cut into pieces, also into some that are shorter than what is asked for.
    monkeypatch.setattr(corpus, "_CHUNK", 7)
    np.testing.assert_array_equal(nearest(made.vectors, made.queries), made.truth)


def test_the_truth_of_a_filter_is_of_the_rows_that_it_takes(made: corpus.Corpus) -> None:
    for number, rows in enumerate(made.truth_of_share):
        share = asked_share(number)
        assert set(made.shares[rows]) == {share}
        scores = np.where(made.shares == share, made.vectors @ made.queries[number], -2)
        assert rows[0] == np.argmax(scores) and len(set(rows)) == K


def test_each_row_has_a_text_of_its_own() -> None:
    texts = [corpus.text(row, 200) for row in range(500)]
    assert len(set(texts)) == 500 and {len(text) for text in texts} == {200}


def test_a_corpus_is_made_once(tmp_path: Path) -> None:
    place = corpus.kept(SHAPE, tmp_path)
    before = (place / "vectors.npy").stat().st_mtime_ns
    assert corpus.kept(SHAPE, tmp_path) == place and (place / "vectors.npy").stat().st_mtime_ns == before
    assert corpus.kept(replace(SHAPE, seed=12), tmp_path) != place


# The order, and what runs where.


def test_stores_take_turns_and_another_one_is_first_each_time() -> None:
    names = ("a", "b", "c")
    order = list(turns(replace(DEFAULT, rounds=3), names))
    assert Counter(order) == Counter(
        (n, callers, filtered, name)
        for n in (1, 2, 3)
        for callers in (1, 16)
        for filtered in (False, True)
        for name in names
    )
    firsts = [name for *_, name in order[::3]]
    assert {Counter(firsts)[name] for name in names} == {4}


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_store_has_a_worker_and_an_environment_of_exact_versions(name: str) -> None:
    workers = Path(corpus.__file__).parent / "workers"
    assert (workers / f"keep_{name.replace('-', '_')}.py").is_file()
    if wanted := SYSTEMS[name].environment:
        assert all("==" in package for package in ENVIRONMENTS[wanted].packages)


# The worker.


class Plain:
    """A store that finds more of the nearest, the more effort it is told to make."""

    batch = 100
    efforts = (2, 5, 8, 10)

    def __init__(self, task: Task) -> None:
        self._task = task
        self.calls: list[str] = []

    def create(self) -> None:
        self.vectors, self.rows, self.texts, self.shares = np.empty((0, 32)), [], [], []
        self.calls.append("create")

    def open(self) -> None:
        self.calls.append("open")

    def insert(self, rows: Sequence[int], vectors: Any, texts: Sequence[str], shares: Sequence[int]) -> None:
        self.calls.append(f"insert {rows[0]}-{rows[-1]}")
        self.vectors = np.vstack([self.vectors, vectors])
        self.rows += rows
        self.texts += texts
        self.shares += shares

    def finish(self) -> None:
        self.calls.append("finish")

    def search(self, vector: Any, share: int | None, effort: int) -> Sequence[tuple[int, str]]:
        scores = self.vectors @ vector
        if share is not None:
            scores[np.array(self.shares) != share] = -2
        return [(self.rows[i], self.texts[i]) for i in np.argsort(-scores)[:effort]]

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def worker(tmp_path: Path) -> tuple[Worker, Plain]:
    task = Task(corpus=str(corpus.kept(SHAPE, tmp_path)), folder=str(tmp_path), text_bytes=50, recall=0.75)
    store = Plain(task)
    return Worker(store, task), store


def test_a_worker_fills_in_batches_and_waits_for_the_index(worker: tuple[Worker, Plain]) -> None:
    found = worker[0].fill(corpus.text)
    assert worker[1].calls == ["create", *(f"insert {n}-{n + 99}" for n in range(0, 600, 100)), "finish"]
    assert len(found["batch_ms"]) == 6 and found["seconds"] > 0 and found["finished_s"] >= found["seen_s"] > 0


def test_the_least_effort_that_finds_enough_is_chosen(worker: tuple[Worker, Plain]) -> None:
    worker[0].fill(corpus.text)
    assert worker[0].tune() == {"plain": {"effort": 8, "recall": 0.8}, "filtered": {"effort": 8, "recall": 0.8}}
    assert worker[0].recall(False) == worker[0].recall(True) == {"recall": 0.8}


def test_what_fails_in_a_callers_thread_is_told(worker: tuple[Worker, Plain], monkeypatch: pytest.MonkeyPatch) -> None:
    worker[0].fill(corpus.text)
    found = worker[0].search(2, 0.05, True, warm_s=0.0)
    assert len(found["took_ms"]) > 2 and min(found["took_ms"]) > 0
    monkeypatch.setattr(worker[1], "search", lambda *_: [])
    monkeypatch.setattr("threading.excepthook", lambda *_: None)
    with pytest.raises(RuntimeError, match="an answer without a hit"):
        worker[0].search(2, 0.05, True, warm_s=0.0)


def test_steady_searches_begin_on_schedule_and_failures_are_counted(
    worker: tuple[Worker, Plain], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker[0].fill(corpus.text)
    found = worker[0].steady(500.0, 0.1, callers=3)
    assert len(found["took_ms"]) == 50 and not found["errors"] and found["elapsed_s"] >= 0.098
    monkeypatch.setattr(worker[1], "search", lambda *_: 1 / 0)
    found = worker[0].steady(1000.0, 0.01, callers=2)
    assert (len(found["took_ms"]), found["errors"]) == (10, 10)


def test_a_start_is_over_when_an_answer_is_right_and_a_write_acknowledged(worker: tuple[Worker, Plain]) -> None:
    worker[0].fill(corpus.text)
    whole, worker[1].vectors = worker[1].vectors, worker[1].vectors * -1
    with pytest.raises(RuntimeError, match="lacks"):
        worker[0].first(0.0)
    worker[1].vectors = whole
    began_s = int(time.time())
    found = worker[0].first(1.0)
    assert 0 < found["answered_s"] <= found["written_s"]
    opened, inserted = worker[1].calls[-2:]
    assert opened == "open"
    # A number that no start before can have given to a row.
    assert int(inserted.removeprefix("insert ").partition("-")[0]) >= EXTRA_ROWS + began_s


# The figures.


def cell(system: str = OURS, number: int = 1, callers: int = 1, filtered: bool = False, p50_ms: float = 1.0) -> Cell:
    return Cell(
        round=number,
        system=system,
        callers=callers,
        filtered=filtered,
        calls=3000,
        elapsed_s=3.0,
        p50_ms=p50_ms,
        p95_ms=p50_ms * 2,
        p99_ms=p50_ms * 3,
        other_cores=0.1,
    )


def filled(system: str = OURS, **more: Any) -> Filled:
    figures: dict[str, Any] = {
        "rows": 100_000,
        "seconds": 20.0,
        "seen_s": 0.01,
        "finished_s": 15.0,
        "rest_s": 20.0,
        "batch": 500,
        "p50_ms": 60.0,
        "p95_ms": 200.0,
        "disk_bytes": 400_000_000,
        "effort": 0 if system == OURS else 16,
        "filtered_effort": 0 if system == OURS else 32,
        "recall": 0.98,
        "filtered_recall": 0.99,
    }
    return Filled(system=system, **{**figures, **more})


def started(system: str = OURS, killed: bool = False, **more: float) -> Start:
    return Start(round=1, system=system, killed=killed, **{"answered_s": 1.5, "written_s": 1.6, **more})


CELLS = [cell(callers=callers, filtered=filtered) for callers in (1, 16) for filtered in (False, True)]


@pytest.mark.parametrize(
    ("cells", "fill", "starts", "broken"),
    [
        (CELLS, filled(), [started()], []),
        ([cell(p50_ms=3.01), *CELLS[1:]], filled(), [started()], ["search, p50, one caller"]),
        # Of three rounds, one bad one does not count.
        ([*CELLS, cell(number=2), cell(number=3, p50_ms=50)], filled(), [started()], []),
        (
            [cell(filtered=True, p50_ms=4.5), *(c for c in CELLS if (c.callers, c.filtered) != (1, True))],
            filled(),
            [started()],
            ["search, p50, one caller, a filter of 10 %", "search, p95, one caller, a filter of 10 %"],
        ),
        (CELLS, filled(recall=0.969), [started()], ["recall@10"]),
        (CELLS, filled(seconds=34.0), [started()], ["rows a second, durable and searchable"]),
        (CELLS, filled(finished_s=61.0), [started()], ["the index has caught up"]),
        # Of starts, the slowest counts.
        (CELLS, filled(), [started(), started(killed=True, answered_s=2.1)], ["from start-up to an answer"]),
    ],
)
def test_what_is_promised_is_held_or_not(
    cells: list[Cell], fill: Filled, starts: list[Start], broken: list[str]
) -> None:
    found = promises(OURS, cells, fill, starts)
    assert len(found) == 11
    assert [promise.what for promise in found if not promise.held] == broken


def results(**more: Any) -> dict[str, Any]:
    systems = [OURS, "lancedb"]
    return {
        "taken": {
            "at": "2026-11-26T10:00:00+00:00",
            "command": "python -m benchmarks.vectors",
            "commit": "0123456789abcdef",
            "uncommitted_changes": False,
            "duration_s": 900.0,
        },
        "machine": {
            "cpu": "a processor",
            "cores": 2,
            "memory_gb": 8.0,
            "kernel": "Linux",
            "python": "3.11",
            "libraries": {"grpcio": "1.81.0"},
            "load_before": 0.1,
        },
        "settings": asdict(DEFAULT),
        "versions": {"lancedb": {"lancedb": "0.40.0"}},
        "skipped": [{"system": "milvus", "why": "no such version"}],
        "filled": [asdict(filled(name)) for name in systems],
        "cells": [asdict(replace(one, system=name)) for name in systems for one in CELLS],
        "starts": [asdict(started(name, killed)) for name in systems for killed in (False, True)],
        **more,
    }


def test_the_page_has_every_store_how_it_was_set_and_who_is_missing() -> None:
    text = page(results())
    assert "| lancedb | 0.980 | 1.00 (1.00-1.00) | 2.00 (2.00-2.00) | 3.00 (3.00-3.00) | 1000 (1000-1000) |" in text
    assert "chosen: 16, with the filter 32. Acknowledged is what is in a file, not fsynced (lancedb 0.40.0)" in text
    assert "- **milvus**: no such version" in text
    assert "| recall@10 | at least 0.970 | 0.980 | yes |" in text
    assert "in 0 of 8 measurements it was more than 0.2" in text


def test_the_page_of_a_run_without_this_agent_promises_nothing() -> None:
    mine = {key: [one for one in results()[key] if one["system"] != OURS] for key in ("filled", "cells", "starts")}
    text = page(results(**mine))
    assert "What is promised" not in text and "| lancedb |" in text


def test_a_quick_run_is_small() -> None:
    assert QUICK.shape.rows <= 2_000 and QUICK.rounds == 1 and not QUICK.rest_s
    assert QUICK.shape.rows / SHARES >= SHARES * K
