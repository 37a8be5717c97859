"""`python -m benchmarks.federated`: federated rounds against pooled data and against each site alone.

Prints the tables and writes `benchmarks/results/federated.json` and the page `federated.md`; exits with 1 when a bar is
not reached. Half a minute. The data are found through NEARMESH_TEST_DATA.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.federated import hospitals, speakers
from benchmarks.federated.comparison import compare
from benchmarks.federated.page import Results, held, page, tables
from benchmarks.federated.study import PACKAGES, Study
from benchmarks.machine import commit, machine
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.samples import CHECKOUT

RESULTS = CHECKOUT / "benchmarks" / "results" / "federated.json"
STUDIES = {study.name: study for study in (speakers.STUDY, hospitals.STUDY)}


def run(studies: Sequence[Study], data: Path, command: str) -> Results:
    """Compares everything."""
    started = time.monotonic()
    taken = {"at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "command": command, **commit()}
    found: dict[str, Any] = {"taken": taken, "machine": machine(), "studies": [_of(study, data) for study in studies]}
    taken["duration_s"] = time.monotonic() - started
    # Through JSON, so that what is printed is what anyone may print again from the file.
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _of(study: Study, data: Path) -> Mapping[str, Any]:
    settings = tomllib.loads((PACKAGES / study.name / "model.toml").read_text("utf-8"))["training"]["settings"]
    sites = study.read(data, 0).values()
    return {
        **compare(study, data, settings).to_json(),
        "title": study.title,
        "rounds": study.rounds,
        "settings": settings,
        "examples": sum(len(site.train.targets) + len(site.held_back.targets) for site in sites),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    data = os.environ.get("NEARMESH_TEST_DATA", "")
    if not data:
        note("Error: set NEARMESH_TEST_DATA to the folder that has fsdd_speakers/ and heart_disease_sites/")
        return 1
    studies = [STUDIES[name] for name in options.studies]
    results = run(studies, Path(data), " ".join(["python -m benchmarks.federated", *given]))
    for table in tables(results):
        print_table((table.columns[0], *map(Number, table.columns[1:])), table.rows, title="\n" + table.title)
    if output := options.json or (RESULTS if len(studies) == len(STUDIES) else None):
        output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        output.with_suffix(".md").write_text(page(results), "utf-8")
        note(f"written: {output} and {output.with_suffix('.md')}")
    return 0 if held(results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.federated", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default benchmarks/results/federated.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
