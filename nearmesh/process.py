"""What the mesh's long-lived processes share: one of a kind per folder, logging, and an orderly end on a signal."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nearmesh import leash
from nearmesh.errors import AlreadyRunning

# In a folder that one process holds for itself; it contains that process's id.
LOCK_FILE = ".lock"
# New objects more than freed ones after which the youngest are looked through; Python's own number is 700.
_ALLOCATIONS = 10_000
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure_logging(level: str) -> None:
    """Standard logging to stderr; libraries below WARNING stay silent."""
    logging.basicConfig(format=LOG_FORMAT, level=logging.WARNING)
    for name in ("nearmesh", "nearmesh_agent", "nearmesh_controlplane"):
        logging.getLogger(name).setLevel(level.upper())


def rare_collections() -> None:
    """Has the interpreter look for cycles of garbage less often; for the beginning of a process, when all is imported.

    A request leaves none behind, and what was imported or restored stays; looking all the same took a tenth of a small
    request, and far more of a change of all routes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 20, 20)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets. Call it inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Holds `folder` for this process alone; the lock falls with the process. Raises AlreadyRunning."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AlreadyRunning(f"{what} in {folder} is running already (pid {file.read().strip()})") from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(folder: Path) -> int | None:
    """The process that holds `folder` through `only_one`, or None. An id alone could be an ended process's."""
    try:
        with (folder / LOCK_FILE).open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


def hold_for_life(path: Path) -> None:
    """Has `has_died` say of this process, through the file at `path`, whether it is gone, whatever ended it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    # Not before: who finds it empty does not know yet.
    os.write(handle, str(os.getpid()).encode())


def has_died(path: Path) -> bool:
    """Whether there was a process that held `path` for its life, and there is none any more."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return bool(file.read())
    except (FileNotFoundError, BlockingIOError):
        return False


def leashed(command: Sequence[str], *, nice: int = 0) -> list[str]:
    """The command line of a child that the kernel ends when this process is gone, even by SIGKILL.

    The kernel goes by the thread that starts the child: start it from one that lives as long as the process. One that
    is `nice`, up to 19, gives way to other processes; it should have a session of its own, which does so as well.
    """
    behind = ["--nice", str(nice)] if nice else []
    return [sys.executable, "-I", "-S", leash.__file__, *behind, str(os.getpid()), *command]
