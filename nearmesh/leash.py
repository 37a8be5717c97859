"""Becomes another program that the kernel ends when its parent is gone, even by SIGKILL.

    python leash.py [--nice N] PARENT_PID PROGRAM [ARGUMENT ...]

With `--nice` it gives way to others, as do all that it starts: from 0, as everybody else, to 19.

A program of its own, because code between fork and exec is not safe in a process with threads, and gRPC has many.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Never returns. The setting outlives the exec."""
    end_with(parent)
    os.execvp(command[0], command)


def end_with(parent: int) -> None:
    """Has the kernel end this process when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the setting was made.
    if os.getppid() != parent:
        sys.exit(1)


def give_way(nice: int) -> None:
    """Puts this process behind others, and its session."""
    with contextlib.suppress(OSError):
        # One that is behind already stays there; who may do anything could come forward.
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    session_gives_way(nice)


def session_gives_way(nice: int) -> None:
    """Puts the whole session behind others, where the kernel shares the cores out among sessions first."""
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:  # noqa: PTH123  # nothing imported
        file.write(str(nice))


def _run(arguments: list[str]) -> None:
    if arguments[0] == "--nice":
        give_way(int(arguments[1]))
        arguments = arguments[2:]
    main(int(arguments[0]), arguments[1:])


if __name__ == "__main__":
    _run(sys.argv[1:])
