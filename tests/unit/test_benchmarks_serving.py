"""The serving benchmark's pure parts: what it makes, what it counts, what it compares, and what it says of that."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import __main__ as command
from benchmarks.serving.figures import (
    BurstCell,
    Cell,
    Floor,
    above,
    best_peer,
    floor_cpu_ms,
    floor_p50_ms,
    over,
    peak,
    ratio,
    value,
)
from benchmarks.serving.models import MODELS
from benchmarks.serving.page import page
from benchmarks.serving.plan import DEFAULT, EVERY_SYSTEM, QUICK, Settings, rotated, scenarios, turns
from benchmarks.serving.systems import ECHO, IN_PROCESS, OURS, OWN_ECHO, PEERS, SYSTEMS
from benchmarks.serving.tables import burst_tables, model_tables, number, peak_table, ratio_table
from benchmarks.serving.transports import EXPIRED, OK, REFUSED

# Answers per second with one caller in the made-up results; eight callers get twice that.
PER_S = {OURS: 90.0, "pytriton": 60.0, "kserve": 30.0, "mlserver": 20.0, "litserve": 10.0, ECHO: 300.0, OWN_ECHO: 900.0}


def cell(**changes: Any) -> Cell:
    plain = Cell(
        round=1,
        model="tiny",
        system=OURS,
        callers=1,
        calls=180,
        per_s=90.0,
        p50_ms=11.0,
        p95_ms=12.0,
        p99_ms=13.0,
        elapsed_s=2.0,
        server_cpu_s=0.9,
        client_cores=0.1,
        other_cores=0.05,
        peak_bytes=100_000_000,
    )
    return replace(plain, **changes)


def floor(**changes: Any) -> Floor:
    ways = [
        {"sessions": 1, "threads": 2, "batch": 1, "per_s": 100.0, "cpu_ms": 15.0, "p50_ms": 8.0},
        {"sessions": 2, "threads": 1, "batch": 1, "per_s": 110.0, "cpu_ms": 11.0, "p50_ms": 16.0},
        {"sessions": 2, "threads": 1, "batch": 4, "per_s": 120.0, "cpu_ms": 10.0, "p50_ms": 60.0},
    ]
    ways = [{"p95_ms": 70.0, "p99_ms": 80.0, **way} for way in ways]
    return replace(Floor(round=1, model="tiny", ways=ways, peak_bytes=50_000_000), **changes)


def burst(**changes: Any) -> BurstCell:
    times = {"p50_ms": 100.0, "p95_ms": 150.0, "p99_ms": 190.0}
    plain = BurstCell(
        round=1,
        model="image",
        system=OURS,
        scenario="2 x",
        peak_per_s=100.0,
        offered_per_s=200.0,
        goodput_per_s=95.0,
        statuses={OK: {"calls": 190, **times}, REFUSED: {"calls": 210, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0}},
        lag_p99_ms=2.0,
        empty_s=0.25,
        peak_bytes=200_000_000,
        elapsed_s=2.0,
        server_cpu_s=1.9,
        client_cores=0.1,
        other_cores=0.0,
    )
    return replace(plain, **changes)


def results(**changes: Any) -> dict[str, Any]:
    """What a run finds; the second round's machine was half as fast."""
    settings = Settings(
        models=("tiny",), callers=(1, 8), rounds=2, seconds=2, warm_s=0.4, floor_s=0.1, open_rounds=1, open_s=4
    )
    cells = [
        cell(round=turn, system=system, callers=callers, per_s=PER_S[system] * (2 if callers == 8 else 1) / turn)
        for turn, callers, system in turns(settings)
        if system != IN_PROCESS
    ]
    return {
        "taken": {
            "at": "2030-01-02T03:04:05+00:00",
            "command": "python -m benchmarks.serving",
            "commit": "0123456789abcdef",
            "uncommitted_changes": False,
            "duration_s": 1200.0,
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
        "settings": asdict(settings),
        "versions": {"kserve": {"kserve": "0.21.0"}},
        "skipped": [],
        "models": {"tiny": {"request_bytes": 256, "answer_bytes": 40, "max_batch": 32}},
        "differences": [
            {"system": OURS, "model": "tiny", "difference": 2e-7},
            {"system": OURS, "model": "tiny-int8", "difference": 3e-2},
        ],
        "cells": [asdict(found) for found in cells],
        "floors": [asdict(floor(round=turn)) for turn in (1, 2)],
        "bursts": [asdict(burst()), asdict(burst(system="kserve", goodput_per_s=1.0, empty_s=None))],
        **changes,
    }


# Figures.


def test_processor_time_is_of_each_answer() -> None:
    assert cell(server_cpu_s=0.9, elapsed_s=2.0, per_s=90.0).cpu_ms == pytest.approx(5.0)
    assert cell(per_s=0.0).cpu_ms is None


def test_the_best_peer_does_most_or_takes_least_and_is_never_ours_or_a_floor() -> None:
    cells = [
        cell(per_s=900, p50_ms=1),
        cell(system=ECHO, per_s=999, p50_ms=0.1),
        cell(system="kserve", per_s=50, p50_ms=20),
        cell(system="mlserver", per_s=40, p50_ms=15),
    ]
    assert best_peer(cells, 1, "per_s") == "kserve"
    assert best_peer(cells, 1, "p50_ms") == "mlserver"
    assert best_peer(cells, 8, "per_s") == ""


def test_a_peer_that_answered_nothing_is_not_the_quickest() -> None:
    cells = [
        cell(system="kserve", calls=0, per_s=0, p50_ms=None, server_cpu_s=0),
        cell(system="mlserver", p50_ms=15),
    ]
    assert best_peer(cells, 1, "p50_ms") == best_peer(cells, 1, "cpu_ms") == "mlserver"


def test_systems_are_compared_within_a_round() -> None:
    # The machine was ten times slower in the second round; the ratio does not see it.
    ours = [cell(round=1, per_s=90), cell(round=2, per_s=9), cell(round=3, per_s=90)]
    theirs = [cell(round=3, per_s=30), cell(round=1, per_s=30), cell(round=2, per_s=3)]
    assert ratio(ours, theirs, "per_s") == 3.0
    assert value(ours, "per_s") == 90


def test_a_round_without_a_figure_is_left_out() -> None:
    assert over({1: None, 2: 30.0}, [cell(round=1), cell(round=2, per_s=90)], "per_s") == 3.0
    assert over({}, [cell()], "per_s") is None


def test_the_peak_is_over_all_numbers_of_callers() -> None:
    cells = [cell(callers=1, per_s=10), cell(callers=8, per_s=30), cell(callers=32, per_s=20)]
    assert peak(cells, OURS) == (8, 30)
    assert peak(cells, "kserve") == (0, 0.0)


def test_the_floor_is_the_engine_at_its_best_and_the_echo() -> None:
    cells = [cell(p50_ms=11), cell(system=ECHO, p50_ms=1.0, server_cpu_s=0.2, per_s=100.0)]
    assert floor().best["batch"] == 4
    assert floor().alone["threads"] == 2
    assert floor_cpu_ms(cells, [floor()], 1) == {1: pytest.approx(10 + 1.0)}
    assert above(floor_p50_ms(cells, [floor()]), cells[:1], "p50_ms") == pytest.approx(11 - (8 + 1))


def test_without_an_echo_there_is_no_sum_of_floors() -> None:
    assert floor_cpu_ms([cell()], [floor()], 1) == {1: None}


def test_a_burst_knows_what_became_of_its_calls() -> None:
    assert burst().kept == 0.95
    assert burst().share(REFUSED) == 210 / 400
    assert burst().share(EXPIRED) == 0
    assert burst().time_ms(REFUSED, "p99_ms") == 3.0
    assert burst().time_ms(EXPIRED, "p99_ms") is None


# The order of a run.


def test_within_a_round_the_systems_take_turns_and_another_begins_the_next() -> None:
    settings = replace(DEFAULT, systems=(OURS, "kserve", ECHO, IN_PROCESS), callers=(1, 8), rounds=2)
    order = list(turns(settings))
    assert order[:3] == [(1, 1, OURS), (1, 1, "kserve"), (1, 1, ECHO)]
    assert order[6] == (1, 0, IN_PROCESS)
    assert order[7:10] == [(2, 1, "kserve"), (2, 1, ECHO), (2, 1, OURS)]
    assert len(order) == len(set(order)) == 2 * (2 * 3 + 1)


def test_a_system_that_refuses_sooner_is_measured_in_bursts_alone() -> None:
    measured = {system for _, _, system in turns(DEFAULT)}
    assert set(DEFAULT.systems) - measured == {"pytriton-shed"}
    assert SYSTEMS["pytriton-shed"].like in measured


def test_rotation_keeps_every_name() -> None:
    assert rotated(["a", "b", "c"], 4) == ["b", "c", "a"]
    assert rotated([], 1) == []


def test_bursts_are_for_image_and_encoder_in_full_precision() -> None:
    asked = {name: [scenario.name for scenario in scenarios(DEFAULT, name)] for name in MODELS}
    assert asked == {
        "tiny": [],
        "image": ["2 x"],
        "encoder": ["2 x", "10 x", "2 x, half cancel"],
        "tiny-int8": [],
        "image-int8": [],
        "encoder-int8": [],
    }
    assert scenarios(replace(DEFAULT, open_rounds=0), "image") == []


# Tables and page.


def rows(table: Any) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_ratios_are_to_the_best_peer_and_to_the_floors() -> None:
    found = rows(ratio_table(results()))
    assert set(found) == {"tiny, 1", "tiny, 8"}
    alone = found["tiny, 1"]
    assert alone["per s / best peer"] == "1.50 (pytriton)"
    assert alone["per s / echo"] == "0.30"
    # 90 of 120, and 45 of 120: the engine alone was not slower in the second round.
    assert alone["per s / in-process"] == "0.56"
    assert alone["p50 over floors, ms"] == "-8.00"
    assert alone["memory / in-process"] == "2.00"
    assert found["tiny, 8"]["p50 over floors, ms"] == "-"


def test_ratios_without_peers_or_floors_are_left_open() -> None:
    found = results(floors=[])
    found["cells"] = [one for one in found["cells"] if one["system"] == OURS]
    alone = rows(ratio_table(found))["tiny, 1"]
    assert {text for column, text in alone.items() if column != "model, callers"} == {"-"}


def test_a_model_has_a_row_for_each_system_and_number_of_callers_and_for_the_engine() -> None:
    (table,) = model_tables(results())
    assert "256 B of tensors" in table.title
    found = rows(table)
    assert len(found) == len(PER_S) * 2 + 2
    assert found[f"{OURS}, 1"]["per s"] == "67.5"
    assert found[f"{IN_PROCESS}, 2 x 1 threads, batch 4"]["per s"] == "120"
    assert found[f"{IN_PROCESS}, one row alone"]["p50 ms"] == "8.00"


def test_unanswered_requests_are_shown() -> None:
    found = results()
    found["cells"][0]["errors"] = {REFUSED: 7}
    assert rows(model_tables(found)[0])[f"{OURS}, 1"]["not answered"] == "7"


def test_the_peaks_are_compared_whatever_the_number_of_callers() -> None:
    assert peak_table(results()).rows == (("tiny", "135", "90.0 (pytriton)", "1.50"),)


def test_a_burst_has_its_own_table() -> None:
    (table,) = burst_tables(results())
    assert table.title == "image, 2 x"
    ours, kserve = rows(table)[OURS], rows(table)["kserve"]
    assert (ours["in time / peak"], ours["refused"], ours["refused in ms: p50, p99"]) == ("0.95", "52%", "1.00, 3.00")
    assert (ours["empty after s"], kserve["empty after s"]) == ("0.25", "over 10")
    assert ours["others"] == "-"


def test_statuses_without_a_column_are_not_lost() -> None:
    odd = burst(statuses={OK: {"calls": 99, "p50_ms": 1, "p99_ms": 2}, "INTERNAL": {"calls": 1, "p50_ms": 1}})
    assert rows(burst_tables(results(bursts=[asdict(odd)]))[0])[OURS]["others"] == "INTERNAL 1.0%"


def test_the_page_says_what_was_measured_where_and_what_not() -> None:
    text = page(results())
    for expected in ("2 rounds", "1, 8", "Some CPU", "`0123456789ab`", "2.0e-07", "3.0e-02", "kserve 0.21.0", "200 ms"):
        assert expected in text
    assert "Not measured" not in text
    assert "uncommitted" not in text


def test_a_system_that_was_left_out_is_told() -> None:
    text = page(results(skipped=[{"system": "kserve", "model": "every model", "why": "no such version"}]))
    assert "**kserve**, every model: no such version" in text


def test_a_disturbed_run_is_told() -> None:
    found = results()
    found["cells"][0]["other_cores"] = 1.5
    assert "1.50 at most; in 1 of 28 measurements" in page(found)


def test_the_page_needs_nothing_but_the_json() -> None:
    assert page(json.loads(json.dumps(results()))) == page(results())


def test_the_committed_page_is_that_of_the_committed_figures() -> None:
    if not command.RESULTS.exists():
        pytest.skip("no figures have been taken: run `python -m benchmarks.serving`")
    found = json.loads(command.RESULTS.read_text("utf-8"))
    assert command.RESULTS.with_suffix(".md").read_text("utf-8") == page(found)


@pytest.mark.parametrize(
    ("figure", "text"),
    [(None, "-"), (1234.4, "1234"), (99.96, "100"), (9.994, "9.99"), (0.123, "0.12"), (0.0123, "0.012")],
)
def test_numbers_keep_the_digits_that_matter(figure: float | None, text: str) -> None:
    assert number(figure) == text


# The command.


def test_both_files_are_written_and_the_tables_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.write(results(), tmp_path / "new" / "serving.json")
    assert json.loads((tmp_path / "new" / "serving.json").read_text())["models"]["tiny"]["max_batch"] == 32
    assert (tmp_path / "new" / "serving.md").read_text().startswith("# ")
    command.show(results(skipped=[{"system": "kserve", "model": "tiny", "why": "gone"}]))
    printed = capsys.readouterr().out
    assert "1.50 (pytriton)" in printed
    assert "not measured: kserve, tiny: gone" in printed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], DEFAULT),
        (["--quick"], QUICK),
        (["--quick", "--open"], replace(QUICK, open_rounds=DEFAULT.open_rounds)),
        (["--no-open", "--reps", "5"], replace(DEFAULT, open_rounds=0, rounds=5)),
        (
            ["--models", "tiny,image-int8", "--callers", "4"],
            replace(DEFAULT, models=("tiny", "image-int8"), callers=(4,)),
        ),
        (["--systems", f"{OURS},{IN_PROCESS}"], replace(DEFAULT, systems=(OURS, IN_PROCESS))),
    ],
)
def test_the_command_line_changes_the_settings(given: list[str], expected: Settings) -> None:
    assert command.chosen(command._parser().parse_args(given)) == expected


@pytest.mark.parametrize("given", [["--reps", "0"], ["--callers", "1,none"], ["--models", "large"], ["--systems", "x"]])
def test_a_usage_error_is_told_before_anything_starts(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(given)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_at_least_four_peers_and_both_floors_are_measured_by_default() -> None:
    assert {"pytriton", "kserve", "mlserver", "litserve"} <= set(PEERS)
    assert DEFAULT.systems == EVERY_SYSTEM == (*SYSTEMS, IN_PROCESS)
