"""How this agent serves beside other model servers: `python -m benchmarks.serving`.

Installs the peers into environments of their own under `build/bench`, makes three models in two precisions, measures
everything in one interleaved run, prints the tables and writes `benchmarks/results/serving.json` and the page
`serving.md`. Under half an hour on two cores, and some minutes more the first time.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, machine
from benchmarks.serving.models import MODELS
from benchmarks.serving.page import page
from benchmarks.serving.plan import DEFAULT, EVERY_SYSTEM, QUICK, Settings
from benchmarks.serving.rounds import Run
from benchmarks.serving.systems import OURS
from benchmarks.serving.tables import Results, burst_tables, model_tables, peak_table, ratio_table
from benchmarks.table import Table
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError

RESULTS = CHECKOUT / "benchmarks" / "results" / "serving.json"


async def run(settings: Settings, command: str) -> Results:
    """Measures everything. Raises MeshError."""
    started = time.monotonic()
    found: dict[str, Any] = {
        "taken": {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            **commit(),
        },
        "machine": machine(),
        "settings": asdict(settings),
    }
    measured = Run(settings, lambda text: note(f"{time.monotonic() - started:5.0f} s  {text}"))
    await measured.measure()
    found["taken"]["duration_s"] = time.monotonic() - started
    # Through JSON, so that what is printed is what anyone may print again from the file.
    return json.loads(json.dumps({**found, **measured.results()}))  # type: ignore[no-any-return]


def show(results: Results) -> None:
    """The tables, for people."""
    for table in (*model_tables(results), *burst_tables(results), peak_table(results), ratio_table(results)):
        _print(table)
    for one in results["skipped"]:
        print(f"not measured: {one['system']}, {one['model']}: {one['why']}")


def _print(table: Table) -> None:
    print_table((table.columns[0], *map(Number, table.columns[1:])), table.rows, title="\n" + table.title)


def write(results: Results, path: Path) -> None:
    """The JSON, and the page beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(page(results), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    output = options.json or (None if options.quick else RESULTS)
    try:
        results = asyncio.run(run(chosen(options), " ".join(["python -m benchmarks.serving", *given])))
    except MeshError as error:
        note(f"Error: {error.message}")
        return 1
    show(results)
    if output:
        write(results, output)
        note(f"written: {output} and {output.with_suffix('.md')}")
    # Without its own figures a run has failed, whatever it says of others.
    return int(any(one["system"] == OURS for one in results["skipped"]))


def chosen(options: argparse.Namespace) -> Settings:
    """The defaults, or those of a quick run, with what the command line says."""
    settings = QUICK if options.quick else DEFAULT
    names = ("models", "systems", "callers", "rounds", "seconds")
    said = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.open is not None:
        said["open_rounds"] = DEFAULT.open_rounds if options.open else 0
    return replace(settings, **said)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=_names(MODELS), metavar="A,B", help=f"of {', '.join(MODELS)}; default all")
    parser.add_argument("--systems", type=_names(EVERY_SYSTEM), metavar="A,B", help=f"of {', '.join(EVERY_SYSTEM)}")
    parser.add_argument(
        "--reps", dest="rounds", type=_positive(int), metavar="N", help=f"rounds; default {DEFAULT.rounds}"
    )
    parser.add_argument(
        "--seconds", type=_positive(float), metavar="S", help=f"of each measurement; default {DEFAULT.seconds}"
    )
    parser.add_argument("--callers", type=_counts, metavar="N,M", help="default 1,8,32")
    parser.add_argument(
        "--open", action=argparse.BooleanOptionalAction, help="bursts of more than a server can answer; default on"
    )
    parser.add_argument("--quick", action="store_true", help="a short run; written only where --json says")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default benchmarks/results/serving.json")
    return parser


def _names(known: Sequence[str] | dict[str, Any]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if wrong := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return found

    return parse


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_positive(int)(part) for part in text.split(","))


def _positive(kind: type[Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
