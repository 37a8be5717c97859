"""One of Flower's processes beside the control plane: started, kept running, its output in a file that stays small.

Each has a process group of its own, since Flower starts processes that the control plane does not know: what ends a
process ends its whole group, and the kernel ends the process itself with the control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nearmesh.backoff import Backoff
from nearmesh.process import leashed

log = logging.getLogger(__name__)

# SIGKILL for one that has not ended so long after it was told to. A SuperLink waits for connections that nobody closes;
# what it has to keep is on disk.
STOP_WITHIN_S = 1.0
# Between two starts of one that ends by itself; the first wait again after one that ran for longer than STEADY_S.
FIRST_WAIT_S, LONGEST_WAIT_S, STEADY_S = 0.2, 30.0, 60.0
# Flower's processes take whole seconds of a core to begin. Where the control plane shares its machine with a gateway or
# with nodes, requests do not wait for that.
NICE = 5
# A log file becomes its `.1`, in the place of an older one, at this size.
MAX_LOG_BYTES = 8 * 1024 * 1024


class Child:
    """One process, which may be started again and again."""

    def __init__(self, name: str, log_path: Path) -> None:
        self.name = name
        self._log = Log(log_path)
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """0 while there is none."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Call it from the thread that lives as long as the control plane does."""
        # A pipe of our own: asyncio's would have `wait` wait for everybody who has inherited it.
        read, write = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *leashed(command, nice=NICE),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read, "rb")
        )
        self._output = asyncio.create_task(self._log.take(output))
        self._output.add_done_callback(lambda _: transport.close())
        log.info("%s started pid=%d", self.name, self._process.pid)

    async def ended(self) -> int:
        """Waits for the process to end, and ends what it leaves behind; its exit code, negative for a signal."""
        assert self._process is not None
        code = await self._process.wait()
        self._signal(signal.SIGKILL)
        return code

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen; safe to repeat."""
        if self.pid:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_WITHIN_S):
                    await self.ended()
            except TimeoutError:
                self._signal(signal.SIGKILL)
                await self.ended()
            log.info("%s stopped", self.name)
        if self._output:
            self._output.cancel()
            await asyncio.wait({self._output})

    def last_words(self, lines: int = 5) -> str:
        """The end of what it printed, for a message to a person."""
        return self._log.end(lines)

    def _signal(self, number: signal.Signals) -> None:
        """To the process and all that it started, also when it has ended itself."""
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


class Pauses:
    """How long to wait before a process that ended by itself is started again."""

    def __init__(self) -> None:
        self._backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        self._began_at = time.monotonic()

    def started(self) -> None:
        self._began_at = time.monotonic()

    async def wait(self) -> None:
        if time.monotonic() - self._began_at > STEADY_S:
            self._backoff.reset()
        await asyncio.sleep(self._backoff.next_s())


class Log:
    """What a process prints, in one file and the one before it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def take(self, output: asyncio.StreamReader) -> None:
        """Until nobody has the other end of the pipe any more."""
        while piece := await output.read(64 * 1024):
            self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        try:
            self._write(piece)
        except OSError as error:
            # A full disk must not stop the process, which would stand still if nobody read what it prints.
            log.error("%s cannot be written: %s", self.path, error)

    def _write(self, piece: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(piece)
            if file.tell() > MAX_LOG_BYTES:
                self.path.replace(self.path.with_suffix(f"{self.path.suffix}.1"))

    def end(self, lines: int) -> str:
        try:
            return "\n".join(self.path.read_text("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""
