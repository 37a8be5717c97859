"""What searches of vectors cost the requests to models of the same node: percentiles in windows with and without them.

`python -m benchmarks.vectors_beside_serving` starts a control plane and a node that serves three models and keeps
100,000 vectors, asks each model 20 times a second, and searches 100 times a second in one window of each pair. It
prints the percentiles and how they rise, and writes `vectors_beside_serving.json` and a page in `benchmarks/results`.
About nine minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from benchmarks import local
from benchmarks.beside.asking import MODELS, RATE_PER_S, ROUNDS, SECONDS, SETTLE_S, ask, request
from benchmarks.beside.windows import Window, bar, rise, table, turns
from benchmarks.figures import Spread, times
from benchmarks.machine import commit, machine
from benchmarks.table import markdown
from benchmarks.vectors.contest import FILL_WITHIN_S
from benchmarks.vectors.corpus import Shape, kept
from benchmarks.vectors.plan import Settings
from benchmarks.vectors.stores import NODE, Running, running
from benchmarks.vectors.systems import OURS, SYSTEMS
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError
from nearmesh.packaging.build import build
from nearmesh.packaging.sources import default_cache

RESULTS = CHECKOUT / "benchmarks" / "results"
WORK = "searches"
ROWS, SEARCHES_PER_S = 100_000, 100.0
SEED = 7
ANSWERS_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchWindow(Window):
    """And how the searches went in it; a time is from when a search was due."""

    searches: int = 0
    search_errors: int = 0
    search_p50_ms: float = 0.0
    search_p99_ms: float = 0.0


async def measure(options: argparse.Namespace, scratch: Path) -> list[SearchWindow]:
    """Every window, in the order in which they were taken. Raises MeshError, TimeoutError."""
    shape = Shape(rows=options.rows, queries=1_000, tuning=1)
    corpus = await asyncio.to_thread(kept, shape, scratch / "corpus")
    folder = scratch / OURS
    await asyncio.to_thread(folder.mkdir)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(running(SYSTEMS[OURS], Settings(shape=shape), corpus, folder))
        mesh = local.Local(folder, store.task["control_plane"])
        for model in options.models:
            artifact = await asyncio.to_thread(build, CHECKOUT / "models" / model, default_cache())
            await local.serve(mesh, artifact, {NODE})
        note(f"{options.rows:,} vectors are taken in")
        await store.ask("fill", FILL_WITHIN_S)
        await store.rest(options.rest)
        channel = await stack.enter_async_context(_channel(store))
        return await _windows(options, store, service_pb2_grpc.GRPCInferenceServiceStub(channel))


def _channel(store: Running) -> Any:
    """To the node, as a client has it."""
    task = store.task
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(Path(task["ca"]).read_bytes()),
        grpc.access_token_call_credentials(Path(task["token"]).read_text("utf-8")),
    )
    options = [("grpc.ssl_target_name_override", task["server_name"])]
    return grpc.aio.secure_channel(task["address"], credentials, options)


async def _windows(options: argparse.Namespace, store: Running, stub: Any) -> list[SearchWindow]:
    windows: list[SearchWindow] = []
    asked = {model: request(model) for model in options.models}
    for each in asked.values():
        await ask(stub, each, options.rate, 1.0)
    for number, model, beside in turns(options.rounds, options.models, options.seed):
        if beside:
            # They begin before the window and end after it.
            store.lines.say(do="steady", rate_per_s=options.searches, seconds=options.seconds + 2 * SETTLE_S)
        await ask(stub, asked[model], options.rate, SETTLE_S)
        figures = await ask(stub, asked[model], options.rate, options.seconds)
        done = _searches(await store.lines.hear(options.seconds + ANSWERS_WITHIN_S)) if beside else {}
        window = SearchWindow(round=number, model=model, beside=beside, **figures, **done)
        windows.append(window)
        how = f"beside searches of {window.search_p50_ms:.2f} ms" if beside else "without searches"
        note(f"round {number}, {model}: p99 {window.p99_ms:.2f} ms {how}")
    return windows


def _searches(found: Mapping[str, Any]) -> dict[str, Any]:
    took = times(found["took_ms"])
    return {
        "searches": len(found["took_ms"]),
        "search_errors": found["errors"],
        "search_p50_ms": took["p50_ms"],
        "search_p99_ms": took["p99_ms"],
    }


def page(results: Mapping[str, Any]) -> str:
    """The whole Markdown page."""
    windows = [SearchWindow(**window) for window in results["windows"]]
    settings, taken, where = results["settings"], results["taken"], results["machine"]
    failed, calls = sum(window.errors for window in windows), sum(window.calls for window in windows)
    beside = [window for window in windows if window.beside]
    lost, searches = sum(w.search_errors for w in beside), sum(w.searches for w in beside)
    median, tail = (Spread.of([getattr(w, f"search_{p}_ms") for w in beside]).median for p in ("p50", "p99"))
    return (
        "# Searches of vectors beside serving\n\n"
        f"Written by `{taken['command']}`; a new run replaces it. Every window is in the JSON file beside this page.\n"
        f"\nA node serves models and keeps {settings['rows']:,} vectors of 384 dimensions. A model is asked "
        f"{settings['rate_per_s']:g} times a second, in {settings['rounds']} pairs of windows of "
        f"{settings['seconds']:g} s for each model; in one window of each pair, by chance the first or the second, "
        f"the vectors are searched {settings['searches_per_s']:g} times a second through the same agent. Figures are "
        "medians of the rounds, with the lowest and the highest in brackets; times are the caller's, a rise is the "
        f"median of each round's own. {bar()}\n\n{markdown(table(windows, WORK))}\n\n"
        f"{failed} of {calls} requests and {lost} of {searches} searches failed. In the median window a search took "
        f"{median:.2f} ms, and {tail:.2f} ms at the 99th percentile, from when it was due.\n\n"
        "The callers of both, the agent and the vectors' process share this machine's cores; on another machine the "
        "callers would take nothing of them. There is no GPU.\n\n"
        f"Taken at {taken['at']}, commit `{taken['commit'][:12]}`, on {where['cpu']}, {where['cores']} cores, "
        f"{where['kernel']}; load average before the run {where['load_before']}.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    results: dict[str, Any] = {
        "taken": {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python -m benchmarks.vectors_beside_serving", *given]),
            **commit(),
        },
        "machine": machine(),
        "settings": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "rate_per_s": options.rate,
            "searches_per_s": options.searches,
            "rows": options.rows,
            "seed": options.seed,
        },
    }
    with tempfile.TemporaryDirectory(prefix="nearmesh-bench-") as folder:
        try:
            windows = asyncio.run(measure(options, Path(folder)))
        except MeshError as error:
            note(f"Error: {error.message}")
            return 1
    results["windows"] = [asdict(window) for window in windows]
    found = table(windows, WORK)
    print_table((found.columns[0], *map(Number, found.columns[1:])), found.rows, title="\n" + found.title)
    output: Path = options.output or RESULTS
    output.mkdir(parents=True, exist_ok=True)
    (output / "vectors_beside_serving.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (output / "vectors_beside_serving.md").write_text(page(results), "utf-8")
    return 0 if all(rise([w for w in windows if w.model == model]).held for model in options.models) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectors_beside_serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="packages in models/")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"of a window; default {SECONDS:g}")
    parser.add_argument(
        "--rate", type=float, default=RATE_PER_S, metavar="R", help=f"requests a second; default {RATE_PER_S:g}"
    )
    parser.add_argument(
        "--searches", type=float, default=SEARCHES_PER_S, metavar="R", help=f"a second; default {SEARCHES_PER_S:g}"
    )
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"default {ROWS}")
    parser.add_argument(
        "--rest", type=float, default=2.0, metavar="S", help="it is waited for until it was idle so long; default 2"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the order")
    parser.add_argument("--output", type=Path, default=None, metavar="FOLDER", help="default benchmarks/results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
