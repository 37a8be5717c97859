"""How many calls may be sent twice: pure.

A token bucket that calls fill and copies empty, so that hedging never adds more than its share to the mesh's load: when
all sites are slow, hedges are the last thing that they need.
"""

from __future__ import annotations

# Each call pays this much for copies: at most one call in ten is sent twice.
SHARE = 0.1
# Copies that may be sent in a row, after calls that needed none.
MOST = 5.0
# Before any call was made: the first calls are no less likely to need one.
START = 2.0


class Budget:
    """Of one client, for all models."""

    def __init__(self, *, share: float = SHARE, most: float = MOST, start: float = START) -> None:
        self._share = share
        self._most = most
        self._tokens = start

    def called(self) -> None:
        """A call was made."""
        self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Whether a copy may be sent now; if so, it is paid for."""
        # Ten tenths are a little less than one.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True
