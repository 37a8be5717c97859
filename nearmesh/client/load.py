"""How much a node has to do for this client, as a cost by which two of them can be compared: pure.

Peak EWMA, as Finagle and Linkerd have it: a time above the average is believed at once, a lower one little by little.
The cost is that time for each call under way. A reading that grows old fades to the forecast.
"""

from __future__ import annotations

import math

# A time's weight falls to 1/e in this long.
DECAY_S = 5.0


class PeakTime:
    """The time that one node takes for one model, milliseconds."""

    def __init__(self) -> None:
        self._ms = 0.0
        self._at_s = -math.inf

    def add(self, ms: float, *, now_s: float) -> None:
        """How long a call took; for one that failed, how long it might as well have taken."""
        weight = math.exp(-max(0.0, now_s - self._at_s) / DECAY_S)
        self._ms = ms if ms > self._ms else weight * self._ms + (1 - weight) * ms
        self._at_s = now_s

    def expected_ms(self, forecast_ms: float, *, now_s: float) -> float:
        """The measured time, and the more of the forecast the older it is."""
        weight = math.exp(-max(0.0, now_s - self._at_s) / DECAY_S)
        return weight * self._ms + (1 - weight) * forecast_ms
