"""Holds training to its budget from the agent's side: looks at serving, decides, and tells the warden.

The agent starts what `Throttle.command` makes of a SuperNode's command line, with pipes for its input and output, and
awaits `Throttle.run`, which returns when that process has ended and nothing of it is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

from nearmesh.errors import Overloaded
from nearmesh_agent.engines.cores import usable_cores
from nearmesh_agent.serving.occupancy import Occupancy
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.training.budget import Budget, Serving
from nearmesh_agent.training.slices import GO_ON, STAND_STILL

log = logging.getLogger(__name__)

# A decision each; what requests take that come meanwhile belongs to the one before.
EVERY_S = 0.25
# The warden ends what it has brought forth well within this.
STOP_WITHIN_S = 8.0

Process = asyncio.subprocess.Process


class Throttle:
    """Of one node, for one warden after another. Belongs to the agent's event loop."""

    def __init__(
        self,
        replicas: Iterable[Replica],
        utilization: Callable[[], float],
        *,
        cpu_share: float,
        occupancy: Occupancy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`replicas`: the node's table; `utilization`: of the node, by serving, as it reports it."""
        self.cpu_share = cpu_share
        # Seconds for which apps have stood still, in all; why training has less than its budget, or nothing.
        self.yielded_s = 0.0
        self.paused = ""
        # What training has since the last decision, of the cores.
        self.share = 0.0
        # Apps at work.
        self.workers = 0
        self._replicas = replicas
        self._utilization = utilization
        self._occupancy = occupancy or Occupancy()
        self._clock = clock
        self._budget = Budget(cpu_share)
        # Of the warden that listens to it, while training is to run between engine calls alone.
        self._bell: int | None = None
        self._between = False
        self._occupancy.on_change = self._ring
        self._refused: WeakKeyDictionary[Replica, int] = WeakKeyDictionary()

    @cached_property
    def threads(self) -> int:
        """That an app computes in: as many as it may use at a time. Asked for at each decision, and read from files."""
        return max(1, int(self.cpu_share * usable_cores()))

    def command(self, command: Sequence[str], yielded_file: Path) -> list[str]:
        """The command line that runs a SuperNode within the budget. Started with pipes for its input and output.

        `yielded_file` holds the seconds for which apps have stood still, as text, for the apps to read.
        """
        warden = [sys.executable, "-m", "nearmesh_agent.training.warden"]
        return [*warden, "--yielded", str(yielded_file), "--threads", str(self.threads), "--", *command]

    async def run(self, process: Process) -> None:
        """Until the warden has ended; nothing that it has brought forth is left then. Cancelled, it stops it first."""
        bell = _bell(process)
        listening = asyncio.create_task(self._listen(process, bell))
        ended = asyncio.create_task(process.wait())
        self.begin()
        try:
            while not ended.done():
                self.decide()
                await self._tell(process)
                await asyncio.wait({ended}, timeout=EVERY_S)
        finally:
            await stop(process)
            listening.cancel()
            self.workers, self.paused, self._occupancy.yielding = 0, "", 0
            self._bell = None
            if bell is not None:
                os.close(bell)

    def begin(self) -> None:
        """Passes over what requests took while nobody looked, maybe hours ago."""
        for replica in self._replicas:
            replica.tally.take_latest_ms()
            self._refused[replica] = _refused(replica)

    def decide(self) -> None:
        """What training may have from now on."""
        now = self._clock()
        beside = self.workers > 0 and self.share > 0
        refused = 0
        for replica in self._replicas:
            self._budget.saw(replica.name, replica.tally.take_latest_ms(), beside=beside, now_s=now)
            before = self._refused.get(replica, 0)
            self._refused[replica] = _refused(replica)
            refused += self._refused[replica] - before
        training = self.workers > 0
        decision = self._budget.decide(
            Serving(utilization=self._utilization(), refused=refused), now, training=training
        )
        why = decision.why if training else ""
        if bool(why) != bool(self.paused):
            log.info("training beside serving: %s", why or "has its whole budget")
        self.share, self.paused = decision.share, why
        self._between = training and decision.between
        # Who stands still does not run: whatever else does is no thread of training, and gives way to nobody.
        self._occupancy.yielding = self.threads if training and decision.share else 0

    async def _tell(self, process: Process) -> None:
        assert process.stdin is not None
        # One that has just ended hears nothing; that it has is noticed next. uvloop raises what no caller expects for a
        # pipe that it has closed.
        if process.stdin.is_closing():
            return
        with suppress(ConnectionError):
            # The second word: also where a bell was missed.
            process.stdin.write(f"{self.share:.4f} {self._between and self._occupancy.taken:d}\n".encode())
            await process.stdin.drain()

    def _ring(self, taken: bool) -> None:
        """An engine call begins, or the last one has ended; in its thread, which has no time to lose."""
        bell = self._bell
        if bell is not None and self._between:
            with suppress(OSError):
                signal.pidfd_send_signal(bell, STAND_STILL if taken else GO_ON)

    async def _listen(self, process: Process, bell: int | None) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            # Not before: it would be ended by a signal that it does not handle yet.
            self._bell = bell
            workers, _, yielded_s = line.partition(b" ")
            self.workers, self.yielded_s = int(workers), float(yielded_s)


def _bell(process: Process) -> int | None:
    """By which signals reach this process, and none that has its id later; None where the system has no such thing."""
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return None


def _refused(replica: Replica) -> int:
    """Requests that there was no room or no time for."""
    return replica.tally.outcomes.get(Overloaded.reason, 0)


async def stop(process: Process) -> None:
    """Ends a warden with all that it has brought forth, also one that was killed. Safe to repeat."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            # In this order: a frozen one would not hear the other.
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await process.wait()
        except TimeoutError:
            log.warning("the warden of training did not end within %s s and is killed", STOP_WITHIN_S)
            process.kill()
            await process.wait()
    # Its group, which it leads. What stands still is ended by no other signal.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
