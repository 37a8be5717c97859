"""How one control plane holds up: 200 sites, 100 models and 5,000 discovery streams, and how that grows.

A real control plane as a process, 200 sessions of nodes that report each second, 5,000 streams that ask as gRPC clients
do, each for one model from one of 20 regions. Then the price of a node changes that nearly every model is served on:
until when has each stream heard of it, and what did it cost? The same for other numbers of sites and of streams.
Nothing is subtracted: the control plane's processor time includes what its nodes report meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, machine
from benchmarks.scale.page import page, tables
from benchmarks.scale.plan import Size
from benchmarks.scale.run import measure
from benchmarks.table import markdown
from nearmesh.errors import MeshError

RESULTS = Path(__file__).parents[1] / "results"
FULL = Size()
SITES, STREAMS = (50, 100, 200, 400), (1000, 2500, 5000, 10_000)
# Up and down again, so often.
CHANGES = 6


def sizes(full: Size) -> list[Size]:
    """What is measured: sites grow at the full number of streams, and streams at the full number of sites."""
    by_sites = [replace(full, sites=sites) for sites in SITES]
    by_streams = [replace(full, streams=streams) for streams in STREAMS]
    return list(dict.fromkeys([full, *by_sites, *by_streams]))


async def run(wanted: Sequence[Size], changes: int, command: str) -> dict[str, Any]:
    """Measures every size, one after another."""
    began = time.monotonic()
    found: dict[str, Any] = {
        "taken": {"at": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, **commit()},
        "machine": machine(),
        "measured": [],
    }
    for size in wanted:
        note(f"{size.sites} sites, {size.models} models, {size.streams} streams")
        with tempfile.TemporaryDirectory(prefix="nearmesh-scale-") as folder:
            found["measured"].append(asdict(await measure(Path(folder), size, changes, lambda text: note(f"  {text}"))))
    found["taken"]["duration_s"] = time.monotonic() - began
    return found


def note(text: str) -> None:
    """For people who wait."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    size = replace(FULL, **{name: value for name in ("sites", "models", "streams") if (value := vars(options)[name])})
    wanted = [size] if options.one else sizes(size)
    try:
        results = asyncio.run(run(wanted, options.changes, " ".join(["python -m benchmarks.scale", *given])))
    except MeshError as error:
        note(f"Error: {error.message}")
        return 1
    print("\n\n".join(f"{table.title}\n\n{markdown(table)}" for table in tables(results)))
    output = options.output or (None if options.one else RESULTS)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "scale.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (output / "scale.md").write_text(page(results), "utf-8")
        note(f"written: {output / 'scale.json'} and {output / 'scale.md'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("sites", "models", "streams"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"default {getattr(FULL, name)}")
    parser.add_argument("--changes", type=int, default=CHANGES, metavar="N", help=f"of the price; default {CHANGES}")
    parser.add_argument("--one", action="store_true", help="this size alone; written only where --output says")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default benchmarks/results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
