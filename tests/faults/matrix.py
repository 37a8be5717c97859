"""The matrix of phases and faults: versions come and go while stock clients ask 50 times a second.

Each cell is one way that a version comes to its nodes or leaves them, and one thing that is done meanwhile: nothing, or
kill -9 of the control plane in that phase. Then versions that are bad on purpose. No call fails, each answer is that of
the version that its receipt names, and a bad version is taken back by itself. Prints a line for each cell.

`python -m tests.faults.matrix` runs all of it alone; `make soak` runs it as well, the test suite some cells.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearmesh.client.admin import AdminClient
from nearmesh.devmesh.children import script
from nearmesh.devmesh.mesh import MESH_FILE, LocalMesh, local_mesh
from nearmesh.devmesh.plan import REGIONS, node_of
from nearmesh.errors import MeshError, NotFound
from nearmesh.packaging.build import build
from nearmesh.process import leashed
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.v1 import node_pb2
from tests.bad_versions import Kind, version
from tests.faults.loads import Conversation
from tests.faults.version_load import Asked

MODEL = "comes-and-goes"
# Together 50 a second, from one region through its gateway and by a plain xDS client.
WAYS, RATE = ("gateway", "xds"), 25.0
REGION = "europe-west1"
# Two versions that are as good as each other, and give the same answers.
GOOD = ("1", "2")
# What is wrong with the others, and how they are told apart.
BAD: Mapping[Kind, str] = {"wrong": "3", "slow": "4", "raising": "5", "aborting": "6"}
SLOW_S = 0.3
ADDS, WRONG_BY = 1.0, 100.0
# Answers that agree within these are the same.
ONLINE_CHECK = '\n[online_check]\noutput = "y"\nagree = "close"\nsmallest_agreement = 0.9\n'

STEPS = (0.1, 0.5)
OPTIONS = pb.RolloutOptions(step_s=3.0, step_requests=20, mirror_share=0.5)
# A cell begins and ends with calm traffic.
CALM_S = 1.0
WITHIN_S = 90.0
# From when a bad version got its first share until every node was told to go back.
TAKEN_BACK_WITHIN_S = 10.0
# Of a canary's share: each node gives it exactly, but for a request or so.
SLACK_REQUESTS = 5

LOADING, SCOUTING = pb.ROLLOUT_PHASE_LOADING, pb.ROLLOUT_PHASE_SCOUTING
IN_STEPS, ROLLING = pb.ROLLOUT_PHASE_STEPS, pb.ROLLOUT_PHASE_ROLLING


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One phase and one fault."""

    name: str
    strategy: str = "canary"
    # The phase in which the fault, or the operator's word, falls.
    phase: int = 0
    # "abort", "pause" (and resume), "rollback" while it runs, or nothing.
    word: str = ""
    kill: bool = False
    bad: Kind | None = None


def cells() -> list[Cell]:
    """All of them."""
    phases = [
        ("all at once", {"strategy": "all", "phase": ROLLING}),
        ("rolling", {"strategy": "rolling", "phase": ROLLING}),
        ("canary, loading", {"phase": LOADING}),
        ("canary, first node", {"phase": SCOUTING}),
        ("canary, steps", {"phase": IN_STEPS}),
        ("canary, rolling", {"phase": ROLLING}),
        ("paused canary", {"phase": IN_STEPS, "word": "pause"}),
        ("aborted canary", {"phase": IN_STEPS, "word": "abort"}),
        ("aborted rolling", {"strategy": "rolling", "phase": ROLLING, "word": "abort"}),
        ("rollback while it runs", {"phase": IN_STEPS, "word": "rollback"}),
        ("rollback of what is done", {"strategy": "", "word": "rollback"}),
    ]
    made = [
        Cell(name=f"{name}; {'control plane killed' if kill else 'nothing'}", kill=kill, **values)  # type: ignore[arg-type]
        for name, values in phases
        for kill in (False, True)
    ]
    return made + [Cell(name=f"bad version: {kind}", bad=kind) for kind in BAD]


SHORT = ("canary, steps; control plane killed", "bad version: aborting")


