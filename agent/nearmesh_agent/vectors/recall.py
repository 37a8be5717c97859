"""How much of the true nearest rows searches have found lately: a sample of them is asked again, exactly. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

# The share is of so many of the latest sampled searches.
SAMPLES = 200
# One search is asked again in so many seconds at most: an exact one takes as long as many others.
EVERY_S = 1.0
# Of the nearest, how many are compared.
OF = 10


class Recall:
    """Of one collection."""

    def __init__(self) -> None:
        self._shares: deque[float] = deque(maxlen=SAMPLES)
        self._next_s = float("-inf")

    @property
    def share(self) -> float:
        """0 to 1; -1: not measured yet."""
        return sum(self._shares) / len(self._shares) if self._shares else -1.0

    def wants(self, now_s: float) -> bool:
        """Whether the search that was just answered is to be asked again; then none is for a while."""
        if now_s < self._next_s:
            return False
        self._next_s = now_s + EVERY_S
        return True

    def compare(self, found: Collection[str], exact: Collection[str]) -> None:
        """The ids of both answers, the same number of them asked for."""
        if exact:
            self._shares.append(len(set(found) & set(exact)) / len(exact))

    def forget(self) -> None:
        """The index is another one now."""
        self._shares.clear()
