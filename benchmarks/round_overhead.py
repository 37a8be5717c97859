"""What a round and a run of the mesh cost beyond Flower's own: `python -m benchmarks.round_overhead`.

One SuperLink and three SuperNodes, as the mesh runs them, make rounds of two apps that train the same small model on
the same data, in turns: one as Flower's documentation teaches, with Flower's own server program and loop; and the
mesh's own, made for a recipe. Writes benchmarks/results/round_overhead.{json,md}. Some minutes; needs Flower.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from nearmesh_agent.training import site
from nearmesh_agent.training.config import DataConfig
from nearmesh_controlplane.runs.apps import write_app
from nearmesh_controlplane.runs.folder import Plan, RunFolder, SiteInfo

from benchmarks.flower_fleet import Fleet, fleet_in
from benchmarks.machine import commit, machine
from benchmarks.table import Table, markdown
from nearmesh.cli.output import Number, note, print_table
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.flower_processes import environment

RESULTS = CHECKOUT / "benchmarks" / "results" / "round_overhead.json"
NODES, ROUNDS, TURNS = 3, 3, 3
# What a round may cost beyond Flower's own.
MOST_S = 1.0
PLAIN, MESH = "Flower alone", "the mesh"
RUN_WITHIN_S = 400.0

RECIPE = """
import numpy as np


def train(arrays, data, settings):
    x, y, weight = data.inputs["x"], data.targets, arrays["weight"]
    for _ in range(10):
        weight = weight - 0.1 * x.T @ (x @ weight - y[:, None]) / len(y)
    return {"weight": weight.astype(np.float32)}, {"loss": float(((x @ weight - y[:, None]) ** 2).mean())}


def evaluate(arrays, data, settings):
    return {"accuracy": -float(((data.inputs["x"] @ arrays["weight"] - data.targets[:, None]) ** 2).mean())}
