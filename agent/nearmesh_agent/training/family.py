"""The processes that a training process has brought forth, as /proc shows them: which do the work, and what they used.

The SuperNode and its SuperExec keep the connection to the SuperLink, and the nursery forks apps: these are left alone.
Whatever else runs among them is an app at work, also what the nursery has forked, which looks like it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NURSERY = "flower-nursery"
SPARED = frozenset({"flower-supernode", "flower-superexec", NURSERY})
# The name of a program is among the first words of its command line: after interpreters, their options and a leash.
_WORDS = 16
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_NICEST = 19


@dataclass(slots=True)
class Process:
    """One of the family."""

    pid: int
    # Clock ticks since boot: an id alone may be another process's by now.
    started: int
    # An app at work; one that was just forked still looks like its parent.
    worker: bool = False
    # Its own, and its ended children's.
    cpu_s: float = 0.0
    # It has ended, and its parent has not noticed yet.
    ended: bool = False
    # It runs, or waits for a core.
    runnable: bool = False


class Family:
    """Of this process: those below it, and those of its process group. For a process that adopts orphans."""

    def __init__(self, proc: Path = Path("/proc"), spared: Collection[str] = SPARED) -> None:
        self._proc = proc
        self._spared = spared
        self._me = os.getpid()
        self._group = os.getpgrp()
        self._members: dict[int, Process] = {}
        self._others: set[int] = set()

    @property
    def workers(self) -> list[Process]:
        """Those at work as of the last look."""
        return [member for member in self.alive if member.worker]

    @property
    def alive(self) -> list[Process]:
        """All as of the last look."""
        return [member for member in self._members.values() if not member.ended]

    def look(self, *, search: bool = True) -> float:
        """Finds who is gone, and with a `search` who has come; all that they used so far, processor seconds."""
        pids = set(self._members)
        if search:
            pids = set(_numbers(self._proc))
            self._others &= pids
        seen: dict[int, Process] = {}
        # A parent has the smaller id, until ids begin anew; then its child is found by the group.
        for pid in sorted(pids - self._others - {self._me}):
            found = self._read(pid)
            if found is None:
                continue
            parent, group, process = found
            if parent == self._me or group == self._group or parent in seen or parent in self._members:
                seen[pid] = self._known(process, parent)
            else:
                self._others.add(pid)
        self._members = seen
        adopted = os.times()
        return sum(member.cpu_s for member in seen.values()) + adopted.children_user + adopted.children_system

    def _known(self, process: Process, parent: int) -> Process:
        known = self._members.get(process.pid)
        process.worker = bool(known and known.started == process.started and known.worker)
        if not process.worker and not process.ended:
            process.worker = not self._is_spared(process.pid, parent)
            if process.worker:
                give_way(self._proc, process.pid)
        return process

    def _is_spared(self, pid: int, parent: int) -> bool:
        words = self._words(pid)
        # There are none for a moment while it becomes another program.
        if not words:
            return True
        return not words.isdisjoint(self._spared) and not (NURSERY in words and NURSERY in self._words(parent))

    def _words(self, pid: int) -> set[str]:
        """Of its command line, without folders; none where it has ended."""
        try:
            words = (self._proc / str(pid) / "cmdline").read_bytes().split(b"\0")[:_WORDS]
        except OSError:
            return set()
        return {word.rpartition(b"/")[2].decode(errors="replace") for word in words} if words[0] else set()

    def _read(self, pid: int) -> tuple[int, int, Process] | None:
        """Its parent, its group, and itself; None when it is not there any more."""
        try:
            text = (self._proc / str(pid) / "stat").read_bytes()
        except OSError:
            return None
        # The name, in parentheses, may hold anything. See proc(5); this begins with the third field.
        fields = text[text.rindex(b")") + 2 :].split()
        cpu_s = sum(map(int, fields[11:15])) / _TICKS_PER_S
        process = Process(
            pid=pid,
            started=int(fields[19]),
            cpu_s=cpu_s,
            ended=fields[0] in (b"Z", b"X"),
            runnable=fields[0] == b"R",
        )
        return int(fields[1]), int(fields[2]), process


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """A signal to each; those that are gone are passed over."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def give_way(proc: Path, pid: int) -> None:
    """Has the kernel run its threads when nobody else wants a core; whatever wakes up takes it from them at once.

    The kernel takes the priority of reading and writing from this one, unless it is set apart.
    """
    with suppress(OSError):
        for thread in _numbers(proc / str(pid) / "task"):
            os.setpriority(os.PRIO_PROCESS, thread, _NICEST)
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def _numbers(folder: Path) -> list[int]:
    """The entries that are called by a number: processes, or threads; none on a system without /proc."""
    try:
        with os.scandir(folder) as entries:
            return [int(entry.name) for entry in entries if entry.name.isdecimal()]
    except OSError:
        return []
