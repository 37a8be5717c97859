"""How much of the processor training may have at this moment: its budget while serving does well, less when not.

No clock and no sockets: times are arguments. This is looked at:

- Requests that a busy node refuses, or engines that are nearly taken up: training stands still.
- How busy serving is: from half of the node on, the more it takes, the less is left for training.
- Where engine calls leave gaps, or once requests were slowed, training runs in the gaps alone: a call has the machine,
  its caches and memory, for itself.
- What requests take beside training, against what they take without. For the second, training stands still for a
  moment now and then while requests come. Where the 99th percentile rises, training gets half of what it had; then more
  again, step by step, and beyond what hurt far more slowly.

It never gets less than a little, so that a round ends, unless serving is overloaded.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from nearmesh.quantiles import quantile

# What is allowed beside training: this much more than the 99th percentile without it, whichever is more. Half of what
# the mesh promises (20 % or 5 ms), since training is slowed only after it has risen.
RISE, RISE_MS = 0.10, 2.5
# Fewer requests say nothing about a 99th percentile, and one slow one of them may be chance.
LEAST_SAMPLES = 20
# Per model and side. The ones beside training are to be of its present pace.
MOST_SAMPLES = 400
WITHOUT_FOR_S, BESIDE_FOR_S = 120.0, 30.0

# Training stands still for so long, so often, to see what requests take without it: a tenth of its time, while requests
# come and while that is not known well already.
LOOK_S, LOOK_EVERY_S = 0.5, 5.0
KNOWN_WELL, KNOWN_FOR_S = 200, 30.0

# Shares of the node's engines or of its event loop, whichever is scarcer, that requests take.
UNTOUCHED, OVERLOADED, CALM = 0.5, 0.85, 0.75
# With less than this there are gaps between engine calls in which training gets on well.
GAPS = 0.35
# Overload is over when it was calm for so long.
CALM_FOR_S = 3.0

# Of all cores, for a round to end in the end.
LEAST_SHARE = 0.05
# Of its budget, at the beginning and at each second of growth; beyond the pace that hurt, a tenth of the latter.
FIRST, GROWTH, CAREFUL = 0.5, 0.1, 0.1
# After it was slowed, its effect is waited for.
SETTLE_S = 2.0
# From this part of its budget on, training counts as not slowed.
_ALL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What requests do to the node at the moment."""

    # Of its engines or of its event loop, 0 to 1, more where requests queue.
    utilization: float = 0.0
    # Requests that it had no room or no time for since the last look. On an idle node these are not training's fault:
    # their callers gave them less time than the model takes.
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What training may have until the next one."""

    # Of the machine's cores, 0 to 1.
    share: float
    # Why it is less than its budget, in words; empty: it is not, or only for a moment, to look.
    why: str = ""
    # It stands still while an engine call runs.
    between: bool = False


class Tail:
    """What the requests of one model take, without training and beside it."""

    def __init__(self) -> None:
        # When a request was counted, and its milliseconds.
        self._without: deque[tuple[float, float]] = deque(maxlen=MOST_SAMPLES)
        self._beside: deque[tuple[float, float]] = deque(maxlen=MOST_SAMPLES)

    def saw(self, times_ms: Sequence[float], *, beside: bool, now_s: float) -> None:
        (self._beside if beside else self._without).extend((now_s, each) for each in times_ms)

    def forget(self, now_s: float) -> None:
        """What is too old."""
        for kept, for_s in ((self._without, WITHOUT_FOR_S), (self._beside, BESIDE_FOR_S)):
            while kept and kept[0][0] < now_s - for_s:
                kept.popleft()

    def forget_beside(self) -> None:
        """Training changes its pace."""
        self._beside.clear()

    def latest_s(self) -> float:
        """When the last request was counted."""
        return max((kept[-1][0] for kept in (self._without, self._beside) if kept), default=-math.inf)

    def known_well(self, now_s: float) -> bool:
        """Whether it is known from many recent requests what they take without training."""
        kept = self._without
        return len(kept) >= KNOWN_WELL and kept[-KNOWN_WELL][0] >= now_s - KNOWN_FOR_S

    def risen(self) -> tuple[float, float] | None:
        """The 99th percentiles beside training and without it, if the first is above what is allowed; else None."""
        if min(len(self._without), len(self._beside)) < LEAST_SAMPLES:
            return None
        without_ms = quantile(sorted(ms for _, ms in self._without), 0.99)
        allowed_ms = without_ms + max(RISE * without_ms, RISE_MS)
        beside = sorted(ms for _, ms in self._beside)
        # The percentile is above it when more than one in a hundred are; one more may be chance.
        if sum(ms > allowed_ms for ms in beside) <= 1 + len(beside) / 100:
            return None
        return quantile(beside, 0.99), without_ms


class Budget:
    """Of one node. Decisions follow each other within a second."""

    def __init__(self, cpu_share: float) -> None:
        """`cpu_share`: the most that training may have of the machine's cores."""
        self.cpu_share = cpu_share
        self._least = min(LEAST_SHARE, cpu_share)
        self._level = max(self._least, FIRST * cpu_share)
        self._tails: dict[str, Tail] = {}
        self._decided_s = math.inf
        # Where it hurt; more than this is tried with care.
        self._hurt_at = math.inf
        self._settled_s = -math.inf
        self._overload_until_s = -math.inf
        self._overloaded_why = ""
        self._look_until_s = -math.inf
        self._next_look_s = -math.inf
        self._why = ""

    def saw(self, model: str, times_ms: Sequence[float], *, beside: bool, now_s: float) -> None:
        """Takes in what requests took; `beside`: while training ran."""
        if times_ms:
            self._tails.setdefault(model, Tail()).saw(times_ms, beside=beside, now_s=now_s)

    def decide(self, serving: Serving, now_s: float, *, training: bool) -> Decision:
        """What training may have now; `training`: there is some."""
        elapsed_s = min(1.0, max(0.0, now_s - self._decided_s))
        self._decided_s = now_s
        for model, tail in list(self._tails.items()):
            tail.forget(now_s)
            if tail.latest_s() == -math.inf:
                del self._tails[model]
        overload = self._overload(serving, now_s)
        if overload:
            return Decision(0.0, f"stands still: {overload}")
        self._adapt(now_s, elapsed_s)
        left = self._left(serving.utilization)
        share = min(self._level, left)
        why = self._why if self._level < _ALL * self.cpu_share else ""
        if left < min(self._level, _ALL * self.cpu_share):
            why = f"serving takes {serving.utilization:.0%} of the node"
        why = why and f"slowed to {share:.0%} of the cores: {why}"
        between = serving.utilization < GAPS or self._hurt_at < math.inf
        return Decision(0.0 if training and self._looks(now_s) else share, why, between)

    def _overload(self, serving: Serving, now_s: float) -> str:
        """Why serving is overloaded; empty: it is not."""
        if serving.refused and serving.utilization >= UNTOUCHED:
            self._overloaded_why = "requests are refused"
        elif serving.utilization >= OVERLOADED:
            self._overloaded_why = f"serving takes {serving.utilization:.0%} of the node"
        elif now_s >= self._overload_until_s or serving.utilization < CALM:
            return self._overloaded_why if now_s < self._overload_until_s else ""
        self._overload_until_s = now_s + CALM_FOR_S
        return self._overloaded_why

    def _left(self, utilization: float) -> float:
        """What serving leaves, in a straight line from the whole budget down to the least."""
        free = (OVERLOADED - utilization) / (OVERLOADED - UNTOUCHED)
        return max(self._least, min(1.0, free) * self.cpu_share)

    def _adapt(self, now_s: float, elapsed_s: float) -> None:
        """Half as much where it hurts, a little more where it does not."""
        if now_s < self._settled_s:
            return
        for model, tail in self._tails.items():
            if risen := tail.risen():
                self._slow_down(model, *risen, now_s)
                return
        growth = GROWTH * self.cpu_share * elapsed_s
        careful = self._level + growth > self._hurt_at
        self._level = min(self.cpu_share, self._level + (CAREFUL * growth if careful else growth))

    def _slow_down(self, model: str, beside_ms: float, without_ms: float, now_s: float) -> None:
        self._hurt_at = self._level * 0.8
        self._level = max(self._least, self._level / 2)
        self._settled_s = now_s + SETTLE_S
        for tail in self._tails.values():
            tail.forget_beside()
        self._why = f"p99 of requests to {model} was {beside_ms:.1f} ms beside it, {without_ms:.1f} ms without"

    def _looks(self, now_s: float) -> bool:
        """Whether training stands still for a moment, to see what requests take without it."""
        if now_s < self._look_until_s:
            return True
        if now_s < self._next_look_s:
            return False
        asked = [tail for tail in self._tails.values() if tail.latest_s() > now_s - LOOK_EVERY_S]
        if all(tail.known_well(now_s) for tail in asked):
            return False
        self._look_until_s, self._next_look_s = now_s + LOOK_S, now_s + LOOK_EVERY_S
        return True
