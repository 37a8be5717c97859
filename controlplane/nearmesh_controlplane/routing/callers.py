"""Whether nodes take as long as they say: what gateways saw of calls, held against the nodes' own word. Pure.

A node that claims less than it takes would get calls that it answers late, and by its own word nothing is wrong. A
gateway times whole calls; without the way there, the rest is the node's. Each of its reports is a mean over a second.
It is kept as how many times the claim of that moment it was, so a node that was slow and said so is not held to it
later. Gateways alone, since they have proven who they are: clients could talk a node down. And the median of many
reports: in a single one there may be calls that another node had first, or a caller with a bad line.
"""

from __future__ import annotations

from collections.abc import Collection

from nearmesh.quantiles import quantile
from nearmesh.routing.times import Times
from nearmesh.sketch import Sketch

# What a report's weight halves in: a node that was left for it is tried again some minutes later.
HALF_LIFE_S = 60.0
# Of one gateway; what is less proves nothing. In a failover the first reports of the next node are of calls that had
# waited for the one before.
LEAST_REPORTS = 20.0
# In one report: a mean of fewer is one call's luck.
LEAST_CALLS = 3
# What a call may take beside the way and the claim's 95th percentile, by no fault of the node.
SLACK_MS = 25.0
# From so many times that on the gateways are believed; but when the model's other nodes are as far off, it is none of
# their doing.
FAR_ABOVE = 2.0
# Of a request and its answer: larger ones are on their way for longer than a round trip tells.
MAX_BYTES = 64 * 1024
# Voices of gateways; there is no room for more until some have faded.
MAX_VOICES = 20_000
_BUCKETS = 64
# What holds of a pair is looked at again after so long.
LOOK_AGAIN_S = 2.0

# A model and a node.
Pair = tuple[str, str]


class CallersWord:
    """`now_s` is any clock that never goes back."""

    def __init__(self) -> None:
        # How many times the claim it was; by model, node and gateway.
        self._told: dict[str, dict[str, dict[str, Sketch]]] = {}
        self._count = 0
        # The factor of a pair, and until when it holds.
        self._found: dict[Pair, tuple[float | None, float]] = {}

    def report(self, pair: Pair, gateway: str, *, own_ms: float, calls: int, claim: Times, now_s: float) -> None:
        """Of some calls of late: how long they took on the node, on average, and what it claims at present."""
        model, node = pair
        voices = self._told.get(model, {}).get(node, {})
        if calls < LEAST_CALLS or (gateway not in voices and self._count >= MAX_VOICES):
            return
        voices = self._told.setdefault(model, {}).setdefault(node, voices)
        if gateway not in voices:
            voices[gateway] = Sketch(half_life_s=HALF_LIFE_S, max_buckets=_BUCKETS)
            self._count += 1
        voices[gateway].add(max(0.0, own_ms) / (claim.p95_ms + SLACK_MS), now_s=now_s)

    def extra_ms(self, pair: Pair, claim: Times, *, now_s: float) -> float:
        """By how much longer its calls take than it claims; 0 where that is near enough, or nobody knows."""
        model, node = pair
        factor = self._factor(model, node, now_s)
        if factor is None or factor < FAR_ABOVE:
            return 0.0
        others = (self._factor(model, other, now_s) for other in self._told[model] if other != node)
        known = sorted(found for found in others if found is not None)
        if known and factor < FAR_ABOVE * max(1.0, quantile(known, 0.5)):
            return 0.0
        return factor * (claim.p95_ms + SLACK_MS) - claim.p95_ms

    def hears(self, model: str) -> bool:
        """Whether any gateway told of its calls lately."""
        return bool(self._told.get(model))

    def forget(self, models: Collection[str], nodes: Collection[str], *, now_s: float) -> None:
        """What is not among these is gone, and who said nothing for long."""
        told, self._told, self._count, self._found = self._told, {}, 0, {}
        for model in told.keys() & set(models):
            for node, voices in told[model].items():
                left = {name: voice for name, voice in voices.items() if voice.weight(now_s) >= 1.0}
                if left and node in nodes:
                    self._told.setdefault(model, {})[node] = left
                    self._count += len(left)

    def _factor(self, model: str, node: str, now_s: float) -> float | None:
        """The median of the gateways' medians; None while none has said enough."""
        voices = self._told.get(model, {}).get(node)
        if not voices:
            return None
        factor, until_s = self._found.get((model, node), (None, now_s))
        if now_s >= until_s:
            found = (voice.quantile(0.5) for voice in voices.values() if voice.weight(now_s) >= LEAST_REPORTS)
            known = sorted(one for one in found if one is not None)
            factor = quantile(known, 0.5) if known else None
            self._found[model, node] = factor, now_s + LOOK_AGAIN_S
        return factor
