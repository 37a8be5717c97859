"""The replay twin: `python -m benchmarks.replay` plays recorded days under our planner, rivals and hindsight.

Prints the tables and writes `benchmarks/results/replay.json` and the page `replay.md`; exits with 1 when a bar is not
reached. Some minutes on two cores. The recorded data are found through NEARMESH_TEST_DATA.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, machine
from benchmarks.replay import slices
from benchmarks.replay.contest import Task, play_slice
from benchmarks.replay.page import Results, held, page, tables
from benchmarks.replay.recorded import folder
from benchmarks.replay.slices import DAYS, FAULTS, ILL, Slice
from benchmarks.replay.world import Fault
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError

RESULTS = CHECKOUT / "benchmarks" / "results" / "replay.json"
# To see that everything works: a few hours of the first days.
QUICK_HOURS = 2.0


def run(days: Sequence[Slice], faults: Sequence[Fault], ill: Slice, command: str, jobs: int) -> Results:
    """Plays everything. Raises MeshError."""
    folder()
    started = time.monotonic()
    tasks: list[Task] = [*((day, None) for day in days), *((ill, fault) for fault in faults)]
    found: dict[str, Any] = {
        "taken": {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            **commit(),
        },
        "machine": machine(),
        "settings": {"lapse": slices.LAPSE, "days": [asdict(day) for day in days], "ill": asdict(ill)},
        "days": [],
    }
    # A process for each day and not a fork: threads of the solver do not survive one.
    with ProcessPoolExecutor(min(jobs, len(tasks)), multiprocessing.get_context("spawn")) as pool:
        for day in pool.map(play_slice, tasks):
            note(f"{time.monotonic() - started:5.0f} s  {day['name']}")
            found["days"].append(day)
    found["taken"]["duration_s"] = time.monotonic() - started
    # Through JSON, so that what is printed is what anyone may print again from the file.
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def show(results: Results) -> None:
    """The tables, for people."""
    for table in tables(results):
        print_table((table.columns[0], *map(Number, table.columns[1:])), table.rows, title="\n" + table.title)


def write(results: Results, path: Path) -> None:
    """The JSON, and the page beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(page(results), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    days = [day for day in DAYS if options.days is None or day.name in options.days]
    ill = ILL
    if options.quick:
        days, ill = [replace(day, start_hour=12.0, hours=QUICK_HOURS) for day in days], replace(ILL, hours=QUICK_HOURS)
    output = options.json or (None if options.quick or options.days else RESULTS)
    try:
        command = " ".join(["python -m benchmarks.replay", *given])
        results = run(days, FAULTS if options.faults else (), ill, command, options.jobs)
    except MeshError as error:
        note(f"Error: {error.message}")
        return 1
    show(results)
    if output:
        write(results, output)
        note(f"written: {output} and {output.with_suffix('.md')}")
    return 0 if held(results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [day.name for day in DAYS]
    parser.add_argument("--days", nargs="+", choices=names, metavar="DAY", help=f"of {', '.join(names)}; default all")
    parser.add_argument(
        "--faults", action=argparse.BooleanOptionalAction, default=True, help="the ill days too; default on"
    )
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, metavar="N", help="days at a time")
    parser.add_argument("--quick", action="store_true", help="two hours of each day; written only where --json says")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default benchmarks/results/replay.json")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
