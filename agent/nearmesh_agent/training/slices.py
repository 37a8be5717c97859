"""When training processes run, when they stand still, and when they no longer come last: pure.

A bucket of processor seconds fills at the pace of the share; what they used is taken out. They stand still while it is
empty, but never for so long that a connection of theirs would time out: with no share at all they run for a moment
about once a second.

Beside that they may be held for as long as an engine call runs, within the same limit.

They come after whoever else wants a core. Where others always do, they would get nothing at all, and no round would
end; so they are put on a level with others whenever they have had too little for too long.
"""

from __future__ import annotations

import signal

# By which the agent says that engine calls begin, and that none runs any more.
STAND_STILL, GO_ON = signal.SIGUSR1, signal.SIGUSR2

# What they may save up, in seconds at their share's pace. More would let them run at full speed for longer.
SAVED_S = 0.25
# What they may owe; an owed second is one of standing still.
OWED_S = 1.0
# They go on when they have so much, so that they do not stop again at once.
_ENOUGH_S = 0.05
# The longest that they stand still at a time, and how long they then run whatever they owe.
LONGEST_STOP_S, MOMENT_S = 0.9, 0.02
# How often it is looked at what they used.
LOOK_EVERY_S = 0.05

# Of their share's pace: what they are to get at least while they want to run and may.
FAIR = 0.25
# What they wait for in vain before they are put on a level with others, and what is made up for at most; in seconds at
# that pace.
WAITED_S, MADE_UP_S = 1.0, 5.0


class Slices:
    """Of one node's training processes. They run at first."""

    def __init__(self, cores: int, now_s: float) -> None:
        self._cores = cores
        # Of the cores, 0 to 1.
        self.share = 0.0
        # An engine call runs, and training is to have none of its time.
        self.held = False
        self._credit_s = 0.0
        self._looked_s = now_s
        self._changed_s = now_s
        self.running = True
        # They run for a moment only because they have stood still for too long.
        self._at_last = False

    def step(self, now_s: float, used_s: float) -> bool:
        """Whether they run from now on; `used_s` are processor seconds since the last step."""
        pace = self.share * self._cores
        self._credit_s += pace * (now_s - self._looked_s) - used_s
        self._credit_s = min(SAVED_S * pace, max(-OWED_S * pace, self._credit_s))
        self._looked_s = now_s
        if self.running != self._next(pace, now_s - self._changed_s):
            self.running = not self.running
            self._at_last = self.running and (self.held or self._credit_s < _ENOUGH_S * pace)
            self._changed_s = now_s
        return self.running

    def look_in_s(self) -> float:
        """When the next step is due."""
        return LOOK_EVERY_S if self.running and self.share and not self._at_last else MOMENT_S

    def _next(self, pace: float, since_s: float) -> bool:
        if since_s < MOMENT_S and self._at_last:
            return True
        if self.running:
            return not self.held and (self.share >= 1 or self._credit_s > 0 or since_s < MOMENT_S)
        enough = pace > 0 and self._credit_s >= _ENOUGH_S * pace and not self.held
        return enough or since_s >= LONGEST_STOP_S


class Starvation:
    """Whether training has to be put on a level with others, because they leave it nearly nothing."""

    def __init__(self, now_s: float) -> None:
        self._looked_s = now_s
        # Processor seconds.
        self._owed_s = 0.0
        self.relieved = False

    def step(self, now_s: float, used_s: float, pace: float, *, wants: bool) -> bool:
        """Whether it is on a level from now on.

        `used_s` are processor seconds since the last step, `pace` those that it may use in a second; it `wants` to run
        when it is neither asleep nor made to stand still.
        """
        elapsed_s, self._looked_s = now_s - self._looked_s, now_s
        if not pace:
            # It stands still so that requests are answered, and others are to come first.
            self.relieved = False
            return False
        fair = FAIR * pace
        self._owed_s = min(MADE_UP_S * fair, max(0.0, self._owed_s + wants * fair * elapsed_s - used_s))
        if self._owed_s > WAITED_S * fair:
            self.relieved = True
        elif not self._owed_s:
            self.relieved = False
        return self.relieved
