"""`python -m benchmarks.pull`: a gigabyte over 1 Gbit/s with 40 ms of round trip, by ranges of an emulated WAN.

In turns: one stream, a bare reader over several connections that checks and keeps nothing, and the node's store. Then
the store while the WAN is cut ten times, and three nodes of one site at once. A process each for the registry (the
control plane's own pull API over HTTPS), the WAN and each node. Some five minutes, and 5 GB in --folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, machine
from benchmarks.pull.wan import Settings, measure
from benchmarks.table import Table, markdown

RESULTS = Path(__file__).parents[1] / "results"


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    settings, size = found["settings"], found["settings"]["size_bytes"]
    rows = []
    for name, runs in found["runs"].items():
        seconds = sorted(run["seconds"] for run in runs)
        middle = seconds[len(seconds) // 2]
        rows.append(
            (
                name,
                f"{middle:.1f}",
                f"{seconds[0]:.1f} to {seconds[-1]:.1f}",
                f"{size * 8 / 1e6 / middle:.0f}",
                f"{runs[0]['crossed_bytes'] / size:.3f}",
                f"{sorted(run['cpu_s'] for run in runs)[len(runs) // 2]:.1f}",
            )
        )
    columns = ("way", "seconds", "of all rounds", "Mbit/s", "crossed the WAN, times the size", "processor, s")
    table = markdown(Table(title="", columns=columns, rows=tuple(rows)))
    host = found["machine"]
    return f"""# Pulling a version over a WAN

`python -m benchmarks.pull`: {size / 2**30:g} GiB over {settings["mbit_s"]:g} Mbit/s with
{settings["round_trip_ms"]:g} ms of round trip. One connection has {settings["window_bytes"] / 2**20:g} MiB under way
at most, as a host with small TCP windows. Registry, WAN proxy and nodes share one machine ({host["cores"]} cores,
{host["cpu"]}, load before {host["load_before"]}). *Bare* reads the same ranges and throws them away: no hashing, no
disk. Taken {found["taken"]["at"]} at commit {found["taken"]["commit"][:12]}.

{table}

- The store has **{found["of_bare"]:.2f}** of the speed of the bare reader (the better one of each round; target 0.85),
  and **{found["times_one_stream"]:.1f} times** that of one stream (target 3).
- The bare reader got {found["bare_mbit_s"]:.0f} Mbit/s: what this machine's proxy and registry carry.
- Cut ten times, **{found["cut_crossed"]:.3f}** times the size crossed the WAN, TLS and HTTP included.
- Three nodes of one site together: **{found["three_crossed"]:.3f}** times the size (target 1.2).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=1024, help="of the version (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be written to")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/results")
    asked = parser.parse_args()
    before, began_s = machine(), time.monotonic()
    settings = Settings(size_bytes=asked.mib * 2**20, rounds=asked.rounds)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        found = asyncio.run(measure(Path(folder), settings))
    taken = {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **commit(),
        "duration_s": time.monotonic() - began_s,
    }
    shown = {key: getattr(settings, key) for key in ("size_bytes", "rounds", "round_trip_ms", "mbit_s", "window_bytes")}
    results = {"taken": taken, "machine": before, "settings": shown, **found}
    if asked.write:
        (RESULTS / "pull.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "pull.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
