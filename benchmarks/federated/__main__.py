"""`python -m benchmarks.federated`: federated rounds against pooled data and against each site alone.

Prints the tables and writes `benchmarks/results/federated.json` and the page `federated.md`; exits with 1 when a bar is
not reached. Half a minute. With `--mesh` one real run of each study through a real mesh, from the first version to the
served one, into `federated_mesh`; some minutes. The data are found through NEARMESH_TEST_DATA.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.federated import hospitals, mesh_page, page, speakers
from benchmarks.federated.comparison import compare
from benchmarks.federated.report import Results
from benchmarks.federated.study import PACKAGES, Study
from benchmarks.machine import commit, machine
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.samples import CHECKOUT

RESULTS = CHECKOUT / "benchmarks" / "results" / "federated.json"
RESULTS_OF_MESH = RESULTS.with_name("federated_mesh.json")
STUDIES = {study.name: study for study in (speakers.STUDY, hospitals.STUDY)}


def run(studies: Sequence[Study], data: Path, command: str, *, mesh: bool) -> Results:
    """Compares everything."""
    started = time.monotonic()
    taken = {"at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "command": command, **commit()}
    each = _through_mesh if mesh else _of
    found: dict[str, Any] = {"taken": taken, "machine": machine(), "studies": [each(study, data) for study in studies]}
    taken["duration_s"] = time.monotonic() - started
    # Through JSON, so that what is printed is what anyone may print again from the file.
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _settings(study: Study) -> dict[str, Any]:
    found = tomllib.loads((PACKAGES / study.name / "model.toml").read_text("utf-8"))["training"]["settings"]
    return dict(found)


def _of(study: Study, data: Path) -> Mapping[str, Any]:
    settings = _settings(study)
    sites = study.read(data, 0).values()
    return {
        **compare(study, data, settings).to_json(),
        "title": study.title,
        "rounds": study.rounds,
        "settings": settings,
        "examples": sum(len(site.train.targets) + len(site.held_back.targets) for site in sites),
    }


def _through_mesh(study: Study, data: Path) -> Mapping[str, Any]:
    # Here, since it needs the agent's own reading of data.
    from benchmarks.federated import through_mesh

    with tempfile.TemporaryDirectory(prefix="nearmesh-federated-") as folder:
        note(f"{study.name}: through a mesh in {folder}")
        found = asyncio.run(through_mesh.run(study, data, Path(folder), _settings(study)))
    return {**found.to_json(), "title": study.title}


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    data = os.environ.get("NEARMESH_TEST_DATA", "")
    if not data:
        note("Error: set NEARMESH_TEST_DATA to the folder that has fsdd_speakers/ and heart_disease_sites/")
        return 1
    studies = [STUDIES[name] for name in options.studies]
    results = run(studies, Path(data), " ".join(["python -m benchmarks.federated", *given]), mesh=options.mesh)
    shown = mesh_page.REPORT if options.mesh else page.REPORT
    for table in shown.tables(results):
        print_table((table.columns[0], *map(Number, table.columns[1:])), table.rows, title="\n" + table.title)
    usual = RESULTS_OF_MESH if options.mesh else RESULTS
    if output := options.json or (usual if len(studies) == len(STUDIES) else None):
        output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        output.with_suffix(".md").write_text(shown.page(results), "utf-8")
        note(f"written: {output} and {output.with_suffix('.md')}")
    return 0 if shown.held(results) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.federated", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="default all")
    parser.add_argument("--mesh", action="store_true", help="through a real mesh, to a served version")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default benchmarks/results/federated[_mesh].json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
