"""How long to wait before trying again."""

from __future__ import annotations

import random


class Backoff:
    """Doubles from `first_s` to `most_s`; waits are drawn from the upper half, so that clients do not march in step."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def next_s(self) -> float:
        """The wait before the next try."""
        ceiling_s, self._next_s = self._next_s, min(2 * self._next_s, self._most_s)
        return random.uniform(ceiling_s / 2, ceiling_s)

    def reset(self) -> None:
        """It worked."""
        self._next_s = self._first_s
