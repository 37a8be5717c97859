"""One size of mesh, measured: a control plane, its nodes and its clients, a process each, and a price that changes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.scale.plan import CHEAP_USD, DEAR_USD, REPRICED, Size
from benchmarks.scale.state import CA, prepare
from nearmesh.devmesh.children import Child, script
from nearmesh.errors import MeshError
from nearmesh.v1 import admin_pb2, admin_pb2_grpc

START_WITHIN_S = 120.0
# A change must have reached everybody by then, and be over so much later.
HEARD_WITHIN_S, SETTLE_S = 60.0, 3.0
# How long the control plane is watched while nothing changes.
IDLE_S = 5.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_DECIDED = re.compile(r"\bdecided\b.* ms=([\d.]+) cpu_ms=([\d.]+)")


class ScaleFailed(MeshError):
    """Something that was to be measured did not happen."""

    reason = "SCALE_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one change of a price took."""

    usd_per_hour: float
    # Until half of the streams concerned, and the last of them, had their first response. Seconds after the call began.
    median_s: float
    last_s: float
    # Of the control plane, from the call's beginning until the last stream had it, and until it was quiet again.
    cpu_s: float
    cpu_settled_s: float
    responses: int
    concerned: int
    responses_to_spared: int
    spared: int
    # Streams whose cheapest node is now the repriced one.
    first_choice: int
    # Each decision in that time, as the control plane logged it: by the clock, and of the processor.
    decided_ms: tuple[float, ...]
    decided_cpu_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One size."""

    size: Size
    changes: tuple[Change, ...]
    # Until the control plane answered, until all sessions were open, until all streams had their endpoints.
    start_s: float
    sessions_s: float
    streams_s: float
    idle_cpu_share: float
    memory_mib: float
    peak_memory_mib: float


async def measure(folder: Path, size: Size, changes: int, note: Callable[[str], None]) -> Measured:
    """Starts everything in `folder`, measures, and stops it."""
    place = await prepare(folder, size)
    async with AsyncExitStack() as stack:
        began = time.monotonic()
        plane = await stack.enter_async_context(_control_plane(place, folder))
        admin = await stack.enter_async_context(_operator(place, folder))
        start_s, began = time.monotonic() - began, time.monotonic()
        nodes = await stack.enter_async_context(_helper("nodes", place, size))
        sessions_s, began = time.monotonic() - began, time.monotonic()
        note(f"{size.sites} sessions after {sessions_s:.1f} s, CPU {plane.cpu_s():.1f} s")
        clients = await stack.enter_async_context(_helper("streams", place, size))
        streams_s = time.monotonic() - began
        note(f"{size.streams} streams after {streams_s:.1f} s, CPU {plane.cpu_s():.1f} s")
        await asyncio.sleep(SETTLE_S)
        used = plane.cpu_s()
        await asyncio.sleep(IDLE_S)
        idle = (plane.cpu_s() - used) / IDLE_S
        found = []
        for number in range(changes):
            found.append(await _change(plane, admin, clients, (CHEAP_USD, DEAR_USD)[number % 2]))
            note(f"price {found[-1].usd_per_hour}: last after {found[-1].last_s:.2f} s, CPU {found[-1].cpu_s:.2f} s")
        nodes.alive()
        return Measured(
            size=size,
            changes=tuple(found),
            start_s=start_s,
            sessions_s=sessions_s,
            streams_s=streams_s,
            idle_cpu_share=idle,
            memory_mib=plane.memory_mib("VmRSS"),
            peak_memory_mib=plane.memory_mib("VmHWM"),
        )


async def _change(plane: Plane, admin: Any, clients: Helper, usd_per_hour: float) -> Change:
    await clients.ask("arm")
    logged, cpu_s, began = plane.log_size, plane.cpu_s(), time.monotonic()
    await admin.SetPrice(admin_pb2.SetPriceRequest(node=REPRICED, usd_per_hour=usd_per_hour))
    await clients.ask("all", HEARD_WITHIN_S)
    heard = plane.cpu_s() - cpu_s
    await asyncio.sleep(SETTLE_S)
    settled = plane.cpu_s() - cpu_s
    told = await clients.ask("report")
    at_s, decided = [at - began for at in told["at_s"]], plane.decided_ms(logged)
    return Change(
        usd_per_hour=usd_per_hour,
        median_s=at_s[len(at_s) // 2],
        last_s=at_s[-1],
        cpu_s=heard,
        cpu_settled_s=settled,
        decided_ms=tuple(ms for ms, _ in decided),
        decided_cpu_ms=tuple(cpu_ms for _, cpu_ms in decided),
        **{key: told[key] for key in ("responses", "concerned", "responses_to_spared", "spared", "first_choice")},
    )


class Plane:
    """A running control plane, seen from outside."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._proc = Path(f"/proc/{child.pid}")

    def cpu_s(self) -> float:
        """Processor time since its start, of all threads."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def memory_mib(self, key: str) -> float:
        """A line of its status: VmRSS is what it has, VmHWM the most it had."""
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))

    @property
    def log_size(self) -> int:
        return self._child.log_path.stat().st_size

    def decided_ms(self, after: int) -> list[tuple[float, float]]:
        """How long each decision took that was logged after `after` bytes, and how much of the processor's time."""
        with self._child.log_path.open("rb") as log:
            log.seek(after)
            found = _DECIDED.findall(log.read().decode("utf-8", "replace"))
            return [(float(ms), float(cpu_ms)) for ms, cpu_ms in found]


@asynccontextmanager
async def _control_plane(place: dict[str, Any], folder: Path) -> AsyncIterator[Plane]:
    child = Child(
        "control plane",
        [script("nearmesh-controlplane"), "--log-level", "debug", "--config", place["config"]],
        folder / "plane.log",
    )
    await child.start()
    try:
        yield Plane(child)
    finally:
        await child.stop()


@asynccontextmanager
async def _operator(place: dict[str, Any], folder: Path) -> AsyncIterator[Any]:
    tls = grpc.ssl_channel_credentials((folder / CA).read_bytes())
    credentials = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(place["operator"]))
    async with grpc.aio.secure_channel(place["public"], credentials) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        await admin.ListNodes(admin_pb2.ListNodesRequest(), wait_for_ready=True, timeout=START_WITHIN_S)
        yield admin


class Helper:
    """A process that makes load, and says so."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process

    async def ask(self, command: str, within_s: float = START_WITHIN_S) -> dict[str, Any]:
        """Its answer. Raises ScaleFailed."""
        assert self._process.stdin
        self._process.stdin.write(command.encode() + b"\n")
        return await self.heard(within_s)

    def alive(self) -> None:
        """Raises ScaleFailed when it has ended: its load was not there all the time."""
        if self._process.returncode is not None:
            raise ScaleFailed(f"the process of {self._name} ended by itself")

    async def heard(self, within_s: float) -> dict[str, Any]:
        """The next that it says. Raises ScaleFailed."""
        assert self._process.stdout
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ScaleFailed(f"the process of {self._name} says nothing for {within_s:.0f} s") from None
        answer: dict[str, Any] = json.loads(line or '{"failed": ["it ended"]}')
        if answer.get("failed"):
            raise ScaleFailed(f"{self._name}: {answer['failed'][0]}")
        return answer


@asynccontextmanager
async def _helper(name: str, place: dict[str, Any], size: Size) -> AsyncIterator[Helper]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"benchmarks.scale.{name}", json.dumps(place), json.dumps(asdict(size))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # A report names every stream.
        limit=2**24,
    )
    try:
        helper = Helper(name, process)
        await helper.heard(START_WITHIN_S)
        yield helper
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
