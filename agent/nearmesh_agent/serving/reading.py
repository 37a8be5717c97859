"""How long something takes, of late: an ageing sketch in which a few new samples outvote a crowd of old ones. Pure.

A sketch's samples age by the clock alone. What ten requests a second showed in a bad minute outweighs one in five
seconds for another minute, and that is what a node gets which everybody has left. So where little has come of late, and
what came before outweighs it by far, the newest samples begin anew. Where nothing comes, all of it fades anyhow.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise

from nearmesh.routing.times import Times
from nearmesh.sketch import Sketch, faded

# So many samples in no less than so many half-lives are few, and what outweighs them by this factor is a crowd: more
# than any steady stream has behind it whose samples are as few.
FEW, FEW_HALF_LIVES, CROWD = 5, 0.35, 6.0


class Reading:
    """`now_s` is any clock that never goes back."""

    def __init__(self, *, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._sketch = Sketch(half_life_s=half_life_s)
        # When the newest ones came, and what they were.
        self._newest: deque[tuple[float, float]] = deque(maxlen=FEW)

    def add(self, value: float, *, now_s: float) -> None:
        """Takes a sample over."""
        self._sketch.add(value, now_s=now_s)
        self._newest.append((now_s, value))
        if self._are_few(now_s) and self._is_crowd(now_s):
            self._sketch = Sketch(half_life_s=self._half_life_s)
            for at_s, newer in self._newest:
                self._sketch.add(newer, now_s=at_s)

    def times(self, otherwise: Times, *, now_s: float) -> Times:
        """The quantiles; as they grow old, more and more what would be believed otherwise."""
        trust = self._sketch.trust(now_s)
        measured = self._sketch.times() if trust else None
        return faded(measured, otherwise, trust) if measured else otherwise

    def _are_few(self, now_s: float) -> bool:
        """Whether the newest ones took long; not merely because of one pause among many."""
        took_s = now_s - self._newest[0][0]
        if len(self._newest) < FEW or took_s < FEW_HALF_LIVES * self._half_life_s:
            return False
        pauses_s = (later - sooner for (sooner, _), (later, _) in pairwise(self._newest))
        return max(pauses_s) <= 0.5 * took_s

    def _is_crowd(self, now_s: float) -> bool:
        newest = sum(math.exp2((at_s - now_s) / self._half_life_s) for at_s, _ in self._newest)
        return self._sketch.weight(now_s) > CROWD * newest
