"""What a request costs on its way, from the engine alone to the whole mesh, and what the mesh's own decisions cost.

`python -m benchmarks.overhead` starts a local mesh of its own, measures in one interleaved run, prints the tables and
writes `benchmarks/results/overhead.json` and the page `overhead.md`. About three minutes on two cores.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.decisions import decisions
from benchmarks.figures import Cell
from benchmarks.machine import commit, machine
from benchmarks.page import Results, page, tables
from benchmarks.rounds import CALLERS, Settings, clients, place_in, take_turns
from benchmarks.ways import weights
from nearmesh.cli.output import Number, console, note, print_table
from nearmesh.devmesh.mesh import LocalMesh, local_mesh
from nearmesh.devmesh.plan import MODELS, NODE_THREADS, REGIONS, round_trip_ms
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError

RESULTS = CHECKOUT / "benchmarks" / "results"
REGION = REGIONS[0]
# Five rounds show how far the figures move; what is left of four minutes is shared out between the cells.
DEFAULT = Settings(rounds=5, seconds=0.7)
# To see that everything works; too short for figures that one would quote.
QUICK = Settings(rounds=1, seconds=0.1)


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
        "settings": {
            **asdict(settings),
            "callers": CALLERS,
            "region": REGION,
            "round_trip_ms": round_trip_ms(REGION, REGION),
            "node_threads": NODE_THREADS,
        },
    }
    note("measuring decisions and conversions")
    found["decisions"] = [asdict(decision) for decision in await decisions()]
    # Downloading is no part of starting.
    for model in MODELS:
        await asyncio.to_thread(weights, model)
    with tempfile.TemporaryDirectory(prefix="nearmesh-bench-") as folder:
        asked = time.monotonic()
        async with local_mesh(Path(folder) / "mesh", note) as mesh:
            found["start_up_s"] = time.monotonic() - asked
            found["models"], cells = await _requests(mesh, settings)
    found["cells"] = [asdict(cell) for cell in cells]
    found["taken"]["duration_s"] = time.monotonic() - started
    return found


async def _requests(mesh: LocalMesh, settings: Settings) -> tuple[dict[str, Any], list[Cell]]:
    note("starting a client for each way; each asks every model once")
    cells: list[Cell] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with clients(place_in(mesh, REGION)) as (found, sizes):
        with Progress(*columns, console=console(err=True)) as progress:
            bar = progress.add_task("", total=settings.cells)
            async for cell in take_turns(found, settings):
                cells.append(cell)
                progress.update(bar, advance=1, description=f"round {cell.round} {cell.model} {cell.way}")
        return dict(sizes), cells


def show(results: Results) -> None:
    """The tables, for people."""
    for table in tables(results):
        print_table((table.columns[0], *map(Number, table.columns[1:])), table.rows, title="\n" + table.title)
    print(f"\nthe local mesh was up after {results['start_up_s']:.1f} s")


def write(results: Results, folder: Path) -> None:
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "overhead.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (folder / "overhead.md").write_text(page(results), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    base = QUICK if options.quick else DEFAULT
    settings = Settings(rounds=options.rounds or base.rounds, seconds=options.seconds or base.seconds)
    output = options.output or (None if options.quick else RESULTS)
    try:
        results = asyncio.run(run(settings, " ".join(["python -m benchmarks.overhead", *given])))
    except MeshError as error:
        note(f"Error: {error.message}")
        return 1
    show(results)
    if output:
        write(results, output)
        note(f"written: {output / 'overhead.json'} and {output / 'overhead.md'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=_positive(int), metavar="N", help=f"default {DEFAULT.rounds}")
    parser.add_argument(
        "--seconds", type=_positive(float), metavar="S", help=f"of each measurement; default {DEFAULT.seconds}"
    )
    parser.add_argument("--quick", action="store_true", help="one short round; written only where --output says")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default benchmarks/results")
    return parser


def _positive(kind: type[Any]) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
