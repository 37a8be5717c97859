"""Federated runs without Flower and without packages: an engine whose server app is a few lines, and makers of versions
that only remember.

`World` is what outlives a control plane: the engine, the catalog of versions that were made, and what nodes say.
`Plane` is one control plane over it: it may be dropped at any moment, as if it were killed, and opened again.
"""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Version
from nearmesh_controlplane.rollouts.rollouts import Rollouts
from nearmesh_controlplane.runs.calls import RunCalls
from nearmesh_controlplane.runs.candidates import Built, Limits, Parent
from nearmesh_controlplane.runs.chain import Chain
from nearmesh_controlplane.runs.desk import Desk
from nearmesh_controlplane.runs.driver import Driver
from nearmesh_controlplane.runs.engine import EngineAway, EngineStatus, RunConfig
from nearmesh_controlplane.runs.folder import (
    COUNTED,
    Arrays,
    End,
    Judged,
    Progress,
    RoundRecord,
    RunFolder,
    SiteRecord,
)
from nearmesh_controlplane.runs.run import Check, Run
from nearmesh_controlplane.runs.runs import Runs
from nearmesh_controlplane.runs.sites import Sites
from nearmesh_controlplane.runs.trainer import Trainer

from nearmesh import rpc
from nearmesh.errors import AlreadyExists, PackageError
from nearmesh.lineage import Lineage
from nearmesh.v1 import node_pb2
from nearmesh.v1 import run_pb2 as pb
from tests.control_plane_state import State, state
from tests.rollout_nodes import MODEL, FakeNode, Mesh, rollouts_of

ME = rpc.Identity("ann", "data")
SITES = ("a", "b", "c")

WAITING, TRAINING, TRAINED = pb.RUN_STATE_WAITING, pb.RUN_STATE_TRAINING, pb.RUN_STATE_TRAINED
SERVED, REFUSED, ROLLED_BACK = pb.RUN_STATE_SERVED, pb.RUN_STATE_REFUSED, pb.RUN_STATE_ROLLED_BACK
STOPPED, FAILED = pb.RUN_STATE_STOPPED, pb.RUN_STATE_FAILED
# A canary that is soon over.
QUICK = pb.PromoteOptions(steps=[0.5], step_s=1.0, step_requests=1)


@dataclass
class _EngineRun:
    """One run of the engine."""

    folder: RunFolder
    config: RunConfig
    status: EngineStatus = field(default_factory=lambda: EngineStatus(state="running"))


