"""Keeps one SuperNode running while a federated run asks for this node: started, started again, and ended in time."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nearmesh import flower_processes
from nearmesh.backoff import Backoff
from nearmesh.errors import ConfigError
from nearmesh.tls import Credentials, write_private
from nearmesh_agent.training import key, programs, site
from nearmesh_agent.training.config import TrainingConfig
from nearmesh_agent.training.programs import SUPERNODE
from nearmesh_agent.training.site import Site

log = logging.getLogger(__name__)

KEY, CA, LOG, YIELDED = "key", "ca.pem", "supernode.log", "yielded"
HOME = "flower"
# Where Flower keeps the apps that it has unpacked; of runs that are over, nobody else would clear them away.
APPS = Path(HOME) / "apps"
# Between two starts of one that ends by itself; after one that ran for longer than STEADY_S, the first again.
FIRST_WAIT_S, LONGEST_WAIT_S, STEADY_S = 0.5, 10.0, 60.0
# The log becomes its `.1`, in the place of an older one, at this size; looked at so often.
MAX_LOG_BYTES, LOOK_EVERY_S = 8 * 1024 * 1024, 10.0
OF_GPUS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


class Budget(Protocol):
    """Who holds training to its share of the machine."""

    # Seconds for which apps have stood still in all, and why they do now.
    yielded_s: float
    paused: str

    @property
    def threads(self) -> int:
        """That an app computes in."""
        ...

    def command(self, command: Sequence[str], yielded_file: Path) -> list[str]:
        """The command line that runs another one within the budget; started with pipes for its input and output."""
        ...

    async def run(self, process: asyncio.subprocess.Process) -> None:
        """Until it has ended, with all that it has brought forth. Cancelled, it ends it first."""
        ...


class SuperNode:
    """Of one node; keeps what it has to in `folder`."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        credentials: Callable[[], Credentials],
        budget: Budget,
        *,
        program: Sequence[str] = (sys.executable, "-m", "nearmesh_agent.training.supernode_process", SUPERNODE),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises ConfigError."""
        self._config = config
        self._folder = folder.absolute()
        if config.allowed and "'" in str(self._folder):
            raise ConfigError(f"{self._folder}: Flower takes no path with ' in it; choose another `data` in node.toml")
        self._credentials = credentials
        self._budget = budget
        self._program = program
        self._on_change = on_change
        self.running = False
        # Why it does not run although it is wanted. Never words of its log, which may speak of the data.
        self.detail = ""

    async def keep(self, superlink: str) -> None:
        """Until it is cancelled, connected to `superlink`, host:port."""
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        try:
            while True:
                began_s = time.monotonic()
                try:
                    await self._once(superlink)
                except OSError as error:
                    # A full disk, or no more processes.
                    self._say(f"its SuperNode cannot be started: {error.strerror or type(error).__name__}")
                    log.error("the SuperNode cannot be started: %s", error)
                if time.monotonic() - began_s > STEADY_S:
                    backoff.reset()
                await asyncio.sleep(backoff.next_s())
        finally:
            self._say("")

    async def _once(self, superlink: str) -> None:
        """One SuperNode, from its start to its end."""
        command, surroundings = await asyncio.to_thread(self._prepare, superlink)
        with (self._folder / LOG).open("ab") as output:
            # From the loop's own thread, which lives as long as the agent.
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                cwd=self._folder,
                env=surroundings,
                start_new_session=True,
            )
        log.info("SuperNode started pid=%d superlink=%s", process.pid, superlink)
        self._say("", running=True)
        tidying = asyncio.create_task(self._tidy())
        try:
            await self._budget.run(process)
        finally:
            tidying.cancel()
            self.running = False
            log.info("SuperNode ended code=%s", process.returncode)
        # Not reached when it was told to end.
        said = f"its SuperNode ended with code {process.returncode} and is started again"
        log.warning("%s; %s says why", said, self._folder / LOG)
        self._say(said)

    def _prepare(self, superlink: str) -> tuple[list[str], dict[str, str]]:
        """Its files, the command line that refers to them, and its environment. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # What recipes print, and what goes wrong with the data, is the operator's alone.
        self._folder.chmod(0o700)
        shutil.rmtree(self._folder / APPS, ignore_errors=True)
        self._rotate()
        credentials = self._credentials()
        write_private(self._folder / KEY, key.private_openssh(credentials.key_pem))
        write_private(self._folder / CA, credentials.ca_pem)
        yielded = self._folder / YIELDED
        of_site = Site(
            data=self._config.data, threads=self._budget.threads, device=self._config.device, yielded=yielded
        )
        node_config = f"{site.KEY}='{of_site.write(self._folder)}' {self._config.node_config}"
        command = [
            *self._program,
            *([programs.OWN_APPS] if self._config.own_apps else []),
            "--superlink",
            superlink,
            "--root-certificates",
            str(self._folder / CA),
            "--auth-supernode-private-key",
            str(self._folder / KEY),
            "--node-config",
            node_config.strip(),
        ]
        return self._budget.command(command, yielded), environment(self._folder, own_apps=self._config.own_apps)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await asyncio.to_thread(self._rotate)
            except OSError as error:
                log.warning("%s cannot be kept small: %s", self._folder / LOG, error)

    def _rotate(self) -> None:
        """Copied and emptied, since those who write hold it open; what they write meanwhile may be lost."""
        path = self._folder / LOG
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(path, path.with_name(f"{LOG}.1"))
            os.truncate(path, 0)

    def _say(self, detail: str, *, running: bool = False) -> None:
        self.running, self.detail = running, detail
        self._on_change()


def environment(folder: Path, *, own_apps: bool, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of the SuperNode and all that it starts: as of Flower's processes anywhere, and which GPUs are this node's."""
    found = flower_processes.environment(folder / HOME, own) | {name: own[name] for name in OF_GPUS if name in own}
    first = programs.put(folder / "programs", own_apps=own_apps)
    return found | {"PATH": os.pathsep.join([str(first), found["PATH"]])}
