"""The live run: three kinds of clients call for minutes, while a seeded script does all kinds of things to the mesh.

`python -m tests.faults.live` runs it alone; `make soak` runs it as well, and writes results/live.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc

from nearmesh.devmesh.load import Call
from nearmesh.devmesh.mesh import LocalMesh, local_mesh
from nearmesh.devmesh.plan import local
from nearmesh.v1 import route_pb2, route_pb2_grpc
from tests.faults.live_faults import KINDS, OF_NODES, Faults
from tests.faults.live_report import CONTROL_PLANE, XDS_TIMEOUT_S, Decision, Fault, broken, report
from tests.faults.loads import SENT_SHARE, WAYS, loads
from tests.faults.machine import machine

REGION, MODEL = "europe-west1", "file-type"
# Together 100 a second.
RATE = 33.4
# What an app gives its call. A plain xDS client finds a frozen node by nothing else, so its own is part of the time in
# which it leaves one; it has to be enough for a first connection half way round the world.
TIMEOUT_S = {"gateway": 5.0, "sdk": 5.0, "xds": XDS_TIMEOUT_S}
# How long a fault is held, from and to.
HOLD_S = (3.0, 6.0)
# Between two faults: the first one's traces in everybody's measurements fade, and others are met by calm traffic.
PAUSE_S = (0.5, 1.5)
# Of faults, the share that has a second one beside it; of those of nodes, the share that meets the node that answers.
TWO_SHARE, ANSWERING_SHARE = 0.2, 0.7
# The script begins no new fault so long before the clients end.
LAST_S = 8.0
BEFORE_S = 2.0
WATCH_AGAIN_S = 0.2


async def live(
    mesh: LocalMesh, *, seed: int, seconds: float, folder: Path, rate: float = RATE, kinds: Iterable[str] = KINDS
) -> dict[str, Any]:
    """The whole run and its report; the mesh is whole again afterwards."""
    chance, faults, decisions = random.Random(seed), list[Fault](), list[Decision]()
    files = {way: folder / f"{way}.calls" for way in WAYS}
    async with _watched(mesh, decisions):
        until_s = time.monotonic() + seconds
        async with loads(
            mesh, MODEL, region=REGION, rate=rate, seconds=seconds, timeout_s=TIMEOUT_S, files=files
        ) as found:
            await asyncio.sleep(BEFORE_S)
            await _script(Faults(mesh, REGION, MODEL), sorted(kinds), chance, until_s - LAST_S, faults)
    lines = [json.dumps(asdict(decision)) for decision in decisions]
    (folder / "decisions").write_text("\n".join(lines))
    calls = {way: [Call(**json.loads(line)) for line in file.read_text().splitlines()] for way, file in files.items()}
    for result in found.results:
        assert len(calls[result.way]) >= SENT_SHARE * result.planned, (
            result.way,
            len(calls[result.way]),
            result.planned,
        )
    async with mesh.admin() as admin:
        deadline_ms = (await admin.explain(MODEL, REGION)).deadline_ms
    facts = {"seed": seed, "seconds": seconds, "rate": rate, "timeout_s": TIMEOUT_S}
    return {**facts, **report(calls, faults, decisions, deadline_ms)}


async def _script(
    faults: Faults, kinds: Sequence[str], chance: random.Random, until_s: float, done: list[Fault]
) -> None:
    """One fault after the other, every kind as often as the others, until the time is up."""
    deck: list[str] = []
    while time.monotonic() < until_s:
        deck = deck or chance.sample(kinds, len(kinds))
        steps = [deck.pop()]
        if deck and chance.random() < TWO_SHARE:
            steps.append(deck.pop())
        chosen = await _targets(faults, chance, steps)
        done += await _one(faults, chosen, chance.uniform(*HOLD_S))
        await asyncio.sleep(chance.uniform(*PAUSE_S))


async def _targets(faults: Faults, chance: random.Random, kinds: Sequence[str]) -> Mapping[str, str]:
    """Whom each kind meets, so that one node that answers in time is left alone; fewer kinds where that is not so."""
    placed, good = await faults.usable(1000 * XDS_TIMEOUT_S / 2)
    found: dict[str, str] = {}
    free = sorted(faults.mesh.nodes[region].name for region in faults.mesh.nodes)
    for kind in kinds:
        if kind not in OF_NODES:
            # One thing at a time: who is frozen hears no SIGTERM.
            if CONTROL_PLANE not in found.values():
                found[kind] = CONTROL_PLANE
            continue
        answering = [node for node in placed if node in free]
        node = chance.choice(answering if answering and chance.random() < ANSWERING_SHARE else free)
        if set(good) - {node, *found.values()}:
            found[kind] = node
            free.remove(node)
    return found


async def _one(faults: Faults, chosen: Mapping[str, str], hold_s: float) -> list[Fault]:
    """One or two faults at a time; felt until the mesh is whole again."""
    began: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        for kind, target in chosen.items():
            began[kind] = time.time()
            await stack.enter_async_context(faults.begun(kind, target))
        await asyncio.sleep(hold_s)
        healed_s = time.time()
    passed_s = await faults.passed()
    return [
        Fault(kind=kind, target=target, began_s=began[kind], healed_s=healed_s, recovered_s=passed_s)
        for kind, target in chosen.items()
    ]


@asynccontextmanager
async def _watched(mesh: LocalMesh, decisions: list[Decision]) -> AsyncIterator[None]:
    """Writes down every decision for the clients' region, as an SDK would hear it."""
    watching = asyncio.create_task(_watch(mesh, decisions))
    try:
        while not decisions:  # noqa: ASYNC110 - another task fills the list
            await asyncio.sleep(WATCH_AGAIN_S)
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(mesh: LocalMesh, decisions: list[Decision]) -> None:
    credentials = grpc.ssl_channel_credentials(mesh.ca_path.read_bytes())
    metadata = (("authorization", f"Bearer {mesh.token('client')}"),)
    request = route_pb2.ResolveRequest(model=MODEL, region=REGION)
    options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 100)]
    async with grpc.aio.secure_channel(local(mesh.plan.public), credentials, options=options) as channel:
        stub = route_pb2_grpc.RouteServiceStub(channel)
        while True:
            try:
                async for route in stub.Watch(request, metadata=metadata):
                    decisions.append(_decision(route))
            except grpc.RpcError:
                pass  # the control plane is one of those that things are done to
            await asyncio.sleep(WATCH_AGAIN_S)


def _decision(route: route_pb2.Route) -> Decision:
    return Decision(
        at_s=time.time(),
        generation=route.generation,
        shares={candidate.node: candidate.share for candidate in route.candidates if candidate.ready},
        why={candidate.node: candidate.why for candidate in route.candidates},
    )


async def _alone(seed: int, seconds: float, rate: float, kinds: Sequence[str], keep: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nearmesh-live-") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        async with local_mesh(Path(scratch) / "mesh") as mesh:
            return await live(mesh, seed=seed, seconds=seconds, folder=folder, rate=rate, kinds=kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=RATE, help="calls a second on each way")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="faults of this kind; may be repeated")
    parser.add_argument("--keep", type=Path, help="a folder for every call and every decision")
    parser.add_argument("--out", type=Path, help="a file for the report")
    options = parser.parse_args()
    before = machine()
    found = asyncio.run(_alone(options.seed, options.seconds, options.rate, options.kind or list(KINDS), options.keep))
    if options.out:
        options.out.write_text(json.dumps({"machine": before, **found}, indent=1) + "\n")
    print(json.dumps({key: found[key] for key in ("ways", "kinds", "moves")}, indent=1))
    wrong = broken(found)
    print("\n".join(wrong) or "held")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
