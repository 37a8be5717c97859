"""What training beside serving costs the requests of a node: their percentiles in windows with and without it.

`python -m benchmarks.training_beside_serving` starts a node, asks it 20 times a second, and has it train for one window
of each pair: real PyTorch, one process for each message as Flower does it, within the node's budget. It prints the
percentiles and how they rise, and writes `benchmarks/results/training_beside_serving.json` and the page beside it.
About six minutes. `--no-budget` shows what the same training does to requests when nothing holds it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from benchmarks.beside.asking import MODELS, RATE_PER_S, ROUNDS, SECONDS, SETTLE_S, ask, request
from benchmarks.beside.windows import Rise, Window, bar, rise, table, turns
from benchmarks.lines import Lines, talking
from benchmarks.machine import commit, machine
from benchmarks.table import markdown
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.children import script
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError
from nearmesh.packaging.build import build
from nearmesh.packaging.sources import default_cache

RESULTS = CHECKOUT / "benchmarks" / "results"
WORK = "training"
CPU_SHARE = 0.5
SEED = 6
SAYS_WITHIN_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWindow(Window):
    """And what training did in it: examples a second, the share of the time for which it stood still, and what it had
    of the cores when the window ended."""

    examples_per_s: float = 0.0
    yielded: float = 0.0
    share: float = 0.0


@asynccontextmanager
async def node(models: Sequence[str], folder: Path, cpu_share: float | None) -> AsyncIterator[tuple[Lines, str]]:
    """A node that serves the models, and its address. Raises MeshError."""
    packages = {}
    for model in models:
        digest, place = await asyncio.to_thread(_package, model, folder / model)
        packages[digest] = str(place)
    order = json.dumps({"packages": packages, "folder": str(folder), "cpu_share": cpu_share})
    async with talking("the node", [script("python"), "-m", "benchmarks.beside.node", order]) as made:
        yield made, (await made.hear(SAYS_WITHIN_S))["address"]


def _package(model: str, place: Path) -> tuple[str, Path]:
    artifact = build(CHECKOUT / "models" / model, default_cache(), draft=True, workshop=False)
    for file in artifact.manifest.files:
        target = place / file.title
        target.parent.mkdir(parents=True, exist_ok=True)
        blob = artifact.blobs[file.digest]
        target.write_bytes(blob if isinstance(blob, bytes) else blob.read_bytes())
    return artifact.digest, place


async def measure(options: argparse.Namespace, folder: Path) -> list[TrainingWindow]:
    """Every window, in the order in which they were taken."""
    windows: list[TrainingWindow] = []
    cpu_share = None if options.no_budget else options.cpu_share
    async with node(options.models, folder, cpu_share) as (serving, address), grpc.aio.insecure_channel(address) as c:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(c)
        asked = {model: request(model) for model in options.models}
        for each in asked.values():
            await ask(stub, each, options.rate, 1.0)
        for number, model, training in turns(options.rounds, options.models, options.seed):
            before = await serving.ask(SAYS_WITHIN_S, train=training)
            await ask(stub, asked[model], options.rate, SETTLE_S)
            figures = await ask(stub, asked[model], options.rate, options.seconds)
            after = await serving.ask(SAYS_WITHIN_S, train=False)
            did = _training(before, after, SETTLE_S + options.seconds) if training else {}
            window = TrainingWindow(round=number, model=model, beside=training, **figures, **did)
            windows.append(window)
            beside = f"beside training ({window.yielded:.0%} of it standing still)" if training else "without training"
            note(f"round {number}, {model}: p99 {window.p99_ms:.2f} ms {beside} {after['paused']}")
    return windows


def _training(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> dict[str, float]:
    return {
        "examples_per_s": (after["examples"] - before["examples"]) / seconds,
        "yielded": (after["yielded_s"] - before["yielded_s"]) / seconds,
        "share": after["share"],
    }


# What comes of it.


def page(results: Mapping[str, Any]) -> str:
    """The whole Markdown page."""
    windows = [TrainingWindow(**window) for window in results["windows"]]
    settings, taken, where = results["settings"], results["taken"], results["machine"]
    trained = [window for window in windows if window.beside]
    held = (
        f"within a budget of {settings['cpu_share']:.0%} of the cores" if settings["cpu_share"] else "without a budget"
    )
    failed, calls = sum(window.errors for window in windows), sum(window.calls for window in windows)
    examples, yielded = (_mean([getattr(w, of) for w in trained]) for of in ("examples_per_s", "yielded"))
    return (
        "# Training beside serving\n\n"
        f"Written by `{taken['command']}`; a new run replaces it. Every window is in the JSON file beside this page.\n"
        f"\nA node is asked {settings['rate_per_s']:g} times a second, in {settings['rounds']} pairs of windows of "
        f"{settings['seconds']:g} s for each model. Beside one window of each pair it trains, in an order by chance: "
        f"PyTorch on scikit-learn's digits, a process for each message as Flower has it, {held}. Figures are medians "
        "of the rounds, with the lowest and the highest in brackets; times are the caller's, a rise is the median of "
        f"each round's own. {bar()}\n\n{markdown(table(windows, WORK))}\n\n"
        f"{failed} of {calls} requests failed. Training went through {examples:,.0f} examples a second, and stood "
        f"still for {yielded:.0%} of the time.\n\n"
        "The caller, the node and training share this machine's cores; on another machine the caller would not be "
        "held up. There is no GPU.\n\n"
        f"Taken at {taken['at']}, commit `{taken['commit'][:12]}`, on {where['cpu']}, {where['cores']} cores, "
        f"{where['kernel']}; load average before the run {where['load_before']}.\n"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    results: dict[str, Any] = {
        "taken": {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python -m benchmarks.training_beside_serving", *given]),
            **commit(),
        },
        "machine": machine(),
        "settings": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "rate_per_s": options.rate,
            "seed": options.seed,
            "cpu_share": 0.0 if options.no_budget else options.cpu_share,
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
    if output := options.output or (None if options.no_budget else RESULTS):
        output.mkdir(parents=True, exist_ok=True)
        (output / "training_beside_serving.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (output / "training_beside_serving.md").write_text(page(results), "utf-8")
    tails: list[Rise] = [rise([w for w in windows if w.model == model]) for model in options.models]
    return 0 if options.no_budget or all(tail.held for tail in tails) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_beside_serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="packages in models/")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"of a window; default {SECONDS:g}")
    parser.add_argument(
        "--rate", type=float, default=RATE_PER_S, metavar="R", help=f"requests a second; default {RATE_PER_S:g}"
    )
    parser.add_argument("--cpu-share", type=float, default=CPU_SHARE, metavar="P", help=f"default {CPU_SHARE}")
    parser.add_argument(
        "--no-budget", action="store_true", help="nothing holds training; written only where --output says"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the order")
    parser.add_argument("--output", type=Path, default=None, metavar="FOLDER", help="default benchmarks/results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
