"""kill -9 of the processes of a federated run, in each of its phases: it ends right, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nearmesh.devmesh.ports import free_ports
from nearmesh.devmesh.wan import LinkSettings, WanSettings, running
from nearmesh.devmesh.wan.link import Link
from nearmesh.v1 import run_pb2
from tests.integration.federated_mesh import MODEL, FederatedMesh, asking, federated_mesh
from tests.integration.mesh_processes import until

Figures = dict[str, Any]

ROUNDS = 2
# By a word of their command line: Flower's processes beside the control plane, and at a site.
BESIDE_THE_CONTROL_PLANE = {
    "SuperLink": "flower-superlink",
    "SuperExec": "flower-superexec",
    "server app": "nearmesh_controlplane.rounds.stock",
}
NURSERY, CLIENT_APP = "nursery", "client app"
AT_A_SITE = {
    "warden": "nearmesh_agent.training.warden",
    "SuperNode": "nearmesh_agent.training.supernode_process",
    "site's SuperExec": "flower-superexec",
    NURSERY: "flower-nursery",
    # Forked from the nursery, and called like it.
    CLIENT_APP: "flower-nursery",
}
CONTROL_PLANE, AGENT = "control plane", "agent"
WHO = (CONTROL_PLANE, *BESIDE_THE_CONTROL_PLANE, AGENT, *AT_A_SITE)
# The site whose way is cut, for how long each time, and in a run of how many rounds.
CUT_OFF, CUT_S, CUT_OFF_ROUNDS = "north", 60.0, 12
# Asked of a site for a moment, a few times in a run.
BRIEF = {CLIENT_APP}

Seen = Callable[[Any], bool]


def _in_round(number: int, phase: str) -> Seen:
    def seen(run: Any) -> bool:
        return bool(
            run.state == run_pb2.RUN_STATE_TRAINING and run.progress.number == number and run.progress.phase == phase
        )

    return seen


def _state(state: int) -> Seen:
    return lambda run: bool(run.state == state)


PHASES: dict[str, Seen] = {
    "the parent is judged": _in_round(0, "evaluating"),
    "training": _in_round(1, "training"),
    "evaluating": _in_round(1, "evaluating"),
    "training again": _in_round(2, "training"),
    "checking": _state(run_pb2.RUN_STATE_CHECKING),
    "publishing": _state(run_pb2.RUN_STATE_PUBLISHING),
    "rolling out": _state(run_pb2.RUN_STATE_ROLLING_OUT),
}
# Those in which Flower's processes are there.
ROUNDS_ARE_MADE = ("the parent is judged", "training", "evaluating", "training again")
# Phases that are over before one looks again are met as often as they are seen.
FLEETING = {"checking", "publishing"}


@dataclass(frozen=True)
class Kill:
    """Whom, and when."""

    who: str
    phase: str


async def killed(mesh: FederatedMesh, kills: Sequence[Kill]) -> Figures:
    """One run in which these die, in the order of its phases."""
    runs = mesh.runs()
    before = await _versions(mesh)
    asked = asking(rounds=ROUNDS, idempotency_key=f"kills-{len(before)}")
    started = await runs.Start(asked, timeout=10)
    met = []
    for kill in sorted(kills, key=lambda kill: list(PHASES).index(kill.phase)):
        if await _reached(mesh, started.id, kill.phase) and await _kill(mesh, kill.who):
            met.append(f"{kill.who} while {kill.phase}")
    ended = await mesh.ends(started.id)
    assert [one.number for one in ended.rounds] == list(range(ROUNDS + 1)), ended.rounds
    assert ended.gate.passed, ended.gate
    after = await _versions(mesh)
    assert after - before == {ended.version}, (before, after)
    for node in mesh.nodes:
        await node.says(MODEL, lambda replica: replica.version == ended.version, within_s=60.0)
    # The same key again is the same run, whatever died meanwhile.
    assert (await runs.Start(asked, timeout=10)).id == started.id
    return {
        "killed": met,
        "seconds": round(ended.ended_at_s - ended.created_at_s, 1),
        "resumed": ended.resumed,
        "late": sum(one.late for one in ended.rounds),
    }


async def _versions(mesh: FederatedMesh) -> set[str]:
    async with mesh.plane.operator() as operator:
        return {version.version for version in (await operator.model(MODEL)).versions}


async def _reached(mesh: FederatedMesh, run: str, phase: str) -> bool:
    """Whether the phase was met; one that is fleeting may be over."""
    over = list(PHASES).index(phase)

    def seen(found: Any) -> bool:
        return PHASES[phase](found) or (phase in FLEETING and _past(found, over))

    found = await mesh.reaches(run, seen)
    return PHASES[phase](found)


def _past(run: Any, phase: int) -> bool:
    later = list(PHASES.values())[phase + 1 :]
    return run.state == run_pb2.RUN_STATE_SERVED or any(seen(run) for seen in later)


async def _kill(mesh: FederatedMesh, who: str) -> bool:
    """Whether there was such a process. Whoever is not brought back by the mesh itself is started again."""
    if who == CONTROL_PLANE:
        await mesh.plane.kill()
        await mesh.plane.start()
        return True
    if who == AGENT:
        node = mesh.nodes[0]
        await node.kill()
        await node.start()
        return True
    beside = who in BESIDE_THE_CONTROL_PLANE
    parent = mesh.plane.child.pid if beside else mesh.nodes[0].child.pid
    assert parent

    async def found() -> list[psutil.Process]:
        return _processes(parent, who)

    try:
        processes = await until(found, within_s=3.0 if who in BRIEF else 30.0, what=f"{who} below process {parent}")
    except AssertionError:
        if who in BRIEF:
            return False
        raise
    for process in processes:
        process.kill()
    return True


def _processes(parent: int, who: str) -> list[psutil.Process]:
    """Below the process `parent`."""
    word = {**BESIDE_THE_CONTROL_PLANE, **AT_A_SITE}[who]
    below = [process for process in psutil.Process(parent).children(recursive=True) if word in _command(process)]
    if who in (NURSERY, CLIENT_APP):
        ids = {process.pid for process in below}
        return [process for process in below if (_parent(process) in ids) == (who == CLIENT_APP)]
    # The warden's command line has that of whom it runs, too.
    return [process for process in below if who == "warden" or AT_A_SITE["warden"] not in _command(process)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return [Path(word).name for word in process.cmdline()]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return 0


async def run(folder: Path, who: str) -> Figures:
    """For the soak: one process, in each phase of one run in which it is there."""
    phases = PHASES if who in (CONTROL_PLANE, AGENT) else ROUNDS_ARE_MADE
    async with federated_mesh(folder) as mesh:
        return await killed(mesh, [Kill(who, phase) for phase in phases])


async def cut_off(folder: Path) -> Figures:
    """For the soak: one site is cut off for a minute of every two; how many of the rounds it takes part in."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    async with federated_mesh(folder, superlink=lambda _, site: address if site == CUT_OFF else "") as mesh:
        way = LinkSettings(
            name="wan", client_region="-", node="-", target=mesh.plane.http, round_trip_ms=90.0, listen_port=port
        )
        async with running(WanSettings(links=(way,))) as wan:
            cutting = asyncio.create_task(_cut_again_and_again(wan.links["wan"]))
            try:
                started = await mesh.runs().Start(asking(rounds=CUT_OFF_ROUNDS, round_timeout_s=45.0), timeout=10)
                ended = await mesh.ends(started.id, within_s=1200.0)
            finally:
                cutting.cancel()
                await asyncio.gather(cutting, return_exceptions=True)
    took_part = [
        one.number
        for one in ended.rounds[1:]
        for site in one.sites
        if site.node == f"node-{CUT_OFF}" and site.answer == run_pb2.SITE_ANSWER_COUNTED
    ]
    assert took_part, ended.rounds
    return {
        "rounds": CUT_OFF_ROUNDS,
        "took_part_in": took_part,
        "late": sum(one.late for one in ended.rounds),
        "seconds": round(ended.ended_at_s - ended.created_at_s, 1),
    }


async def _cut_again_and_again(link: Link) -> None:
    while True:
        await asyncio.sleep(CUT_S)
        await link.cut()
        await asyncio.sleep(CUT_S)
        await link.heal()