class FakeEngine:
    """Implements `Engine`; `play` is its server app."""

    def __init__(self) -> None:
        self.runs: dict[str, _EngineRun] = {}
        self.ids: dict[str, int] = {}
        self.ready = False
        # Raised by the next calls.
        self.away = False
        self.words = ""
        # What each round adds to the parameters, and what sites say of model 0, 1, 2, ...
        self.step = 0.1
        self.accuracy = [0.5, 0.6, 0.7, 0.8]
        self.judges = True
        self.end = End()

    async def prepare(self) -> None:
        self._check()
        self.ready = True

    async def release(self) -> None:
        self.ready = False

    async def register(self, keys: Mapping[str, str]) -> dict[str, int]:
        self._check()
        return {node: self.ids.setdefault(key, 100 + len(self.ids)) for node, key in keys.items()}

    async def start(self, app: Path, run_config: RunConfig, folder: Path | None = None) -> str:
        self._check()
        id = str(len(self.runs) + 1)
        self.runs[id] = _EngineRun(RunFolder(folder or app.parent), run_config)
        return id

    async def status(self, run: str) -> EngineStatus:
        self._check()
        return self.runs[run].status if run in self.runs else EngineStatus(state="lost")

    async def log(self, run: str) -> str:
        return self.words

    async def stop(self, run: str) -> None:
        if run in self.runs and self.runs[run].status.state == "running":
            self.runs[run].status = EngineStatus(state="stopped")

    def _check(self) -> None:
        if self.away:
            raise EngineAway("the SuperLink does not answer")

    # The server app

    @property
    def running(self) -> list[str]:
        return [id for id, run in self.runs.items() if run.status.state == "running"]

    def kill(self, detail: str = "killed") -> None:
        """Every server app."""
        for id in self.running:
            self.runs[id].status = EngineStatus(state="failed", detail=detail)

    def play(self) -> None:
        """The next round of each run, or its end."""
        for id in self.running:
            run = self.runs[id]
            if self._round(run.folder):
                run.status = EngineStatus(state="finished")

    def _round(self, folder: RunFolder) -> bool:
        plan, done = folder.plan(), folder.rounds()
        number = done[-1].number + 1 if done else 0
        if number <= plan.rounds and folder.held():
            folder.write_progress(Progress(number=number, phase="waiting", began_at_s=1.0))
            return False
        folder.write_progress(Progress(number=number, phase="training", began_at_s=1.0, missing=["a"]))
        nodes = sorted(site.node for site in folder.sites().values())
        if number <= plan.rounds:
            before = folder.arrays(max(number - 1, 0))
            arrays = {name: array + np.float32(self.step) for name, array in before.items()} if number else None
            folder.write_round(self._record(number, nodes), arrays)
            return False
        if self.judges and not self.end.reason:
            folder.candidate_graph.write_bytes(b"graph")
            folder.write_judged([self._judged(node, plan.rounds) for node in nodes])
        folder.write_end(self.end)
        return True

    def _record(self, number: int, nodes: list[str]) -> RoundRecord:
        metrics = {"accuracy": self.accuracy[min(number, len(self.accuracy) - 1)]}
        sites = [SiteRecord(node=node, answer=COUNTED, examples=10, metrics=metrics) for node in nodes]
        return RoundRecord(number=number, began_at_s=number, ended_at_s=number + 1, sites=sites, metrics=metrics)

    def _judged(self, node: str, number: int) -> Judged:
        accuracy = self.accuracy[min(number, len(self.accuracy) - 1)]
        return Judged(node=node, examples=10, metrics={"accuracy": accuracy}, difference=1e-6)


class FakeCandidates:
    """Implements `Candidates`; publishes into the catalog of `plane`."""

    def __init__(self) -> None:
        self.plane: State | None = None
        self.built: list[str] = []
        self.published: list[str] = []
        self.lineages: list[Lineage] = []
        self.variants = (Check(name="variant int8", passed=True, detail="accuracy 0.80"),)
        self.refuses = ""
        self.trainable = True
        self.limits = Limits()

    async def parent(self, model: str, version: str) -> Parent:
        assert self.plane
        found = self.plane.catalog.version(model, version)
        if not self.trainable:
            raise PackageError(f"{model}@{version} has no [training]")
        return Parent(
            model=model,
            version=version,
            digest=found.digest,
            recipe=b"def train(): ...\n",
            arrays={"w": np.ones(4, np.float32), "b": np.zeros(2, np.float32)},
            metric="accuracy",
            tolerance=1e-4,
            settings={"epochs": 2, "learning_rate": 0.05},
            limits=self.limits,
        )

    async def write_graph(self, parent: Parent, target: Path) -> None:
        await asyncio.to_thread(target.write_bytes, b"parent's graph")

    async def build(self, run: Run, arrays: Arrays, lineage: Lineage) -> Built:
        if self.refuses:
            raise PackageError(self.refuses)
        assert all(np.isfinite(array).all() for array in arrays.values())
        self.built.append(run.new_version)
        self.lineages.append(lineage)
        return Built(version=run.new_version, checks=self.variants, artifact=run.model)

    async def publish(self, built: Built, actor: str) -> Version:
        assert self.plane
        versions = {version.version: version for version in self.plane.catalog.versions(built.artifact)}
        if built.version in versions:
            if built.version not in self.published:
                raise AlreadyExists(f"{built.version} is published with other contents")
            return versions[built.version]
        self.published.append(built.version)
        await self.plane.publish(built.artifact, built.version)
        return self.plane.catalog.version(built.artifact, built.version)


