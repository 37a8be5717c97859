"""The fault and fuzz runs at full counts: `make soak`. Results, with every figure, go to tests/faults/results.

Every scenario is run to its end even when an earlier one failed; the exit code says whether all of them held.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nearmesh.devmesh.mesh import LocalMesh, local_mesh
from nearmesh.devmesh.plan import MODELS, REGIONS, site_of
from nearmesh.devmesh.tour import tour
from tests.faults import (
    control_planes,
    departures,
    federated,
    many_models,
    matrix,
    pulls,
    scenarios,
    vector_agents,
    vector_switches,
    vectors,
    vectors_apart,
)
from tests.faults.live import live
from tests.faults.live_report import broken
from tests.faults.machine import machine
from tests.faults.test_fuzz import fuzzed
from tests.postgres import postgres

RESULTS = Path(__file__).parent / "results"
LIVE = "live: ten minutes of calls on every way in, while a script does all kinds of things to the mesh"
LIVE_S, LIVE_SEED = 600.0, 1
FUZZ_COUNT, FUZZ_SEEDS = 10_000, (7, 8)
CONTROL_PLANE_AWAY_S = 60.0
CONTROL_PLANE_FAULTS = 20
PULL_KILLS = VECTOR_KILLS = 20
VECTORS_APART_S, VECTORS_KILLS = 60.0, 20
MANY_MODELS, MANY_ROOM, MANY_REQUESTS = 1000, 50, 10_000

Run = tuple[str, Callable[[LocalMesh], Awaitable[Any]]]


def runs() -> Iterator[Run]:
    """Every scenario by name, in order."""
    yield "nearest site, every region, model and way", _nearest
    for region in REGIONS:
        for model in MODELS:
            for ways in scenarios.groups(model):
                where = f"{model} from {region} by {', '.join(ways)}"
                yield f"cheaper price: {where}", _with(scenarios.price_moves_traffic, region, model, ways)
                yield f"killed node: {where}", _with(scenarios.killed_node, region, model, ways)
        for how in departures.HOW:
            where = f"node leaves ({how}): file-type from {region}"
            yield where, _with(departures.departed_node, how, region, "file-type")
        for how in ("sigterm", "notice"):
            yield (
                f"sequences of a leaving node ({how}): from {region}",
                _with(departures.departed_sequences, how, region),
            )
        yield f"frozen node: from {region}", _with(scenarios.frozen_node, region, "file-type")
        yield f"lost sequences: from {region}", _with(scenarios.lost_sequences, region)
    yield "versions come and go: the matrix of phases and faults, 50 calls a second", _matrix
    yield "control plane away", _with(scenarios.killed_control_plane, "europe-west1", CONTROL_PLANE_AWAY_S)


def _with(scenario: Callable[..., Awaitable[Any]], *arguments: Any) -> Callable[[LocalMesh], Awaitable[Any]]:
    return lambda mesh: scenario(mesh, *arguments)


async def _nearest(mesh: LocalMesh) -> dict[str, Any]:
    rows = await tour(mesh.plan.folder, objective="nearest")
    wrong = [row for row in rows if not row.correct or row.site != site_of(row.region)]
    assert not wrong, wrong
    return {"rows": len(rows), "wrong": 0}


async def _switches(folder: Path) -> dict[str, Any]:
    outcome = await vector_switches.switched(folder, VECTOR_KILLS)
    assert not outcome.wrong, outcome.wrong
    return asdict(outcome)


async def _vectors(folder: Path, what: str) -> dict[str, Any]:
    return await asyncio.to_thread(vectors.killed, folder, [what], VECTOR_KILLS)


async def _matrix(mesh: LocalMesh) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nearmesh-matrix-") as scratch:
        return await matrix.run(mesh, Path(scratch))


async def _measured(name: str, run: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """One scenario's entry in the results."""
    started = time.monotonic()
    entry: dict[str, Any] = {"name": name, "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            entry["figures"] = await run()
        entry["held"] = True
    except Exception as error:  # noqa: BLE001  # whatever goes wrong is this scenario's result
        entry |= {"held": False, "error": f"{type(error).__name__}: {error}"[:2000], "said": said.getvalue()}
        traceback.print_exc()
    entry["seconds"] = round(time.monotonic() - started, 1)
    print(f"{'held' if entry['held'] else 'FAILED':6s} {entry['seconds']:6.1f} s  {name}", flush=True)
    return entry


async def soak(only: str) -> list[dict[str, Any]]:
    """Every entry whose name contains `only`."""
    found = []
    chosen = [(name, run) for name, run in runs() if only in name]
    with tempfile.TemporaryDirectory(prefix="nearmesh-soak-") as scratch:
        if chosen:
            async with local_mesh(Path(scratch) / "mesh") as mesh:
                for name, run in chosen:
                    found.append(await _measured(name, lambda run=run: run(mesh)))  # type: ignore[misc]
        if only in LIVE:
            found.append(await _measured(LIVE, lambda: _live(Path(scratch))))
        for seed in FUZZ_SEEDS:
            name = f"fuzz: {FUZZ_COUNT} mutated requests, seed {seed}"
            if only in name:
                folder = Path(scratch) / f"fuzz-{seed}"
                folder.mkdir()
                found.append(await _measured(name, lambda: _fuzz(folder, seed)))  # noqa: B023
        name = f"a pair of control planes over PostgreSQL: {CONTROL_PLANE_FAULTS} kills, freezes and restarts"
        if only in name:
            found.append(await _measured(name, lambda: _pair(Path(scratch) / "pair")))
        name = f"an agent killed {PULL_KILLS} times while it pulls a version"
        if only in name:
            found.append(await _measured(name, lambda: _pulls(Path(scratch) / "pulls")))
        name = "an agent killed while it shares a pull with two others"
        if only in name:
            found.append(await _measured(name, lambda: pulls.killed_sharer(Path(scratch) / "sharer")))
        name = f"vectors: killed {VECTOR_KILLS} times on the way from one embedder to another"
        if only in name:
            folder = Path(scratch) / "vector-switches"
            found.append(await _measured(name, lambda: _switches(folder)))
        for doing in vector_agents.DOING:
            name = f"vectors of a node: {doing}, its agent and its vectors' process killed {VECTOR_KILLS} times each"
            if only in name:
                folder = Path(scratch) / re.sub(r"\W+", "-", doing)
                found.append(await _measured(name, lambda: vector_agents.killed(folder, [doing], VECTOR_KILLS)))  # noqa: B023
        for what in vectors.WHAT:
            name = f"vectors: {what} killed {VECTOR_KILLS} times while they are written"
            if only in name:
                folder = Path(scratch) / re.sub(r"\W+", "-", f"vectors {what}")
                found.append(await _measured(name, lambda: _vectors(folder, what)))  # noqa: B023
        for who in federated.WHO:
            name = f"federated run: {who} killed in each phase"
            if only in name:
                folder = Path(scratch) / re.sub(r"\W+", "-", f"federated {who}")
                found.append(await _measured(name, lambda: federated.run(folder, who)))  # noqa: B023
        name = "federated run: a site that is cut off for a minute of every two"
        if only in name:
            found.append(await _measured(name, lambda: federated.cut_off(Path(scratch) / "federated-cut-off")))
        name = f"two sites with vectors in common: cut off for {VECTORS_APART_S:.0f} s, both write and delete"
        if only in name:
            folder = Path(scratch) / "vectors"
            found.append(await _measured(name, lambda: vectors_apart.run(folder, VECTORS_APART_S)))
        name = f"two sites with vectors in common: agents and vectors' processes killed {VECTORS_KILLS} times"
        if only in name:
            folder = Path(scratch) / "vectors-killed"
            found.append(await _measured(name, lambda: vectors_apart.killed(folder, VECTORS_KILLS)))
        name = f"many models: {MANY_MODELS} with memory for {MANY_ROOM}"
        if only in name:
            folder = Path(scratch) / "many"
            folder.mkdir()
            found.append(await _measured(name, lambda: _many(folder)))
    return found


async def _live(scratch: Path) -> dict[str, Any]:
    """On a mesh of its own, since it hands none back as it found it."""
    before = machine()
    async with local_mesh(scratch / "live-mesh") as mesh:
        found = await live(mesh, seed=LIVE_SEED, seconds=LIVE_S, folder=scratch)
    _write("live.json", {"machine": before, **found})
    assert not broken(found), broken(found)
    return {key: found[key] for key in ("ways", "kinds", "moves")}


async def _pair(folder: Path) -> dict[str, Any]:
    with postgres() as server:
        return await control_planes.tried(folder, server, CONTROL_PLANE_FAULTS, seed=1)


async def _pulls(folder: Path) -> dict[str, Any]:
    figures = await pulls.killed_while_pulling(folder, PULL_KILLS, seed=2)
    assert figures["while_pulling"] >= PULL_KILLS // 2, figures
    return figures


async def _many(folder: Path) -> dict[str, Any]:
    figures = await many_models.run(folder, MANY_MODELS, MANY_ROOM, MANY_REQUESTS)
    assert not figures["errors"], figures
    return figures


async def _fuzz(folder: Path, seed: int) -> dict[str, Any]:
    result = await fuzzed(folder, FUZZ_COUNT, seed)
    assert not result["faults"] and not result["wrong"], (result["faults"], result["wrong"])
    return result


def _write(name: str, content: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="scenarios whose name contains this; the others' results stay")
    only = parser.parse_args().only
    entries = asyncio.run(soak(only))
    failed = [entry["name"] for entry in entries if not entry["held"]]
    _write("soak.json", _results(entries, _earlier() if only else []))
    print(f"{len(entries) - len(failed)} held, {len(failed)} failed")
    sys.exit(1 if failed else 0)


def _earlier() -> list[dict[str, Any]]:
    path = RESULTS / "soak.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    return found


def _results(entries: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """Each scenario's newest entry, in the order of the first run."""
    newest = {entry["name"]: entry for entry in [*earlier, *entries]}
    failed = [name for name, entry in newest.items() if not entry["held"]]
    facts = {"machine": machine(), "held": len(newest) - len(failed), "failed": failed}
    return {**facts, "runs": list(newest.values())}


if __name__ == "__main__":
    main()
