"""How a node keeps and searches vectors beside other stores: `python -m benchmarks.vectors`.

Installs the rivals into environments of their own under `build/bench`, makes vectors in clusters as embeddings have
them, has every store take them in, search and start again, prints the tables and writes the page `vectors.md` and
`vectors.json` in `benchmarks/results`. Half an hour on two cores, and some minutes more the first time.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, machine
from benchmarks.vectors.contest import Contest
from benchmarks.vectors.page import Results, page, promised, tables
from benchmarks.vectors.plan import DEFAULT, QUICK, Settings
from benchmarks.vectors.systems import OURS, SYSTEMS
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.samples import CHECKOUT

RESULTS = CHECKOUT / "benchmarks" / "results" / "vectors.json"


async def run(settings: Settings, command: str) -> Results:
    """Measures everything."""
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
    contest = Contest(settings, lambda text: note(f"{time.monotonic() - started:5.0f} s  {text}"))
    with tempfile.TemporaryDirectory(prefix="nearmesh-bench-vectors-") as scratch:
        await contest.run(Path(scratch))
    found["taken"]["duration_s"] = time.monotonic() - started
    # Through JSON, so that what is printed is what anyone may print again from the file.
    return json.loads(json.dumps({**found, **contest.results()}))  # type: ignore[no-any-return]


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    output = options.json or (None if options.quick else RESULTS)
    results = asyncio.run(run(chosen(options), " ".join(["python -m benchmarks.vectors", *given])))
    for table in tables(results):
        print_table((table.columns[0], *map(Number, table.columns[1:])), table.rows, title="\n" + table.title)
    for one in results["skipped"]:
        print(f"not measured: {one['system']}: {one['why']}")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        output.with_suffix(".md").write_text(page(results), "utf-8")
        note(f"written: {output} and {output.with_suffix('.md')}")
    if any(one["system"] == OURS for one in results["skipped"]):
        return 1
    # A quick run has too few of everything for what is promised.
    return 0 if options.quick or all(promise.held for promise in promised(results)) else 1


def chosen(options: argparse.Namespace) -> Settings:
    """The defaults, or those of a quick run, with what the command line says."""
    settings = QUICK if options.quick else DEFAULT
    if options.rows:
        settings = replace(settings, shape=replace(settings.shape, rows=options.rows))
    names = ("systems", "rounds", "seconds")
    return replace(settings, **{name: value for name in names if (value := getattr(options, name)) is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", type=_systems, metavar="A,B", help=f"of {', '.join(SYSTEMS)}; default all")
    parser.add_argument("--rows", type=_positive(int), metavar="N", help=f"default {DEFAULT.shape.rows}")
    parser.add_argument(
        "--reps", dest="rounds", type=_positive(int), metavar="N", help=f"rounds; default {DEFAULT.rounds}"
    )
    parser.add_argument(
        "--seconds", type=_positive(float), metavar="S", help=f"of each measurement; default {DEFAULT.seconds:g}"
    )
    parser.add_argument("--quick", action="store_true", help="a short run; written only where --json says")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default benchmarks/results/vectors.json")
    return parser


def _systems(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if wrong := [name for name in found if name not in SYSTEMS]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(SYSTEMS)}")
    return found


def _positive(kind: type[Any]) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
