"""Quantiles over the latest measurements of one thing: bounded in number and in age."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence


def quantile(ordered: Sequence[float], q: float) -> float:
    """The nearest-rank quantile of an ascending, non-empty sequence."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]


class Window:
    """The latest `size` samples that are at most `max_age_s` old. `now_s` is any clock that never goes back."""

    def __init__(self, *, size: int = 128, max_age_s: float = math.inf) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=size)
        self._max_age_s = max_age_s

    def add(self, value: float, *, now_s: float) -> None:
        """Keeps a sample; the oldest leaves when the window is full."""
        self._samples.append((now_s, value))

    def quantiles(self, *qs: float, now_s: float) -> tuple[float, ...] | None:
        """The quantiles asked for, or None when no sample is young enough."""
        while self._samples and self._samples[0][0] < now_s - self._max_age_s:
            self._samples.popleft()
        if not self._samples:
            return None
        ordered = sorted(value for _, value in self._samples)
        return tuple(quantile(ordered, q) for q in qs)

    def __len__(self) -> int:
        return len(self._samples)
