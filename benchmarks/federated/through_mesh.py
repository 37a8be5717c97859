"""A study through a real mesh: one command from the first version to a served int8 version, while requests go on.

What the served version is worth is asked of the mesh itself, on what each site has held back; it is held against models
that the same recipe makes of the same parts without a mesh.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nearmesh_agent.training import data as agent_data
from nearmesh_agent.training.config import DataConfig

from benchmarks.federated.comparison import Alone, without_rounds
from benchmarks.federated.local import REGION, Local, local
from benchmarks.federated.study import PACKAGES, Data, SiteData, Study
from nearmesh import config
from nearmesh.cli import run_records
from nearmesh.client import Mesh, connect
from nearmesh.devmesh.children import script
from nearmesh.errors import MeshError
from nearmesh.package import load
from nearmesh.quantiles import quantile

REQUESTS_PER_S = 20.0
# Rows of a request that asks for what a version is worth.
ROWS = 32
RUN_WITHIN_S = 900.0
# Watched for so long each, the two steps of the canary.
STEPS, STEP_TIME = "25,50", "5s"


@dataclass(slots=True)
class Callers:
    """Requests that run all the while."""

    times_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of it."""

    name: str
    rounds: int
    state: str
    reason: str
    version: str
    # Which answered; a node takes int8 where that is faster there.
    variants: list[str]
    # By name, what the gate said of each variant that was published.
    gate: dict[str, str]
    # From the command's start to its end.
    took_s: float
    # As the run has it: the weighted mean of what the sites said, after each round; number 0 is the first version.
    history: list[float]
    # Asked of the mesh, on what the sites hold back.
    served: float
    pooled: float
    alone: list[Alone]
    requests: int
    errors: list[str]
    p99_ms: float
    versions: dict[str, int]
    # What the command printed.
    table: str

    @property
    def of_pooled(self) -> float:
        return self.served / self.pooled

    @property
    def above_all(self) -> bool:
        return all(one.federated_elsewhere > one.elsewhere for one in self.alone)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"of_pooled": self.of_pooled, "above_all": self.above_all}


async def run(study: Study, data: Path, folder: Path, settings: Mapping[str, Any]) -> Found:
    """Raises MeshError, TimeoutError."""
    async with local(study, data, folder) as mesh:
        sites = read_sites(study, data, folder)
        async with _client(mesh) as client:
            async with _calling(client, study, sites) as callers:
                started = time.monotonic()
                table = await _start(mesh, study, folder)
                took_s = time.monotonic() - started
            async with mesh.admin() as admin:
                (newest, *_) = await admin.runs.list(study.name)
                found = await admin.runs.get(newest.id)
            asked = {name: await _ask(client, study, site.held_back, found.version) for name, site in sites.items()}
    pooled, alone = without_rounds(study, sites, study.first(data), settings, lambda names: _right(asked, names))
    return Found(
        name=study.name,
        rounds=study.rounds,
        state=run_records.state(found),
        reason=found.reason,
        version=found.version,
        variants=sorted({variant for one in asked.values() for variant in one.variants}),
        gate={one.name: one.detail for one in found.gate.checks if one.passed},
        took_s=took_s,
        history=[one.metrics.get("accuracy", float("nan")) for one in found.rounds],
        served=_right(asked, asked),
        pooled=pooled,
        alone=alone,
        requests=len(callers.times_ms) + len(callers.errors),
        errors=callers.errors[:20],
        p99_ms=quantile(sorted(callers.times_ms), 0.99),
        versions=callers.versions,
        table=table,
    )


def read_sites(study: Study, data: Path, folder: Path) -> dict[str, SiteData]:
    """As the nodes themselves read them."""
    inputs = [spec.name for spec in load(PACKAGES / study.name).inputs]
    found = {}
    for site, content in study.write_sites(data, folder / "sites").items():
        parts = agent_data.load(config.parse(DataConfig, content, where=site, base=folder), inputs)
        train, held_back = (Data(part.inputs, part.targets) for part in (parts.train, parts.held_back))
        found[site] = SiteData(train, held_back)
    return found


async def _start(mesh: Local, study: Study, folder: Path) -> str:
    """The one command; what it printed. Raises TimeoutError."""
    command = [script("nearmesh"), "run", "start", "--model", study.name, "--rounds", str(study.rounds)]
    command += ["--min-sites", str(len(study.sites)), "--auto-promote", "--steps", STEPS, "--step-time", STEP_TIME]
    command += ["--plot", str(folder / "plot.svg")]
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | mesh.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(RUN_WITHIN_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return said.decode(errors="replace").replace(f"{folder}{os.sep}", "")


@asynccontextmanager
async def _client(mesh: Local) -> AsyncIterator[Mesh]:
    ca = mesh.ca.read_bytes()
    async with connect(
        control_plane=mesh.control_plane, ca=ca, token=mesh.operator.read_text("utf-8"), region=REGION, state=False
    ) as found:
        yield found


@asynccontextmanager
async def _calling(client: Mesh, study: Study, sites: Mapping[str, SiteData]) -> AsyncIterator[Callers]:
    """Requests at a steady pace, whatever becomes of those before."""
    callers, rows = Callers(), [site.held_back.inputs for site in sites.values()]

    async def ask(number: int) -> None:
        inputs = {name: array[number % len(array)][None] for name, array in rows[number % len(rows)].items()}
        began = time.perf_counter()
        try:
            answer = await client.infer(study.name, inputs)
        except MeshError as error:
            callers.errors.append(f"{type(error).__name__}: {error.message}")
            return
        callers.times_ms.append(1000 * (time.perf_counter() - began))
        version = answer.version
        callers.versions[version] = callers.versions.get(version, 0) + 1

    async def pace() -> None:
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as calls:
            while not ended.is_set():
                calls.create_task(ask(number))
                number += 1
                await asyncio.sleep(max(0.0, began + number / REQUESTS_PER_S - time.monotonic()))

    ended = asyncio.Event()
    pacing = asyncio.create_task(pace())
    try:
        yield callers
    finally:
        ended.set()
        await pacing


@dataclass(frozen=True, slots=True)
class Asked:
    """What the mesh answered of one site's rows."""

    right: int
    rows: int
    variants: frozenset[str]


async def _ask(client: Mesh, study: Study, data: Data, version: str) -> Asked:
    """How many rows the served version gets right."""
    right, variants = 0, set()
    for begin in range(0, len(data.targets), ROWS):
        inputs = {name: array[begin : begin + ROWS] for name, array in data.inputs.items()}
        answer = await client.infer(study.name, inputs, version=version)
        variants.add(answer.receipt.variant)
        right += int((answer["scores"].argmax(axis=1) == data.targets[begin : begin + ROWS]).sum())
    return Asked(right, len(data.targets), frozenset(variants))


def _right(asked: Mapping[str, Asked], names: Collection[str]) -> float:
    """The accuracy of what the mesh answered of these sites' rows."""
    return sum(asked[name].right for name in names) / sum(asked[name].rows for name in names)
