"""Signals to processes that tests have started."""

from __future__ import annotations

import os
import signal


def send(pid: int, number: signal.Signals) -> None:
    """To one process. Where there is none its id is said to be 0, which the kernel takes for all of our own group."""
    assert pid > 0, f"there is no process that {number.name} could be sent to"
    os.kill(pid, number)