class Matrix:
    """The model on a local mesh, its clients, and the cells one after the other."""

    def __init__(self, mesh: LocalMesh, clients: Sequence[Conversation], digests: Mapping[str, str]) -> None:
        self._mesh = mesh
        self._clients = clients
        self._digests = digests
        # When requests went to a bad version first.
        self._tried_s = 0.0

    async def run(self, cell: Cell) -> dict[str, Any]:
        """One cell's figures. Raises AssertionError where a promise was broken."""
        before = await self._standing()
        wanted = BAD[cell.bad] if cell.bad else next(v for v in GOOD if v != before)
        await self._take()
        began_s = time.time()
        await asyncio.sleep(CALM_S)
        ended = await (self._rolled_back(cell) if not cell.strategy else self._rolled_out(cell, wanted))
        await asyncio.sleep(CALM_S)
        figures = self._figures(cell, await self._take(), ended, before, wanted) | {"seconds": time.time() - began_s}
        print(json.dumps({"cell": cell.name, **_rounded(figures)}), flush=True)
        return figures

    async def _rolled_out(self, cell: Cell, wanted: str) -> pb.Rollout:
        canary = cell.strategy == "canary"
        async with self._mesh.admin() as admin:
            steps = STEPS if canary else ()
            await admin.deploy(MODEL, wanted, strategy=cell.strategy, steps=steps, options=OPTIONS)
        if not cell.bad:
            met = await self._until(lambda found: _is_at(found, cell) or bool(found.ended_at_s))
            assert not met.ended_at_s or not (cell.word or cell.kill), f"{cell.name}: it had ended before: {met}"
            await self._disturb(cell)
            ended = await self._until(lambda found: bool(found.ended_at_s))
            taken_back = cell.word in ("abort", "rollback")
            wanted_end = pb.ROLLOUT_STATE_ABORTED if taken_back else pb.ROLLOUT_STATE_DONE
            assert ended.state == wanted_end, f"{cell.name}: {ended}"
            return ended
        await self._until(lambda found: found.phase != LOADING or bool(found.ended_at_s))
        self._tried_s = time.time()
        ended = await self._until(lambda found: bool(found.ended_at_s), restart=True)
        assert ended.state == pb.ROLLOUT_STATE_FAILED, ended
        return ended

    async def _rolled_back(self, cell: Cell) -> None:
        """The version before the present one comes back, wherever the control plane is."""
        before = await self._standing()
        async with self._mesh.admin() as admin:
            back = (await admin.rollback(MODEL)).version
        assert back != before, f"{back} was rolled back to itself"
        if cell.kill:
            await self._kill()
        await self._all_serve(back)

    async def _disturb(self, cell: Cell) -> None:
        async with self._mesh.admin() as admin:
            if cell.word == "rollback":
                await admin.rollback(MODEL)
            elif cell.word:
                await admin.change_rollout(MODEL, cell.word)
        if cell.kill:
            await self._kill()
        if cell.word == "pause":
            await asyncio.sleep(CALM_S)
            await self._told(lambda admin: admin.change_rollout(MODEL, "resume"))

    async def _kill(self) -> None:
        await self._mesh.control_plane.kill()
        await asyncio.sleep(CALM_S)
        await self._mesh.control_plane.start()

    async def _until(self, check: Callable[[pb.Rollout], bool], *, restart: bool = False) -> pb.Rollout:
        """The rollout, once `check` holds. With `restart`, nodes that end are started again, as systemd would."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                found = await self._told(lambda admin: admin.rollout(MODEL))
                if check(found):
                    return found
                if restart:
                    await self._restart_ended()
                await asyncio.sleep(0.1)

    async def _restart_ended(self) -> None:
        for region in REGIONS:
            if not self._mesh.nodes[region].pid:
                await self._mesh.nodes[region].start()

    async def _told(self, ask: Callable[[AdminClient], Awaitable[Any]]) -> Any:
        """By a control plane that may be away."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    async with self._mesh.admin() as admin:
                        return await ask(admin)
                except NotFound:
                    raise
                except MeshError:
                    await asyncio.sleep(0.2)

    async def _standing(self) -> str:
        model = await self._told(lambda admin: admin.model(MODEL))
        await self._all_serve(model.deployments[0].version)
        return str(model.deployments[0].version)

    async def _all_serve(self, wanted: str) -> None:
        async with asyncio.timeout(WITHIN_S):
            while True:
                model = await self._told(lambda admin: admin.model(MODEL))
                serving = {r.node for r in model.replicas if r.live and r.version == wanted and _ready(r.status)}
                if serving == {node_of(region) for region in REGIONS}:
                    return
                await self._restart_ended()
                await asyncio.sleep(0.1)

    async def _take(self) -> list[Asked]:
        """What the clients saw since the last time."""
        for client in self._clients:
            client.go_on()
        heard = await asyncio.gather(*(client.hear("result") for client in self._clients))
        return [Asked(**call) for one in heard for call in one["calls"]]

    def _figures(
        self, cell: Cell, calls: Sequence[Asked], ended: pb.Rollout | None, before: str, wanted: str
    ) -> dict[str, Any]:
        errors = [call.error for call in calls if call.error]
        assert not errors, f"{cell.name}: {len(errors)} of {len(calls)} failed: {Counter(errors).most_common(3)}"
        right = {BAD["wrong"]: ADDS + WRONG_BY}
        assert all(call.added == right.get(call.version, ADDS) for call in calls), (
            f"{cell.name}: not its version's answer"
        )
        named = {(call.version, call.digest) for call in calls}
        assert all(self._digests[one] == digest for one, digest in named), f"{cell.name}: {named}"
        found: dict[str, Any] = {
            "requests": len(calls),
            "errors": 0,
            "by_version": dict(sorted(Counter(call.version for call in calls).items())),
            "before": before,
            "wanted": wanted,
        }
        if ended is not None:
            found |= {"ended": pb.RolloutState.Name(ended.state).removeprefix("ROLLOUT_STATE_").lower()}
        if cell.bad and ended is not None:
            found |= self._bad(cell, calls, ended, wanted)
        return found

    def _bad(self, cell: Cell, calls: Sequence[Asked], ended: pb.Rollout, wanted: str) -> dict[str, Any]:
        """It never got more than its share, and was taken back in time."""
        mine = [call for call in calls if call.version == wanted]
        most = STEPS[0] * len(calls) + SLACK_REQUESTS
        assert len(mine) <= most, f"{cell.name}: {len(mine)} of {len(calls)} answers, at a share of {STEPS[0]}"
        assert ended.phase in (LOADING, SCOUTING, IN_STEPS) and ended.step == 0, ended
        took_s = ended.since_s - min(self._tried_s, *(call.started_s for call in mine), ended.since_s)
        assert took_s <= TAKEN_BACK_WITHIN_S, f"{cell.name}: taken back after {took_s:.1f} s"
        return {"of_it": len(mine), "taken_back_after_s": took_s, "reason": ended.reason}