@dataclass
class World:
    """What goes on without the control plane."""

    folder: Path
    now_s: float = 1000.0
    engine: FakeEngine = field(default_factory=FakeEngine)
    candidates: FakeCandidates = field(default_factory=FakeCandidates)
    # What each node says of training.
    says: dict[str, node_pb2.TrainingStatus] = field(
        default_factory=lambda: {
            name: node_pb2.TrainingStatus(models=[MODEL], public_key=f"ssh {name}", running=True) for name in SITES
        }
    )
    # What the package says of how many answers have to agree with the parent's.
    agreement: float = 0.0
    utilization: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, FakeNode] = field(
        default_factory=lambda: {name: FakeNode(name, site=f"site-{name}") for name in SITES}
    )


@dataclass
class Plane:
    """One control plane."""

    world: World
    state: State
    mesh: Mesh
    rollouts: Rollouts
    runs: Runs
    chain: Chain
    driver: Driver
    calls: RunCalls
    audit: Audit

    async def start(self, **more: Any) -> pb.Run:
        rpc.answering(ME)
        return await self.calls.start(request(**more))

    async def get(self, id: str) -> pb.Run:
        return await self.calls.get(pb.GetRunRequest(run=id))

    async def look(self) -> None:
        """A moment: the engine and the nodes go on, then the control plane looks."""
        self.world.engine.play()
        if self.rollouts.running():
            await self.mesh.pass_s(1)
        else:
            self.state.clock.now_s += 1
            self.state.wall.now_s += 1
        await self.driver.look()

    async def until(self, id: str, *states: pb.RunState, looks: int = 300) -> pb.Run:
        for _ in range(looks):
            found = await self.get(id)
            if found.state in states:
                return found
            await self.look()
        raise AssertionError(f"not within {looks} looks: {await self.get(id)}")


def request(**more: Any) -> pb.StartRunRequest:
    return pb.StartRunRequest(**{"model": MODEL, "rounds": 3, **more})


@asynccontextmanager
async def plane(world: World, name: str = "first") -> AsyncIterator[Plane]:
    """A control plane of that name, which finds what one before it left in the database and on the disk."""
    async with state(world.folder) as found:
        found.wall.now_s = found.clock.now_s = world.now_s
        if not found.catalog.models():
            await found.publish(MODEL, "1")
            for node in world.nodes.values():
                await found.join(node.name, node.region, site=node.site)
            await found.catalog.deploy(MODEL, "1", (), "me")
        for node in world.nodes.values():
            if not node.away:
                found.registry.session_opened(node.name)
        made = await _wired(world, found, name)
        for node in world.nodes.values():
            await made.mesh._second(node)
        try:
            yield made
        finally:
            world.now_s = found.wall.now_s


async def _wired(world: World, found: State, name: str) -> Plane:
    world.candidates.plane = found
    rollouts = rollouts_of(found)
    await rollouts.restore()
    audit = Audit(found.db)
    runs = Runs(found.db, audit, name=name, wall=found.wall)
    await runs.restore()
    sites = Sites(found.registry, world.says.get, world.utilization.get)
    trainer = Trainer(
        runs,
        Desk(world.folder / name, world.candidates),
        world.engine,
        sites,
        found.changes.bump,
        found.wall,
        ask_every_s=0,
    )
    chain = Chain(runs, world.candidates, found.catalog, rollouts, lambda version: world.agreement, found.wall)
    driver = Driver(runs, trainer, chain, sites, found.catalog, address="plane:7480", wall=found.wall)
    calls = RunCalls(runs, found.catalog, found.registry, world.candidates, found.wall)
    mesh = Mesh(found, rollouts, world.nodes)
    return Plane(world, found, mesh, rollouts, runs, chain, driver, calls, audit)


# An app of a data team's own, as `flwr build` packs one.
PROJECT = """
[project]
name = "own"
version = "1.0.0"
[tool.flwr.app]
publisher = "team"
[tool.flwr.app.components]
serverapp = "own.server_app:app"
clientapp = "own.client_app:app"
[tool.flwr.app.config]
num-server-rounds = 3
lr.first = 0.1
"""


def fab(**files: str) -> bytes:
    """With other files; one of `-` is left out."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, text in {"pyproject.toml": PROJECT, ".info/CONTENT": "", **files}.items():
            if text != "-":
                archive.writestr(name, text)
    return held.getvalue()
