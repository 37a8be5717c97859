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
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.beside.windows import RISE, RISE_MS, Rise, Window, rise, turns
from benchmarks.figures import Spread, times
from benchmarks.machine import commit, machine
from benchmarks.table import Table, markdown
from nearmesh import tensors
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.children import script
from nearmesh.devmesh.load import unary_sample
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError
from nearmesh.packaging.build import build
from nearmesh.packaging.sources import default_cache
from nearmesh.process import leashed

RESULTS = CHECKOUT / "benchmarks" / "results"
MODELS = ("digits", "file-type", "text-recognizer")
CPU_SHARE = 0.5
RATE_PER_S = 20.0
ROUNDS, SECONDS = 5, 12.0
SEED = 6
# After a change: what was under way ends, and an app imports its libraries.
SETTLE_S = 1.0
SAYS_WITHIN_S = 90.0


class NodeFailed(MeshError):
    """The node of the benchmark ended, or was silent for too long."""

    reason = "NODE_FAILED"


class Node:
    """The node's process: a line in, a line out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def hear(self) -> dict[str, Any]:
        """Its next line. Raises NodeFailed."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(SAYS_WITHIN_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            # Who says nothing would not hear of the input's end either.
            self._process.kill()
            raise NodeFailed(f"the node has said nothing for {SAYS_WITHIN_S:g} s, and is killed") from None
        if not line:
            raise NodeFailed(f"the node ended with code {await self._process.wait()}; see its error above")
        found: dict[str, Any] = json.loads(line)
        return found

    async def train(self, wanted: bool) -> dict[str, Any]:
        """Begins or ends training; what training did so far. Raises NodeFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"train": wanted}).encode() + b"\n")
        return await self.hear()


@asynccontextmanager
async def node(models: Sequence[str], folder: Path, cpu_share: float | None) -> AsyncIterator[tuple[Node, str]]:
    """A node that serves the models, and its address."""
    packages = {}
    for model in models:
        digest, place = await asyncio.to_thread(_package, model, folder / model)
        packages[digest] = str(place)
    order = json.dumps({"packages": packages, "folder": str(folder), "cpu_share": cpu_share})
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *leashed([script("python"), "-m", "benchmarks.beside.node", order]),
        stdin=pipe,
        stdout=pipe,
        cwd=CHECKOUT,
        start_new_session=True,
    )
    try:
        made = Node(process)
        yield made, (await made.hear())["address"]
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def _package(model: str, place: Path) -> tuple[str, Path]:
    artifact = build(CHECKOUT / "models" / model, default_cache(), draft=True, workshop=False)
    for file in artifact.manifest.files:
        target = place / file.title
        target.parent.mkdir(parents=True, exist_ok=True)
        blob = artifact.blobs[file.digest]
        target.write_bytes(blob if isinstance(blob, bytes) else blob.read_bytes())
    return artifact.digest, place


def request(model: str) -> service_pb2.ModelInferRequest:
    """With a real input."""
    if model == "digits":
        return tensors.encode_request(model, {"pixels": np.full((1, 64), 8, np.float32)})
    return tensors.encode_request(model, unary_sample(model).inputs)


async def ask(stub: Any, asked: service_pb2.ModelInferRequest, rate_per_s: float, seconds: float) -> Mapping[str, Any]:
    """A window's figures: requests begin on schedule whether earlier ones have ended or not."""
    took_ms: list[float] = []
    errors: list[str] = []

    async def one() -> None:
        started = time.perf_counter()
        try:
            await stub.ModelInfer(asked, timeout=10.0)
        except grpc.aio.AioRpcError as error:
            errors.append(f"{error.code().name}: {error.details()}")
        took_ms.append((time.perf_counter() - started) * 1000)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        for number in range(round(rate_per_s * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate_per_s - time.perf_counter()))
            calls.create_task(one())
    for error in errors[:3]:
        note(f"a request failed: {error}")
    return {"calls": len(took_ms), "errors": len(errors), **times(took_ms)}


async def measure(options: argparse.Namespace, folder: Path) -> list[Window]:
    """Every window, in the order in which they were taken."""
    windows: list[Window] = []
    cpu_share = None if options.no_budget else options.cpu_share
    async with node(options.models, folder, cpu_share) as (serving, address), grpc.aio.insecure_channel(address) as c:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(c)
        asked = {model: request(model) for model in options.models}
        for each in asked.values():
            await ask(stub, each, options.rate, 1.0)
        for number, model, training in turns(options.rounds, options.models, options.seed):
            before = await serving.train(training)
            await ask(stub, asked[model], options.rate, SETTLE_S)
            figures = await ask(stub, asked[model], options.rate, options.seconds)
            after = await serving.train(False)
            did = _training(before, after, SETTLE_S + options.seconds) if training else {}
            window = Window(round=number, model=model, training=training, **figures, **did)
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


def table(windows: Sequence[Window]) -> Table:
    """A line for each model."""
    columns = ("model", "p50 without ms", "p50 beside ms", "p99 without ms", "p99 beside ms", "p99 rises by", "held")
    models = list(dict.fromkeys(window.model for window in windows))
    rows = tuple(_row(model, [window for window in windows if window.model == model]) for model in models)
    return Table(title="Requests without training and beside it", columns=columns, rows=rows)


def _row(model: str, windows: Sequence[Window]) -> tuple[str, ...]:
    median, tail = rise(windows, "p50_ms"), rise(windows)
    return (
        model,
        _spread(median.without),
        _spread(median.beside),
        _spread(tail.without),
        _spread(tail.beside),
        f"{tail.rise_ms:.2f} ms ({tail.rise:.0%})",
        "yes" if tail.held else "no",
    )


def _spread(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def page(results: Mapping[str, Any]) -> str:
    """The whole Markdown page."""
    windows = [Window(**window) for window in results["windows"]]
    settings, taken, where = results["settings"], results["taken"], results["machine"]
    trained = [window for window in windows if window.training]
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
        f"each round's own. Promised is that the 99th percentile rises by {RISE:.0%} or {RISE_MS:g} ms at most, "
        f"whichever is more.\n\n{markdown(table(windows))}\n\n"
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
    found = table(windows)
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
