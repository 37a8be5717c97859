"""The node's way out, whoever sends it: out of the routes first, then nothing new, then what is under way ends.

An operator's drain goes the same way and stops there: the process stays, and sequences have all the time they need.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.notice.notice import Notice

log = logging.getLogger(__name__)

# How long a leaving node waits for the routes to lead elsewhere; it goes on all the same when nobody says so.
WITHDRAW_S = 3.0
# A new route is on its way to clients around the world, and their last calls here: those are answered, too.
LINGER_S = 1.0
# Before the end, sequences that have not ended by themselves are told to begin anew elsewhere.
LAST_WORD_S = 1.0
# For the last connections to close, and for engines to be let go.
END_S = 1.0
# Of a notice, what stays unused: its clock, this machine's load, and the process's own end.
MARGIN_SHARE, MOST_MARGIN_S = 0.2, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long each part of leaving may take, seconds from its beginning."""

    withdraw_s: float
    linger_s: float
    # When all of it has to be over.
    all_s: float
    _grace_s: float

    def grace_s(self, spent_s: float) -> float:
        """For what is under way, once `spent_s` have passed."""
        return max(0.0, min(self._grace_s, self.all_s - END_S - spent_s))


def schedule(grace_s: float, left_s: float | None = None) -> Schedule:
    """The usual times; all of them shorter in the same measure where a notice leaves less (`left_s`)."""
    usual_s = WITHDRAW_S + LINGER_S + grace_s + END_S
    usable_s = usual_s if left_s is None else usable(left_s)
    share = min(1.0, usable_s / usual_s)
    return Schedule(
        withdraw_s=share * WITHDRAW_S,
        linger_s=share * LINGER_S,
        all_s=min(usual_s, usable_s),
        _grace_s=grace_s,
    )


def usable(left_s: float) -> float:
    """What a notice leaves, less what stays unused."""
    return left_s - min(MARGIN_SHARE * left_s, MOST_MARGIN_S)


class Servicer(Protocol):
    """What serves, as leaving sees it."""

    draining: bool

    def end_sequences(self) -> None: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def sequences_kept(self) -> int: ...

    @property
    def drained(self) -> bool: ...


class Leaving:
    """Belongs to one event loop."""

    def __init__(self, servicer: Servicer, *, grace_s: float, report_now: Callable[[], None]) -> None:
        """`report_now` hurries what the control plane is told, which is `status`."""
        self._servicer = servicer
        self._grace_s = grace_s
        self._report_now = report_now
        self._clock = asyncio.get_running_loop().time
        self._begun = False
        self._withdrawn = asyncio.Event()
        self._turning_away: asyncio.TimerHandle | None = None
        self._last_word: asyncio.TimerHandle | None = None
        # Of what is being waited for.
        self._limit: asyncio.Timeout | None = None
        self._reason = ""
        # When the machine is gone.
        self._gone_at = 0.0
        # When this process has to be over; None: nobody has set a time.
        self.until: float | None = None
        self._notice: Notice | None = None

    def noticed(self, notice: Notice) -> None:
        """The machine is about to be taken away; `run` comes next, or is under way and has to end sooner."""
        self._notice = notice
        log.warning("the machine will be taken away in %.0f s: %s", notice.left_s, notice.reason)
        if self._begun:
            self._hurry(notice)

    def _hurry(self, notice: Notice) -> None:
        """A cloud sends SIGTERM and writes its notice at about the same time, and either may be heard first."""
        now_s = self._clock()
        until = now_s + usable(notice.left_s)
        if self.until is not None and self.until <= until:
            return
        self.until, self._gone_at, self._reason = until, now_s + notice.left_s, notice.reason
        if self._limit and not self._limit.expired():
            end_s = max(now_s, until - END_S)
            self._limit.reschedule(min(self._limit.when() or math.inf, end_s))
            if self._last_word:
                self._end_sequences_within(end_s - now_s)
        self._report_now()

    def status(self) -> pb.NodeStatus:
        """What the control plane has to know of it."""
        return pb.NodeStatus(
            draining=self._begun,
            notice=self._reason,
            notice_s=max(0.0, self._gone_at - self._clock()) if self._begun else 0.0,
            in_flight=self._servicer.in_flight,
            sequences=self._servicer.sequences_kept,
            drained=self._servicer.drained,
        )

    def wanted(self, state: pb.WantedState) -> None:
        """What the control plane says: the routes lead elsewhere, an operator drains the node or takes it back."""
        if state.withdrawn:
            self._withdrawn.set()
        else:
            self._withdrawn.clear()
        if self._begun:
            return
        if not state.drain:
            self._stop_turning_away()
            self._servicer.draining = False
        elif self._turning_away is None and not self._servicer.draining:
            self._turning_away = asyncio.get_running_loop().call_later(LINGER_S, self._turn_away)

    def _turn_away(self) -> None:
        log.info("drained: new work is refused from now on")
        self._turning_away = None
        self._servicer.draining = True
        self._report_now()

    def _stop_turning_away(self) -> None:
        if self._turning_away:
            self._turning_away.cancel()
            self._turning_away = None

    async def run(self, said: Callable[[], None], stop: Callable[[float], Awaitable[None]]) -> None:
        """The whole way. `said` is called when the node no longer wants new callers; `stop` ends the server, with a
        time for what is under way."""
        notice, start_s = self._notice, self._clock()
        plan = schedule(self._grace_s, notice.left_s if notice else None)
        self._reason = notice.reason if notice else "told to stop"
        self._gone_at = start_s + (notice.left_s if notice else plan.all_s)
        self.until = start_s + plan.all_s if notice else None
        self._begun = True
        log.info("leaving: %s", self._reason)
        self._report_now()
        said()
        await self._out_of_the_routes(plan)
        self._stop_turning_away()
        self._servicer.draining = True
        now_s = self._clock()
        grace_s = plan.grace_s(now_s - start_s)
        if self.until is not None:
            grace_s = max(0.0, min(grace_s, self.until - END_S - now_s))
        self._end_sequences_within(grace_s)
        try:
            async with asyncio.timeout_at(self.until) as self._limit:
                await stop(grace_s)
        except TimeoutError:
            log.warning("the time is up; what is still under way ends with the process")
        finally:
            self._limit = None
            if self._last_word:
                self._last_word.cancel()

    def _end_sequences_within(self, left_s: float) -> None:
        """A little earlier, so that what they are told arrives."""
        if self._last_word:
            self._last_word.cancel()
        self._last_word = asyncio.get_running_loop().call_later(
            max(0.0, left_s - min(LAST_WORD_S, left_s / 2)), self._servicer.end_sequences
        )

    async def _out_of_the_routes(self, plan: Schedule) -> None:
        """Returns when nobody is sent here any more. Those who have not heard are answered meanwhile."""
        if self._servicer.draining:
            return
        try:
            async with asyncio.timeout(plan.withdraw_s) as self._limit:
                await self._withdrawn.wait()
        except TimeoutError:
            log.warning("the control plane did not confirm the withdrawal within %.3g s", plan.withdraw_s)
            return
        finally:
            self._limit = None
        await asyncio.sleep(plan.linger_s)
