"""Servers as processes: started, watched through /proc with all their children, and ended with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.environments import BUILD
from benchmarks.serving.models import Model
from benchmarks.serving.systems import Start, System, variables
from nearmesh.devmesh.children import Child
from nearmesh.devmesh.ports import free_ports

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class _Stat:
    """What /proc/PID/stat says, as far as it matters here."""

    pid: int
    parent: int
    session: int
    # Of the process, and of those of its children that have ended.
    cpu_s: float

    @classmethod
    def parse(cls, text: str) -> _Stat:
        # The name, in brackets, may contain anything.
        head, _, tail = text.rpartition(")")
        fields = tail.split()
        ticks = sum(int(field) for field in fields[11:15])
        return cls(int(head.split(maxsplit=1)[0]), int(fields[1]), int(fields[3]), ticks / TICKS_PER_S)


def family(root: int) -> list[_Stat]:
    """The process, its descendants, and whoever else is left of the session that it leads."""
    everyone = _everyone()
    mine = {root}
    # A child may have a lower number than its parent, so once through is not enough.
    while added := {s.pid for s in everyone if s.pid not in mine and (s.parent in mine or s.session == root)}:
        mine |= added
    return [stat for stat in everyone if stat.pid in mine]


def _everyone() -> list[_Stat]:
    found = []
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            # It may end while it is looked at.
            with contextlib.suppress(OSError):
                found.append(_Stat.parse((folder / "stat").read_text("utf-8", "replace")))
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    return (_PROC / str(pid)).exists()


def cpu_s(root: int) -> float:
    """Processor time that the process and its family have used, in seconds."""
    return sum(stat.cpu_s for stat in family(root))


def peak_bytes(root: int) -> int:
    """Sum of what each process of the family ever had resident at most; pages that they share count in each."""
    return sum(_peak_bytes(stat.pid) for stat in family(root))


def _peak_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def busy_s() -> float:
    """Processor time that the whole machine has used, in seconds."""
    fields = [int(field) for field in (_PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    # Without idle, and without waiting for disks.
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S


class Server:
    """One system that serves one model."""

    def __init__(self, system: System, model: Model, folder: Path) -> None:
        ports = free_ports(2)
        start = Start(model=model, folder=folder, grpc_port=ports[0], http_port=ports[1])
        self.system = system
        self.model = model
        self.address = f"127.0.0.1:{system.port(start)}"
        self._log = BUILD / "logs" / f"{system.name}-{model.name}.log"
        self._child = Child(system.name, system.command(start), self._log, variables(os.environ))

    @property
    def pid(self) -> int:
        return self._child.pid

    async def start(self) -> None:
        self._log.unlink(missing_ok=True)
        await self._child.start()

    async def stop(self) -> None:
        """Ends the server, and those of its children that it left behind."""
        mine = [stat.pid for stat in family(self.pid)] if self.pid else []
        await self._child.stop()
        left = {stat.pid for stat in _everyone()}
        for pid in left.intersection(mine):
            send(pid, signal.SIGKILL)

    def rest(self) -> None:
        """Until its next turn; a system that rests by itself is left alone."""
        if self.system.restless:
            self._signal(signal.SIGSTOP)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While it is measured."""
        if self.system.restless:
            self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.rest()

    def _signal(self, number: signal.Signals) -> None:
        for stat in family(self.pid) if self.pid else []:
            send(stat.pid, number)

    def last_words(self) -> str:
        return self._child.last_words(3)


def send(pid: int, number: signal.Signals) -> None:
    """A signal, if the process is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@asynccontextmanager
async def running(system: System, model: Model) -> AsyncIterator[Server]:
    """A server that has been started; whether it answers is for its client to see."""
    folder = Path(tempfile.mkdtemp(prefix=f"nearmesh-bench-{system.name}-"))
    server = Server(system, model, folder)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        shutil.rmtree(folder, ignore_errors=True)
