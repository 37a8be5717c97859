"""Becomes another program that the kernel ends when its parent is gone, even by SIGKILL.

    python leash.py PARENT_PID PROGRAM [ARGUMENT ...]

A program of its own, because code between fork and exec is not safe in a process with threads, and gRPC has many.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Never returns. The setting outlives the exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the setting was made.
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
