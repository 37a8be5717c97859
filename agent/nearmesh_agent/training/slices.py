"""When training processes run and when they stand still, so that they take their share of the processor: pure.

A bucket of processor seconds fills at the pace of the share; what they used is taken out. They stand still while it is
empty, but never for so long that a connection of theirs would time out: with no share at all they run for a moment
about once a second.
"""

from __future__ import annotations

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


class Slices:
    """Of one node's training processes. They run at first."""

    def __init__(self, cores: int, now_s: float) -> None:
        self._cores = cores
        # Of the cores, 0 to 1.
        self.share = 0.0
        self._credit_s = 0.0
        self._looked_s = now_s
        self._changed_s = now_s
        self.running = True

    def step(self, now_s: float, used_s: float) -> bool:
        """Whether they run from now on; `used_s` are processor seconds since the last step."""
        pace = self.share * self._cores
        self._credit_s += pace * (now_s - self._looked_s) - used_s
        self._credit_s = min(SAVED_S * pace, max(-OWED_S * pace, self._credit_s))
        self._looked_s = now_s
        if self.running != self._next(pace, now_s - self._changed_s):
            self.running = not self.running
            self._changed_s = now_s
        return self.running

    def look_in_s(self) -> float:
        """When the next step is due."""
        return LOOK_EVERY_S if self.running and self.share else MOMENT_S

    def _next(self, pace: float, since_s: float) -> bool:
        if self.running:
            return self.share >= 1 or self._credit_s > 0 or since_s < MOMENT_S
        return (pace > 0 and self._credit_s >= _ENOUGH_S * pace) or since_s >= LONGEST_STOP_S
