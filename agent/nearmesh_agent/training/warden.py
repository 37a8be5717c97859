"""Runs a SuperNode within a budget: `python -m nearmesh_agent.training.warden --yielded FILE -- flower-supernode ...`.

A process between the agent and the SuperNode, since somebody has to be there when the agent is not: an app that stands
still (SIGSTOP) while the agent is killed would stand there for ever. This one learns of the agent's end at once, and
ends all that it has brought forth; were it killed itself, the kernel ends the SuperNode, and the agent the rest.

It hears on its standard input what training may have: on each line a share of the cores, and 1 while an engine call
runs that is to have them for itself. Two signals say the latter as well, at once (`slices.STAND_STILL` and `GO_ON`). It
says on its standard output how many apps are at work and for how long they have stood still, in seconds. The latter
also stands in FILE, for the apps themselves.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nearmesh import leash
from nearmesh_agent.engines.cores import usable_cores
from nearmesh_agent.training.budget import LEAST_SHARE
from nearmesh_agent.training.family import Family, send
from nearmesh_agent.training.slices import GO_ON, STAND_STILL, Slices, Starvation

_PR_SET_CHILD_SUBREAPER = 36
# Apps are looked for so often: among all processes of the machine, of which there may be thousands. One that has just
# begun imports for seconds.
_SEARCH_EVERY_S = 0.1
# Engine calls may come by the hundred a second: between two of them nobody is looked for, nor what was used.
_LOOK_AGAIN_S = 0.01
# The agent is silent for so long: it hangs, and nobody looks after serving.
_SILENT_S = 5.0
# From SIGTERM until what is left is killed. A SuperNode ends within a second.
_END_WITHIN_S = 5.0
_SPEAK_EVERY_S = 0.25
# Of all that trains; apps give way further than this.
_NICE = 19
# Libraries that compute in threads begin as many as there are cores unless told; these do not belong to them alone.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Warden:
    """One SuperNode and its apps, until it ends or is to end."""

    def __init__(self, command: Sequence[str], yielded: Path, cores: int) -> None:
        self._parent = os.getppid()
        self._family = Family()
        self._cores = cores
        self._slices = Slices(cores, time.monotonic())
        self._starvation = Starvation(time.monotonic())
        self._used_s = 0.0
        self._still = False
        self._file = os.open(yielded, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._yielded_s = _number(os.pread(self._file, 64, 0))
        self._write_down()
        self._stepped_s = self._looked_s = self._heard_s = time.monotonic()
        self._spoke_s = self._searched_s = 0.0
        self._unread = b""
        # Wakes the one who waits when a signal has come.
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._ending_s: float | None = None
        self._supernode = _spawn(command)
        self._code: int | None = None

    def run(self) -> int:
        """Until the SuperNode has ended, with its exit code; then nothing of it is left."""
        os.set_blocking(0, False)
        try:
            while self._code is None and not self._too_long():
                self._step(time.monotonic())
                if not self._hear(self._wait_s()):
                    break
            return self._code or 0
        finally:
            self._sweep()

    def end(self, *_: object) -> None:
        """Asks the SuperNode to end, in a signal's handler."""
        if self._ending_s is None:
            self._ending_s = time.monotonic()
            send(self._family.workers, signal.SIGCONT)
            with suppress(ProcessLookupError):
                os.kill(self._supernode, signal.SIGTERM)

    def hold(self, number: int, *_: object) -> None:
        """In a signal's handler: an engine call begins, and apps stand still at once; or none runs any more."""
        self._slices.held = number == STAND_STILL
        if self._slices.held and self._ending_s is None:
            send(self._family.workers, signal.SIGSTOP)
            self._still = True

    def _too_long(self) -> bool:
        return self._ending_s is not None and time.monotonic() > self._ending_s + _END_WITHIN_S

    def _step(self, now_s: float) -> None:
        if self._family.workers and self._still:
            self._yielded_s += now_s - self._stepped_s
        self._stepped_s = now_s
        used_s = self._look(now_s) if now_s >= self._looked_s + _LOOK_AGAIN_S else 0.0
        run = self._slices.step(now_s, used_s) or self._ending_s is not None
        if not run:
            # Each time, for those who have come since.
            send(self._family.workers, signal.SIGSTOP)
        elif self._still:
            send(self._family.workers, signal.SIGCONT)
        self._still = not run
        self._speak(now_s)
        self._reap()

    def _look(self, now_s: float) -> float:
        """Who is there, and how many processor seconds they have used since the last look."""
        search = now_s >= self._searched_s + _SEARCH_EVERY_S
        self._searched_s = now_s if search else self._searched_s
        used_s = self._family.look(search=search)
        if now_s > self._heard_s + _SILENT_S:
            self._slices.share = min(self._slices.share, LEAST_SHARE)
            self._slices.held = False
        if self._family.workers and self._still:
            self._write_down()
        used_s, self._used_s = max(0.0, used_s - self._used_s), used_s
        self._looked_s = now_s
        self._get_a_turn(now_s, used_s)
        return used_s

    def _get_a_turn(self, now_s: float, used_s: float) -> None:
        before = self._starvation.relieved
        wants = any(member.runnable for member in self._family.alive)
        now = self._starvation.step(now_s, used_s, self._slices.share * self._cores, wants=wants)
        if now != before:
            # Apps stay behind whoever else is in their session, which is nobody; only who may do anything could change
            # that.
            leash.session_gives_way(0 if now else _NICE)

    def _write_down(self) -> None:
        """Always as long, so that who reads never finds half a number."""
        with suppress(OSError):
            os.pwrite(self._file, f"{self._yielded_s:015.3f}\n".encode(), 0)

    def _wait_s(self) -> float:
        return self._slices.look_in_s() if self._family.workers else _SEARCH_EVERY_S

    def _hear(self, wait_s: float) -> bool:
        """Waits for a word of the agent's; False when there will be none any more."""
        heard = select.select([0, self._woken], [], [], wait_s)[0]
        if self._woken in heard:
            os.read(self._woken, 65536)
        if 0 in heard:
            read = os.read(0, 65536)
            if not read:
                return False
            *lines, self._unread = (self._unread + read).split(b"\n")
            if lines:
                share, _, held = lines[-1].partition(b" ")
                self._slices.share, self._slices.held = min(1.0, max(0.0, _number(share))), held == b"1"
                self._heard_s = time.monotonic()
        return os.getppid() == self._parent

    def _speak(self, now_s: float) -> None:
        if now_s >= self._spoke_s + _SPEAK_EVERY_S:
            self._spoke_s = now_s
            with suppress(OSError):
                os.write(1, f"{len(self._family.workers)} {self._yielded_s:.3f}\n".encode())

    def _reap(self) -> None:
        """Ended children, adopted ones among them."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._supernode:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self._code = code if code >= 0 else 128 - code

    def _sweep(self) -> None:
        """Kills what is left, also what stands still; who is forked meanwhile is met the next time round."""
        if self._code is None:
            # Where there is no /proc, nobody else is found.
            with suppress(ProcessLookupError):
                os.kill(self._supernode, signal.SIGKILL)
        until_s = time.monotonic() + _END_WITHIN_S
        while time.monotonic() < until_s:
            self._family.look()
            send(self._family.alive, signal.SIGKILL)
            self._reap()
            if not self._family.alive:
                return
            time.sleep(0.01)


def _spawn(command: Sequence[str]) -> int:
    """Ended by the kernel with this process. Its output goes where errors go: the warden's own is read by the agent."""
    leashed = [sys.executable, "-I", "-S", leash.__file__, "--nice", str(_NICE), str(os.getpid()), *command]
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawn(leashed[0], leashed, os.environ, file_actions=[nothing, (os.POSIX_SPAWN_DUP2, 2, 1)])


def _number(text: bytes) -> float:
    """0 for what is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nearmesh_agent.training.warden", description=__doc__)
    parser.add_argument("--yielded", type=Path, required=True, metavar="FILE")
    parser.add_argument("--cores", type=int, default=usable_cores(), metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="that an app computes in")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    with suppress(PermissionError):
        # A group of its own, by which the agent ends what a killed warden leaves behind.
        os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for name in _THREADS:
        os.environ.setdefault(name, str(options.threads))
    warden = Warden(options.command, options.yielded, options.cores)
    signal.signal(signal.SIGTERM, warden.end)
    for number in (STAND_STILL, GO_ON):
        signal.signal(number, warden.hold)
    return warden.run()


if __name__ == "__main__":
    sys.exit(main())