def _is_at(found: pb.Rollout, cell: Cell) -> bool:
    """Of a rolling one, in its middle."""
    some = cell.strategy != "rolling" or any(node.changed_over for node in found.nodes)
    return found.phase == cell.phase and some


def _ready(status: node_pb2.ReplicaStatus) -> bool:
    return status.state == node_pb2.REPLICA_STATE_READY and not status.on_trial


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 1) if isinstance(value, float) else value for key, value in figures.items()}


@asynccontextmanager
async def matrix(mesh: LocalMesh, folder: Path) -> AsyncIterator[Matrix]:
    """The versions published, the first one deployed, and the clients asking."""
    digests: dict[str, str] = {}
    kinds: dict[str, Kind] = {**dict.fromkeys(GOOD, "good"), **{name: kind for kind, name in BAD.items()}}  # type: ignore[dict-item]
    async with mesh.admin() as admin:
        for name, kind in kinds.items():
            package = version(folder / name, name, kind, name=MODEL, add=ADDS, slow_s=SLOW_S, more=ONLINE_CHECK)
            digests[name] = (await admin.publish(await asyncio.to_thread(build, package, folder / "cache"))).digest
        await admin.deploy(MODEL, GOOD[1])
        await _served(admin, digests[GOOD[1]])
        await admin.deploy(MODEL, GOOD[0])
        await _served(admin, digests[GOOD[0]])
    command = [script("python"), "-m", "tests.faults.version_load", "--mesh", str(mesh.plan.folder / MESH_FILE)]
    command += ["--region", REGION, "--model", MODEL, "--rate", str(RATE)]
    clients = [Conversation(leashed([*command, "--way", way])) for way in WAYS]
    try:
        for client in clients:
            await client.start()
        await asyncio.gather(*(client.hear("ready") for client in clients))
        yield Matrix(mesh, clients, digests)
    finally:
        for client in clients:
            await client.close()


async def _served(admin: AdminClient, digest: str) -> None:
    """By every node."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            replicas = (await admin.model(MODEL)).replicas
            if sum(r.status.digest == digest and _ready(r.status) for r in replicas) == len(REGIONS):
                return
            await asyncio.sleep(0.1)


async def run(mesh: LocalMesh, folder: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """The cells of these names, or all, and their figures."""
    chosen = [cell for cell in cells() if names is None or cell.name in set(names)]
    async with matrix(mesh, folder) as found:
        figures = {cell.name: _rounded(await found.run(cell)) for cell in chosen}
    # Nodes that ended were started again.
    mesh.write_state()
    return {"rate": RATE * len(WAYS), "requests": sum(one["requests"] for one in figures.values()), "cells": figures}


async def _alone(names: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nearmesh-matrix-") as scratch:
        async with local_mesh(Path(scratch) / "mesh") as mesh:
            return await run(mesh, Path(scratch) / "packages", names or None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=[cell.name for cell in cells()], default=[])
    print(json.dumps({"requests": asyncio.run(_alone(parser.parse_args().only))["requests"]}))
    sys.exit(0)


if __name__ == "__main__":
    main()