"""
PROJECT = """
[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "plain.server:app"
clientapp = "plain.client:app"

[tool.flwr.app.config]
out = ""
rounds = 1
"""
CLIENT = """
from types import SimpleNamespace

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from plain import recipe

app = ClientApp()


def work(message, context, name):
    with np.load(f"{context.node_config['data-path']}/{name}.npz") as found:
        data = SimpleNamespace(inputs={"x": found["input.x"]}, targets=found["target"])
    return {"weight": message.content["arrays"]["weight"].numpy()}, data


@app.train()
def train(message, context):
    arrays, data = work(message, context, "train")
    arrays, metrics = recipe.train(arrays, data, {})
    metrics = MetricRecord({"num-examples": len(data.targets), **metrics})
    records = {"arrays": ArrayRecord({name: Array(one) for name, one in arrays.items()}), "metrics": metrics}
    return Message(RecordDict(records), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    arrays, data = work(message, context, "held_back")
    metrics = MetricRecord({"num-examples": len(data.targets), **recipe.evaluate(arrays, data, {})})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""
SERVER = '''
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    def note(server_round, arrays):
        """When a round ended; the one before the first is its beginning."""
        with Path(context.run_config["out"]).open("a") as file:
            file.write(f"{time.time()}\\n")

    strategy = FedAvg(min_available_nodes=3)
    while len(list(grid.get_node_ids())) < 3:
        time.sleep(0.1)
    initial = ArrayRecord({"weight": Array(np.zeros((8, 1), np.float32))})
    strategy.start(grid, initial, num_rounds=context.run_config["rounds"], evaluate_fn=note)
'''


async def run(folder: Path, turns: int) -> dict[str, Any]:
    """Seconds of each round, and of each run from its being asked for to its end, by who made it."""
    found: dict[str, Any] = {name: {"rounds_s": [], "runs_s": []} for name in (PLAIN, MESH)}
    async with fleet_in(folder) as fleet, AsyncExitStack() as stack:
        sites = await _nodes(fleet, stack)
        app = _plain_app(folder / "plain-app")
        for turn in range(turns):
            for name in (PLAIN, MESH) if turn % 2 else (MESH, PLAIN):
                started = time.monotonic()
                if name == PLAIN:
                    rounds = await _plain(fleet, app, folder / f"plain-{turn}.txt")
                else:
                    rounds = await _mesh(fleet, RunFolder(folder / f"run-{turn}"), sites)
                found[name]["runs_s"].append(time.monotonic() - started)
                found[name]["rounds_s"] += rounds
                note(f"{name}: {found[name]['runs_s'][-1]:.1f} s, rounds {', '.join(f'{one:.1f}' for one in rounds)}")
    return found


async def _nodes(fleet: Fleet, stack: AsyncExitStack) -> dict[int, SiteInfo]:
    keys, ids = await fleet.nodes(*(f"node-{number}" for number in range(NODES)))
    for number, (name, key) in enumerate(keys.items()):
        data = _data(fleet.folder / f"data-{number}", number)
        file = site.Site(data={"m": DataConfig(path=data)}).write(data)
        said = ("--node-config", f"{site.KEY}='{file}' data-path='{data}'")
        await stack.enter_async_context(fleet.supernode(name, key, *said))
    return {id: SiteInfo(node=name, site=name, region="r", pseudonym=name) for name, id in ids.items()}


def _data(folder: Path, number: int) -> Path:
    folder.mkdir()
    drawn = np.random.default_rng(number)
    x = drawn.normal(size=(200, 8)).astype(np.float32)
    y = (x @ np.arange(8, dtype=np.float32)).astype(np.float32)
    np.savez(folder / "train.npz", **{"input.x": x[:150], "target": y[:150]})
    np.savez(folder / "held_back.npz", **{"input.x": x[150:], "target": y[150:]})
    return folder


def _plain_app(folder: Path) -> Path:
    (folder / "plain").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    for name, text in {"__init__": "", "client": CLIENT, "server": SERVER, "recipe": RECIPE}.items():
        (folder / "plain" / f"{name}.py").write_text(text)
    return folder


async def _plain(fleet: Fleet, app: Path, out: Path) -> list[float]:
    with _flowers_own_program(fleet):
        run = await fleet.engine.start(app, {"out": str(out), "rounds": ROUNDS})
        await _ended(fleet, run)
    times = [float(line) for line in (await asyncio.to_thread(out.read_text)).split()]
    return [after - before for before, after in itertools.pairwise(times)]


async def _mesh(fleet: Fleet, folder: RunFolder, sites: dict[int, SiteInfo]) -> list[float]:
    folder.make()
    plan = Plan(
        run=folder.path.name,
        model="m",
        rounds=ROUNDS,
        min_sites=NODES,
        strategy="fedavg",
        round_timeout_s=120.0,
        metric="accuracy",
        parameters=["weight"],
    )
    folder.write_plan(plan)
    folder.write_sites(sites)
    folder.write_initial({"weight": np.zeros((8, 1), np.float32)})
    write_app(
        folder.app,
        recipe=RECIPE.encode(),
        model="m",
        metric="accuracy",
        inputs=["x"],
        settings={},
        run_folder=folder.path,
    )
    await _ended(fleet, await fleet.engine.start(folder.app, {}))
    return [record.ended_at_s - record.began_at_s for record in folder.rounds() if record.number]


async def _ended(fleet: Fleet, run: str) -> None:
    ended = await fleet.ended(run, within_s=RUN_WITHIN_S)
    if ended.state != "finished":
        raise RuntimeError(f"the run {ended.state}: {ended.detail}\n{await fleet.engine.log(run)}")


@contextlib.contextmanager
def _flowers_own_program(fleet: Fleet) -> Any:
    """Server apps run in Flower's own program for a while, and not in the mesh's, which watches them."""
    environment(fleet.folder / "flower" / "home")
    try:
        yield
    finally:
        fleet.superlink._environment()


def table(found: dict[str, Any]) -> Table:
    rows = []
    for what, key in (("one round", "rounds_s"), ("a whole run", "runs_s")):
        plain, mesh = (statistics.median(found[name][key]) for name in (PLAIN, MESH))
        ours = found[MESH][key]
        spread = f"{min(ours):.1f} to {max(ours):.1f} s of {len(ours)}"
        rows.append((what, f"{plain:.2f} s", f"{mesh:.2f} s", f"{mesh - plain:+.2f} s", spread))
    columns = ("", PLAIN, MESH, "more", f"{MESH}, spread")
    return Table(title="Medians", columns=columns, rows=tuple(rows))


def overhead_s(found: dict[str, Any]) -> float:
    """Of a round, beyond Flower's own."""
    plain, mesh = (statistics.median(found[name]["rounds_s"]) for name in (PLAIN, MESH))
    return mesh - plain


def page(results: dict[str, Any]) -> str:
    taken, where = results["taken"], results["machine"]
    bar = "held" if overhead_s(results["found"]) < MOST_S else "NOT HELD"
    changes = ", with uncommitted changes" if taken["uncommitted_changes"] else ""
    sections = (
        "# What a round and a run cost beyond Flower's own",
        f"Written by `{taken['command']}`; a new run replaces it.",
        f"One SuperLink and {NODES} SuperNodes on one machine; two apps train the same small model on the same data, "
        f"{ROUNDS} rounds at a time, in turns. *{PLAIN}* is an app as Flower's documentation teaches, in Flower's own "
        f"server program; *{MESH}* is its own app for a recipe, which besides judges the first version before the "
        "rounds. Every message starts a process at its node, in either. Flower's own loop looks for answers every 3 s, "
        "the mesh's sooner, so that the difference may be below zero.",
        markdown(table(results["found"])),
        f"A round may cost at most {MOST_S:g} s more: {bar}.",
        f"- {taken['at']}, commit `{taken['commit'][:12]}`{changes}\n- {where['cpu']}, {where['cores']} cores, load "
        f"average before the run {where['load_before']}",
    )
    return "\n\n".join(sections) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--turns", type=int, default=TURNS, help=f"runs of each; default {TURNS}")
    options.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    chosen = options.parse_args(given)
    at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    taken = {"at": at, "command": " ".join(["python -m benchmarks.round_overhead", *given]), **commit()}
    results: dict[str, Any] = {"taken": taken, "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="nearmesh-rounds-") as folder:
        results["found"] = asyncio.run(run(Path(folder), chosen.turns))
    shown = table(results["found"])
    print_table((shown.columns[0], *map(Number, shown.columns[1:])), shown.rows, title="\n" + shown.title)
    chosen.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    chosen.json.with_suffix(".md").write_text(page(results), "utf-8")
    return 0 if overhead_s(results["found"]) < MOST_S else 1


if __name__ == "__main__":
    sys.exit(main())
