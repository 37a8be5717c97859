"""A store and its callers as processes: made, stopped, killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from benchmarks import local
from benchmarks.lines import Lines, talking
from benchmarks.serving.environments import BUILD, Environment
from benchmarks.serving.processes import alive, cpu_s, family, send
from benchmarks.vectors.environments import ENVIRONMENTS
from benchmarks.vectors.plan import Settings
from benchmarks.vectors.systems import OURS, System
from nearmesh.devmesh.children import Child, script
from nearmesh.devmesh.ports import free_ports
from nearmesh.errors import MeshError
from nearmesh.ids import node_server_name
from nearmesh.v1 import vector_pb2, vector_pb2_grpc

WORKER = Path(__file__).parent / "workers" / "worker.py"
MESH, NODE = "vectors", "store"
UP_WITHIN_S = 120.0
ENDS_WITHIN_S = 20.0
# Two of etcd, one that says how it is, and those of its parts.
MILVUS_PORTS = 13
# At rest, it takes less than this of a core; servers look after this and that all the time. Longer is not waited for.
REST_CORES, REST_WITHIN_S = 0.15, 120.0


class StoreFailed(MeshError):
    """A store did not do what it was asked for."""

    reason = "STORE_FAILED"


@dataclass
class Server:
    """The process that callers reach, and what it needs beside it."""

    child: Child
    task: dict[str, str]

    async def end(self, *, kill: bool) -> None:
        """In order or not; it and all of its family are gone when it returns."""
        if not self.child.pid:
            return
        mine = [stat.pid for stat in family(self.child.pid)]
        for pid in mine if kill else [self.child.pid]:
            send(pid, signal.SIGKILL if kill else signal.SIGTERM)
        if not await _gone(mine):
            for pid in mine:
                send(pid, signal.SIGKILL)
        # Nothing is left of it but what asyncio keeps.
        await self.child.stop()


async def _gone(pids: Sequence[int]) -> bool:
    """Waits, but not for ever."""
    try:
        async with asyncio.timeout(ENDS_WITHIN_S):
            while any(map(alive, pids)):  # noqa: ASYNC110  # they are no children of this process
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    return True


@dataclass
class Running:
    """A store that is up, with its callers."""

    system: System
    folder: Path
    server: Server | None
    task: dict[str, Any]
    lines: Lines
    # Closes the callers' process.
    callers: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def ask(self, what: str, within_s: float, **more: Any) -> dict[str, Any]:
        """Raises StoreFailed, ProcessFailed."""
        return self._checked(what, await self.lines.ask(within_s, do=what, **more))

    def _checked(self, what: str, found: dict[str, Any]) -> dict[str, Any]:
        if "error" in found:
            raise StoreFailed(f"{what}: {' '.join(found['error'].split())[:300]}")
        return found

    @property
    def roots(self) -> list[int]:
        return [self.lines.pid, *([self.server.child.pid] if self.server else [])]

    def used_s(self) -> float:
        """Processor time that the store and its callers have had."""
        return sum(map(cpu_s, self.roots))

    async def rest(self, still_s: float) -> float:
        """Waits until it has done nothing for so long, and says how long its background work took."""
        if not still_s:
            return 0.0
        began_s = time.monotonic()
        while time.monotonic() < began_s + REST_WITHIN_S:
            before_s = self.used_s()
            await asyncio.sleep(still_s)
            if self.used_s() - before_s < REST_CORES * still_s:
                return max(0.0, time.monotonic() - began_s - still_s)
        return REST_WITHIN_S

    @property
    def disk_bytes(self) -> int:
        """As the file system counts: files may have holes."""
        return sum(file.lstat().st_blocks * 512 for file in self.folder.rglob("*") if file.is_file())

    async def again(self, *, kill: bool) -> dict[str, float]:
        """Ends it, in order or not, and starts it; seconds to its first answer and to its first write."""
        if self.server:
            await self.server.end(kill=kill)
            began_s = time.monotonic()
            await self.server.child.start()
        else:
            await self._end_callers(kill)
            began_s = time.monotonic()
            await self.begin_callers()
        found = await self.ask("first", UP_WITHIN_S + 10, limit_s=UP_WITHIN_S)
        return {key: at_s - began_s for key, at_s in found.items()}

    async def begin_callers(self) -> None:
        name = self.system.name
        python = ENVIRONMENTS[name].python if self.system.environment else script("python")
        command = [str(python), str(WORKER), name, json.dumps(self.task)]
        errors = BUILD / "logs" / f"vectors-{name}.log"
        self.lines = await self.callers.enter_async_context(talking(name, command, _environment(), errors))

    async def _end_callers(self, kill: bool) -> None:
        mine = [stat.pid for stat in family(self.lines.pid)]
        if kill:
            self.lines.kill()
        else:
            await self.ask("close", ENDS_WITHIN_S)
        await self.callers.aclose()
        # Embedded stores may have processes of their own, which hold the files until they are gone.
        if not await _gone(mine):
            raise StoreFailed(f"it is there {ENDS_WITHIN_S:g} s after its end")


def _environment() -> dict[str, str]:
    """Without what would start more threads than the caller has, or write beside the sources."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


