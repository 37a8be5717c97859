"""The run itself: for each model every server is started once, and then they take turns with one client.

A server that has no turn is idle, or stopped if it cannot be idle by itself. What other processes take of the machine
meanwhile is part of every measurement, so that a disturbance is seen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

from benchmarks.serving.environments import ENVIRONMENTS, NotInstalled, make, versions
from benchmarks.serving.figures import BurstCell, Cell, Floor, of, peak, value
from benchmarks.serving.models import MODELS, REQUESTS_FILE, Model, load
from benchmarks.serving.models import make as make_model
from benchmarks.serving.plan import DEADLINE_S, Scenario, Settings, rotated, scenarios, turns
from benchmarks.serving.processes import Server, running
from benchmarks.serving.systems import IN_PROCESS, SYSTEMS
from nearmesh.devmesh.children import script
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError
from nearmesh.process import leashed

# A peer imports its libraries, loads the model and starts its workers.
READY_WITHIN_S = 90.0
# Beyond its own seconds a measurement waits for its last calls, and a burst until a queue is empty.
DONE_WITHIN_S = 150.0
# Lines of the client's answers; the default of 64 KiB is enough for all of them but not by much.
LINE_BYTES = 1 << 20

Say = Callable[[str], None]


class ClientFailed(MeshError):
    """A process of the benchmark itself ended, or was silent for too long."""

    reason = "CLIENT_FAILED"


class Client:
    """The client's process: a line in, a line out."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Client:
        command = [script("python"), "-m", "benchmarks.serving.client"]
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *leashed(command), stdin=pipe, stdout=pipe, cwd=CHECKOUT, limit=LINE_BYTES
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def ask(self, kind: str, server: Server, settings: Mapping[str, Any], within_s: float) -> dict[str, Any]:
        """One order and its answer. Raises ClientFailed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        where = {
            "protocol": server.system.protocol,
            "address": server.address,
            "model": server.model.name,
            "folder": str(server.model.folder),
            "pid": server.pid,
        }
        order = {"kind": kind, "server": where, "with": dict(settings)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), within_s)
        except TimeoutError:
            raise ClientFailed(f"{kind} of {server.system.name}: no result within {within_s:.0f} s") from None
        if not line:
            raise ClientFailed(f"{kind} of {server.system.name}: the client ended; see its error above")
        found: dict[str, Any] = json.loads(line)
        return found


class Run:
    """Everything that is found; `results` is its JSON."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self._settings = settings
        self._say = say
        self._usable: list[str] = []
        self.cells: list[Cell] = []
        self.floors: list[Floor] = []
        self.bursts: list[BurstCell] = []
        self.versions: dict[str, dict[str, str]] = {}
        self.skipped: list[dict[str, str]] = []
        self.differences: list[dict[str, Any]] = []
        self.models: dict[str, dict[str, int]] = {}

    def results(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "versions": self.versions,
            "skipped": self.skipped,
            "models": self.models,
            "differences": self.differences,
            "cells": [asdict(cell) for cell in self.cells],
            "floors": [asdict(floor) for floor in self.floors],
            "bursts": [asdict(burst) for burst in self.bursts],
        }

    async def measure(self) -> None:
        """Raises ClientFailed."""
        await self._environments()
        async with Client() as client:
            for name in self._settings.models:
                model = MODELS[name]
                await asyncio.to_thread(make_model, model)
                self.models[name] = sizes(model)
                await self._model(client, model)

    async def _environments(self) -> None:
        for name in self._settings.systems:
            system = SYSTEMS.get(name)
            if system and system.environment:
                environment = ENVIRONMENTS[system.environment]
                self._say(f"environment of {name}: {environment.folder.name}")
                try:
                    await asyncio.to_thread(make, environment)
                    self.versions[name] = await asyncio.to_thread(versions, environment)
                except NotInstalled as error:
                    self._skip(name, "every model", error.message)
                    continue
            self._usable.append(name)

    def _skip(self, system: str, model: str, why: str) -> None:
        # Where this checkout lies is nobody's business who reads the page.
        why = " ".join(why.replace(f"{CHECKOUT}/", "").split())
        self._say(f"SKIPPED {system}, {model}: {why}")
        self.skipped.append({"system": system, "model": model, "why": why})

    async def _model(self, client: Client, model: Model) -> None:
        bursts = scenarios(self._settings, model.name)
        async with AsyncExitStack() as stack:
            servers: dict[str, Server] = {}
            for name in self._usable:
                if name != IN_PROCESS and (bursts or not SYSTEMS[name].like):
                    server = await stack.enter_async_context(running(SYSTEMS[name], model))
                    if await self._ready(client, server):
                        servers[name] = server
            await self._closed(client, model, servers)
            for scenario in bursts:
                await self._open(client, scenario, servers)

    async def _ready(self, client: Client, server: Server) -> bool:
        """Whether it answers, and rightly. Ends it if not, so that it disturbs nobody."""
        system, model = server.system, server.model
        settings = {"compare": system.answers, "tolerance": model.tolerance, "within_s": READY_WITHIN_S}
        found = await client.ask("probe", server, settings, READY_WITHIN_S + DONE_WITHIN_S)
        if "failed" in found:
            self._skip(system.name, model.name, f"{found['failed']}. {server.last_words()}")
            await server.stop()
            return False
        if system.answers:
            self.differences.append({"system": system.name, "model": model.name, **found})
        server.rest()
        return True

    def _alive(self, servers: dict[str, Server], name: str) -> bool:
        """Whether the server can have its turn; one that has ended has none from then on."""
        if name in servers and not servers[name].pid:
            ended = servers.pop(name)
            self._skip(name, ended.model.name, f"the server ended while it was measured. {ended.last_words()}")
        return name in servers

    async def _closed(self, client: Client, model: Model, servers: dict[str, Server]) -> None:
        for number, callers, name in turns(self._settings):
            if name == IN_PROCESS:
                floor = Floor(round=number, model=model.name, **await in_process(model, self._settings.floor_s))
                self.floors.append(floor)
                self._say(f"round {number} {model.name} {name}: at most {floor.best['per_s']:.1f}/s")
            elif self._alive(servers, name):
                await self._cell(client, servers[name], number, callers)

    async def _cell(self, client: Client, server: Server, number: int, callers: int) -> None:
        settings = {"callers": callers, "warm_s": self._settings.warm_s, "seconds": self._settings.seconds}
        with server.turn():
            found = await client.ask("closed", server, settings, self._settings.seconds + DONE_WITHIN_S)
        where: dict[str, Any] = {
            "round": number,
            "model": server.model.name,
            "system": server.system.name,
            "callers": callers,
        }
        cell = Cell(**where, **found)
        self.cells.append(cell)
        errors = f", errors {dict(cell.errors)}" if cell.errors else ""
        times = f"p50 {cell.p50_ms:.2f} ms, p99 {cell.p99_ms:.2f} ms" if cell.calls else "no answer"
        self._say(f"round {number} {cell.model} {cell.system}, callers {callers}: {cell.per_s:.1f}/s, {times}{errors}")

    async def _open(self, client: Client, scenario: Scenario, servers: dict[str, Server]) -> None:
        answering = [name for name, server in servers.items() if server.system.answers]
        for number in range(1, self._settings.open_rounds + 1):
            for name in rotated(answering, number - 1):
                if self._alive(servers, name) and not await self._burst(client, scenario, servers[name], number):
                    await self._anew(client, servers, name)

    async def _burst(self, client: Client, scenario: Scenario, server: Server, number: int) -> bool:
        """Whether its queue is empty again."""
        system, model = server.system.name, server.model.name
        mine = [cell for cell in self.cells if cell.model == model]
        alike = server.system.like or system
        _, peak_per_s = peak(mine, alike)
        fewest = min(self._settings.callers)
        usual_ms = value(of(mine, alike, fewest), "p50_ms")
        if not peak_per_s or usual_ms is None:
            self._skip(system, model, f"no burst ({scenario.name}): it answered nothing in the closed loop")
            return True
        settings = {
            "per_s": peak_per_s * scenario.load,
            "warm_s": 1.0,
            "seconds": self._settings.open_s,
            "deadline_s": DEADLINE_S,
            "cancelling": scenario.cancelling,
            "usual_s": usual_ms / 1000,
            "seed": number,
        }
        with server.turn():
            found = await client.ask("open", server, settings, self._settings.open_s + DONE_WITHIN_S)
        where: dict[str, Any] = {"round": number, "model": model, "system": system, "scenario": scenario.name}
        burst = BurstCell(**where, peak_per_s=peak_per_s, **found)
        self.bursts.append(burst)
        self._say(
            f"burst {number} {model} {scenario.name}, {system}: {burst.offered_per_s:.1f}/s offered, "
            f"{burst.goodput_per_s:.1f}/s answered in time"
        )
        return burst.empty_s is not None

    async def _anew(self, client: Client, servers: dict[str, Server], name: str) -> None:
        """Starts a server again whose queue would last into others' turns."""
        server = servers.pop(name)
        await server.stop()
        await server.start()
        if await self._ready(client, server):
            servers[name] = server


def sizes(model: Model) -> dict[str, int]:
    """Bytes of one request's and of one answer's arrays, and how many rows share an engine call at most."""
    inputs, outputs = load(model.folder, REQUESTS_FILE)
    return {
        "request_bytes": sum(array[0].nbytes for array in inputs.values()),
        "answer_bytes": sum(array[0].nbytes for array in outputs.values()),
        "max_batch": model.max_batch,
    }


async def in_process(model: Model, seconds: float) -> dict[str, Any]:
    """The engine alone, in a process of its own. Raises ClientFailed."""
    settings = {
        "folder": str(model.folder),
        "weights": str(model.weights),
        "max_batch": model.max_batch,
        "seconds": seconds,
    }
    command = [script("python"), "-m", "benchmarks.serving.floors", json.dumps(settings)]
    process = await asyncio.create_subprocess_exec(*leashed(command), stdout=asyncio.subprocess.PIPE, cwd=CHECKOUT)
    output, _ = await process.communicate()
    if process.returncode:
        raise ClientFailed(f"the engine alone, {model.name}: ended with {process.returncode}; see its error above")
    found: dict[str, Any] = json.loads(output)
    return found
