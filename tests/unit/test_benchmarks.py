"""What the benchmark makes of its measurements: percentiles, comparisons within rounds, tables, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from benchmarks import client, overhead
from benchmarks.decisions import candidate, timed
from benchmarks.figures import Cell, Spread, against, over_rounds, times
from benchmarks.machine import commit, machine
from benchmarks.page import _bytes, _number, page, tables
from benchmarks.rounds import CALLERS, Settings, turns
from benchmarks.table import markdown
from benchmarks.ways import COMPARED
from nearmesh.devmesh.plan import MODELS
from nearmesh.devmesh.samples import Sample
from nearmesh.devmesh.ways import Reply
from nearmesh.routing import rank

# What each way takes with one caller in the made-up results.
P50_MS = {"A": 4.0, "B": 6.0, "W": 9.0, "C": 12.0, "D": 10.0, "E": 11.0}


def cell(**changes: Any) -> Cell:
    plain = Cell(
        round=1,
        model="file-type",
        way="A",
        callers=1,
        calls=200,
        elapsed_s=0.5,
        p50_ms=4.0,
        p95_ms=5.0,
        p99_ms=6.0,
        node_p50_ms=3.9,
        elsewhere=0,
    )
    return replace(plain, **changes)


def results(rounds: int = 3, **changes: Any) -> dict[str, Any]:
    """What a run finds; each round is slower than the one before, for all ways alike."""
    cells = [
        cell(round=number, model=model, way=way, callers=callers, p50_ms=P50_MS[way] * number)
        for number, model, callers, way in turns(rounds)
    ]
    return {
        "taken": {
            "at": "2030-01-02T03:04:05+00:00",
            "command": "python -m benchmarks.overhead",
            "commit": "0123456789abcdef",
            "uncommitted_changes": False,
            "duration_s": 200.0,
        },
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "memory_gb": 8.0,
            "kernel": "Linux 6",
            "python": "3.11.9",
            "libraries": {"grpcio": "1.85.1"},
            "load_before": 0.1,
        },
        "settings": {"rounds": rounds, "seconds": 0.5, "callers": CALLERS, "round_trip_ms": 0.272},
        "models": {model: {"request_bytes": 2_359_296, "response_bytes": 856} for model in MODELS},
        "start_up_s": 9.7,
        "decisions": [{"what": "rank 3 candidates", "median_us": 12.0, "low_us": 11.0, "high_us": 13.0}],
        "cells": [asdict(found) for found in cells],
        **changes,
    }


# Figures.


def test_percentiles_are_of_the_ordered_times() -> None:
    assert times([*range(100, 0, -1)]) == {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}


def test_one_call_is_every_percentile() -> None:
    assert set(times([7.0]).values()) == {7.0}


def test_a_spread_is_median_lowest_and_highest_round() -> None:
    cells = [cell(round=number, p50_ms=ms) for number, ms in enumerate((9.0, 1.0, 2.0), 1)]
    assert over_rounds(cells, "p50_ms") == Spread(2.0, 1.0, 9.0)


def test_calls_per_second_are_of_the_time_that_passed() -> None:
    assert cell(calls=200, elapsed_s=0.5).calls_per_s == 400


def test_ways_are_compared_within_a_round() -> None:
    # The machine was ten times slower in the second round; the comparison does not see it.
    floor = [cell(round=1, p50_ms=4.0), cell(round=2, p50_ms=40.0), cell(round=3, p50_ms=4.0)]
    mine = [cell(round=3, p50_ms=8.0), cell(round=1, p50_ms=8.0), cell(round=2, p50_ms=80.0)]
    assert against(mine, floor, "p50_ms") == (4.0, 2.0)


def test_within_a_round_the_ways_stand_side_by_side() -> None:
    order = list(turns(2))
    assert [way for *_, way in order[: len(COMPARED)]] == list(COMPARED)
    assert len({(number, model, callers) for number, model, callers, _ in order[: len(COMPARED)]}) == 1
    assert len(order) == len(set(order)) == Settings(rounds=2, seconds=1.0).cells


# One measurement, without a mesh.


class FakeWay:
    """Answers at once; every third call is another node's."""

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, model: str, inputs: Mapping[str, Any], *, objective: str = "", timeout_s: float = 10.0) -> Reply:
        self.calls += 1
        node = "far" if self.calls % 3 == 0 else "near"
        return Reply(outputs={"y": np.zeros(2, np.float32)}, node=node, site="", total_ms=2.0, service_ms=1.5)

    def close(self) -> None: ...


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose answers were checked."""
    seen: list[str] = []

    def sample(model: str) -> Sample:
        def check(outputs: Mapping[str, Any]) -> str:
            seen.append(model)
            return "right"

        return Sample(model=model, name="", inputs={"x": np.zeros((1, 4), np.float32)}, check=check)

    monkeypatch.setattr(client, "unary_sample", sample)
    return seen


def test_a_measurement_counts_calls_and_those_that_went_elsewhere(checks: list[str]) -> None:
    way = FakeWay()
    found = client.Measuring(way, "near").measure("file-type", callers=4, seconds=0)
    assert found["calls"] == 4 * client.MIN_CALLS
    # One call more than was counted: the checked one, which was not among the strays.
    assert way.calls == found["calls"] + 1
    assert found["elsewhere"] == found["calls"] // 3
    assert found["node_p50_ms"] == 1.5
    assert checks == ["file-type"]


def test_a_client_is_ready_once_every_model_has_answered_rightly(checks: list[str]) -> None:
    sizes = client.Measuring(FakeWay(), "near").sizes()
    assert checks == list(MODELS) == list(sizes)
    assert all(size["response_bytes"] == 8 and size["request_bytes"] > 16 for size in sizes.values())


# Tables and page.


def test_there_is_a_table_for_each_model_and_one_of_decisions() -> None:
    found = tables(results())
    assert [table.title.partition(":")[0] for table in found[:-1]] == list(MODELS)
    assert [row[0] for row in found[0].rows] == list(COMPARED)
    assert all(len(row) == len(table.columns) for table in found for row in table.rows)
    assert found[-1].rows == (("rank 3 candidates", "0.012 (0.011-0.013)"),)


def test_a_row_has_the_median_round_and_the_comparison_with_the_floor() -> None:
    row = dict(zip(tables(results())[0].columns, tables(results())[0].rows[1], strict=True))
    assert row["p50 ms"] == "12.0 (6.00-18.0)"
    assert row["over A ms"] == "4.00"
    assert row["times A"] == "1.50"
    assert row["per second, 4 callers"] == "400 (400-400)"
    assert row["share of A"] == "100%"


def test_markdown_has_a_ruler_and_sets_numbers_right() -> None:
    lines = markdown(tables(results())[-1]).splitlines()
    assert lines[:2] == ["| what | ms |", "| --- | ---: |"]


def test_the_page_says_what_was_measured_where_and_what_not() -> None:
    text = page(results())
    for expected in ("3 rounds", "0.272 ms", "2 cores", "no GPU", "Some CPU", "`0123456789ab`", "9.7 s", "2.4 MB"):
        assert expected in text
    assert "uncommitted" not in text
    assert "Every call was answered by the nearest node." in text


def test_the_page_admits_strays_and_uncommitted_changes() -> None:
    found = results()
    found["cells"][1]["elsewhere"] = 5
    found["taken"]["uncommitted_changes"] = True
    assert "5 of 28800 calls were answered by another node" in page(found)
    assert "with uncommitted changes" in page(found)


def test_the_page_needs_nothing_but_the_json() -> None:
    found = results()
    assert page(json.loads(json.dumps(found))) == page(found)


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    path = overhead.RESULTS / "overhead.json"
    if not path.exists():
        pytest.skip("no figures have been taken: run `make bench`")
    assert path.with_suffix(".md").read_text("utf-8") == page(json.loads(path.read_text("utf-8")))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.4, "1234"), (99.94, "99.9"), (9.994, "9.99"), (0.123, "0.12"), (0.0123, "0.012"), (-1.5, "-1.50")],
)
def test_numbers_keep_the_digits_that_matter(value: float, text: str) -> None:
    assert _number(value) == text


@pytest.mark.parametrize(("count", "text"), [(856, "0.9 kB"), (8_243, "8.2 kB"), (2_359_400, "2.4 MB")])
def test_sizes_have_a_unit(count: int, text: str) -> None:
    assert _bytes(count) == text


def test_both_files_are_written(tmp_path: Any) -> None:
    overhead.write(results(), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "overhead.json").read_text())["start_up_s"] == 9.7
    assert (tmp_path / "new" / "overhead.md").read_text().startswith("# ")


def test_the_tables_are_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    overhead.show(results())
    assert "times A" in (text := capsys.readouterr().out)
    assert "9.7 s" in text


# The rest.


def test_a_decision_is_timed_for_each_call() -> None:
    calls: list[int] = []
    found = timed("append", lambda: calls.append(1))
    assert 0 < found.low_us <= found.median_us <= found.high_us


def test_made_up_candidates_differ_enough_to_be_ranked() -> None:
    ranking = rank([candidate(number) for number in range(30)], "cheapest-in-time", 300.0)
    assert len({ranked.candidate.usd_per_1000 for ranked in ranking}) > 5


def test_the_machine_and_the_commit_are_told() -> None:
    assert machine()["cores"] >= 1
    assert machine()["libraries"]["grpcio"]
    assert set(commit()) == {"commit", "uncommitted_changes"}


@pytest.mark.parametrize("given", [["--rounds", "0"], ["--seconds", "-1"], ["--rounds", "many"], ["--what"]])
def test_a_usage_error_is_told_before_anything_starts(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        overhead.main(given)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