@asynccontextmanager
async def running(system: System, settings: Settings, corpus: Path, folder: Path) -> AsyncIterator[Running]:
    """A store with nothing in it, in a folder of its own. Raises MeshError, TimeoutError."""
    async with AsyncExitStack() as stack:
        server = None
        if system.name == OURS:
            server = await stack.enter_async_context(_node(folder))
        elif system.server:
            server = await stack.enter_async_context(_milvus(ENVIRONMENTS[system.environment], folder))
        task = {
            "corpus": str(corpus),
            "folder": str(folder),
            "text_bytes": settings.shape.text_bytes,
            "recall": settings.recall,
            **(server.task if server else {}),
        }
        data = {OURS: folder / NODE / "data" / "vectors", "milvus": folder / "data"}.get(system.name, folder)
        made = Running(system, data, server, task, lines=None)  # type: ignore[arg-type]
        await stack.enter_async_context(made.callers)
        await made.begin_callers()
        yield made


@asynccontextmanager
async def _node(folder: Path) -> AsyncIterator[Server]:
    """An agent that keeps vectors; the control plane is there for its certificate, and idle."""
    async with local.control_plane(folder, MESH) as mesh:
        node = await local.joined(mesh, NODE, NODE, {"vectors": {"enabled": True}})
        task = {
            "address": node.address,
            "token": str(mesh.operator),
            "ca": str(mesh.ca),
            "server_name": node_server_name(MESH, NODE),
            "control_plane": mesh.control_plane,
        }
        await node.child.start()
        try:
            await _until_open(mesh, task)
            yield Server(node.child, task)
        finally:
            await node.child.stop()


async def _until_open(mesh: local.Local, task: dict[str, str]) -> None:
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(mesh.ca.read_bytes()),
        grpc.access_token_call_credentials(mesh.operator.read_text("utf-8")),
    )
    options = [("grpc.ssl_target_name_override", task["server_name"])]
    async with grpc.aio.secure_channel(task["address"], credentials, options) as channel, asyncio.timeout(UP_WITHIN_S):
        stub = vector_pb2_grpc.VectorServiceStub(channel)
        while True:
            with suppress(grpc.aio.AioRpcError):
                await stub.ListCollections(vector_pb2.ListCollectionsRequest(), timeout=5)
                return
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _milvus(environment: Environment, folder: Path) -> AsyncIterator[Server]:
    """Every port is its own: its defaults may be another one's."""
    ports = [str(port) for port in free_ports(MILVUS_PORTS)]
    command = [str(environment.python), str(WORKER.parent / "serve_milvus.py"), str(folder / "programs")]
    child = Child("milvus", [*command, str(folder / "data"), *ports], BUILD / "logs" / "vectors-milvus-server.log")
    server = Server(child, {"address": f"http://127.0.0.1:{ports[0]}"})
    await child.start()
    try:
        yield server
    finally:
        await server.end(kill=False)
