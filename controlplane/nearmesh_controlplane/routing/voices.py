"""What several reporters measured of the same pair of a region and a node, and what holds of it.

Each reporter has one voice, however much it says, and at every quantile the median of the voices holds: as long as
fewer than half of them lie, what holds is within what the honest ones measured. Memory is bounded whatever is
reported: per pair, per reporter, and altogether the voices that were silent longest give way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nearmesh.routing.times import Times
from nearmesh.sketch import Sketch

# A client's region and a node.
Pair = tuple[str, str]

# Voices whose word is worth less than this are not heard.
LEAST_TRUST = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much is remembered."""

    voices: int
    voices_of_pair: int
    voices_of_reporter: int
    # Of each voice's sketch.
    buckets: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What the voices agree upon."""

    times: Times
    # 0 to 1, as a sketch's.
    trust: float
    # How many spoke.
    voices: int


class Voices:
    """By pair and reporter. `now_s` is any clock that never goes back."""

    def __init__(self, bounds: Bounds, *, half_life_s: float) -> None:
        self._bounds = bounds
        self._half_life_s = half_life_s
        self._pairs: dict[Pair, dict[str, Sketch]] = {}
        # The pairs of each reporter; both levels have the one that spoke last at their end.
        self._reporters: dict[str, dict[Pair, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Voices that are remembered."""
        return self._count

    def add(self, pair: Pair, reporter: str, samples: Iterable[float], *, now_s: float) -> None:
        """Takes samples over; the reporter becomes the one that spoke last."""
        voice = self._taken(pair, reporter)
        for sample in samples:
            voice.add(sample, now_s=now_s)
        of_pair = self._pairs.setdefault(pair, {})
        of_pair[reporter] = voice
        self._reporters.setdefault(reporter, {})[pair] = None
        self._count += 1
        if len(of_pair) > self._bounds.voices_of_pair:
            self._forget(pair, next(iter(of_pair)))
        if len(self._reporters[reporter]) > self._bounds.voices_of_reporter:
            self._forget(next(iter(self._reporters[reporter])), reporter)
        if self._count > self._bounds.voices:
            silent = next(iter(self._reporters))
            self._forget(next(iter(self._reporters[silent])), silent)

    def heard(self, pair: Pair, *, now_s: float) -> Heard | None:
        """What holds of a pair; None when nobody has said enough lately."""
        spoken = []
        for voice in self._pairs.get(pair, {}).values():
            trust = voice.trust(now_s)
            times = voice.times() if trust >= LEAST_TRUST else None
            if times:
                spoken.append((times, trust))
        if not spoken:
            return None
        if len(spoken) == 1:
            return Heard(*spoken[0], 1)
        weights = [trust for _, trust in spoken]
        levels = zip(*(times.ms for times, _ in spoken), strict=True)
        return Heard(Times(tuple(median(level, weights) for level in levels)), max(weights), len(spoken))

    def pairs(self) -> Iterator[Pair]:
        """Every pair that anybody spoke of, in no particular order."""
        return iter(self._pairs)

    def _taken(self, pair: Pair, reporter: str) -> Sketch:
        """The voice, taken out of its places; a new one if there is none."""
        voice = self._pairs.get(pair, {}).get(reporter)
        if voice is None:
            voice = Sketch(half_life_s=self._half_life_s, max_buckets=self._bounds.buckets)
        else:
            self._forget(pair, reporter)
        known = self._reporters.pop(reporter, None)
        if known is not None:
            self._reporters[reporter] = known
        return voice

    def _forget(self, pair: Pair, reporter: str) -> None:
        of_pair, of_reporter = self._pairs[pair], self._reporters[reporter]
        del of_pair[reporter], of_reporter[pair]
        if not of_pair:
            del self._pairs[pair]
        if not of_reporter:
            del self._reporters[reporter]
        self._count -= 1


def median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted median; between the two middle ones when neither outweighs the other."""
    ordered = sorted(zip(values, weights, strict=True))
    half, below = sum(weights) / 2, 0.0
    for at, (value, weight) in enumerate(ordered):
        below += weight
        if below > half * (1 + 1e-9):
            return value
        if below >= half * (1 - 1e-9):
            return (value + ordered[at + 1][0]) / 2
    return ordered[-1][0]
