"""Which cores an engine call gets: all of them when it has the machine for itself, and none before those who answer."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import cache

log = logging.getLogger(__name__)

# Of engine threads, on Unix's scale from 0 (as all others) to 19.
_NICE = 5


class Occupancy:
    """Engine calls that run on this node at the moment, of all replicas, and who else wants to run on the machine."""

    def __init__(self, runnable: Callable[[], int] | None = None) -> None:
        """`runnable` tells how many threads of the machine run or could run, the one that asks included."""
        self._calls: set[int] = set()
        self._runnable = runnable or runnable_threads
        # Threads that want to run and leave a core at once to whoever else wants it: of training beside serving.
        self.yielding = 0
        # Told, in the thread of a call, when one begins where there was none (True), and when there is none any more.
        self.on_change: Callable[[bool], None] | None = None

    def enter(self) -> bool:
        """A call begins in this thread; True if nothing else computes, here or in another process.

        Threads that wait for each other, as those of one engine call on several cores do, lose far more than their
        share when one of them has to wait for a core.
        """
        self._calls.add(threading.get_ident())
        first = len(self._calls) == 1
        alone = first and self._runnable() - self.yielding <= 1
        # Only now: threads that are sent away just then would be taken for others.
        if first and self.on_change:
            self.on_change(True)
        return alone

    def leave(self) -> None:
        self._calls.discard(threading.get_ident())
        if self.on_change and not self._calls:
            self.on_change(False)

    @property
    def taken(self) -> bool:
        """Whether an engine call runs."""
        return bool(self._calls)


def runnable_threads() -> int:
    """Threads of this machine that run or could run, this one included; 1 where the system does not tell."""
    opened = _loadavg()
    if opened is None:
        return 1
    # "0.20 0.18 0.12 1/80 11206": see proc(5).
    return int(os.pread(opened, 128, 0).split()[3].partition(b"/")[0])


@cache
def _loadavg() -> int | None:
    """Opened once and kept open for as long as the process lives: it is read before every call."""
    try:
        return os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def give_way() -> None:
    """Puts the thread that asks behind the others of this process: a refusal must be quick while all cores compute."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    except (OSError, AttributeError):
        log.debug("this system has no priorities for threads; answers may come a little later")
