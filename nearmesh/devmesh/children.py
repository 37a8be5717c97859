"""Child processes of the local mesh: each with a log file, each ended with its parent whatever happens to it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nearmesh.errors import MeshError
from nearmesh.process import leashed

log = logging.getLogger(__name__)

# An agent lets its requests finish when it is told to stop.
STOP_WITHIN_S = 15.0


class ChildFailed(MeshError):
    """A process of the local mesh did not start, or ended by itself."""

    reason = "CHILD_FAILED"


def script(name: str) -> str:
    """A console script of the environment that this process runs in."""
    return str(Path(sys.executable).with_name(name))


async def output_of(command: Sequence[str], failure: str) -> bytes:
    """What a program prints until it ends well. Raises ChildFailed: `failure`, and what it said of that."""
    process = await asyncio.create_subprocess_exec(
        *leashed(command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ChildFailed(f"{failure}: {errors.decode(errors='replace').strip()}")
    return output


class Child:
    """One process, which may be started again under the same name."""

    def __init__(
        self, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._environment = dict(environment) if environment else None
        self._process: asyncio.subprocess.Process | None = None
        # A process that is not wanted is not started again when it ends.
        self.wanted = False

    @property
    def pid(self) -> int:
        """The process id; 0 while there is none."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def start(self) -> None:
        """In a session of its own, so that Ctrl-C reaches the parent alone, which then stops all in order."""
        self.wanted = True
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *leashed(self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
            )

    async def ended(self) -> int:
        """Waits for the process to end; its exit code, negative for a signal."""
        assert self._process is not None
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if there is a process."""
        if self.pid and self._process:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        self.signal(signal.SIGKILL)
        if self._process:
            await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen. Safe to repeat."""
        self.wanted = False
        if not self.pid:
            return
        # A frozen process would not hear the other one. In this order, since each signal first asks whether the process
        # has ended: after SIGTERM it may have, and asking would take its exit status from asyncio's own watcher.
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await self.ended()
        except TimeoutError:
            log.warning("%s did not stop within %s s and is killed", self.name, STOP_WITHIN_S)
            await self.kill()

    def last_words(self, lines: int = 5) -> str:
        """The end of its log, for a message to a person."""
        try:
            return "\n".join(self.log_path.read_text("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""
