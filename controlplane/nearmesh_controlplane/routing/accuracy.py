"""How right predictions were: what calls came to beside what was forecast of them, by region, model and objective.

Of a right forecast 50, 95 and 99 % of calls are within the percentiles of these names, and calls take as long as the
medians on average. What gateways say and what clients say is kept apart: a client may say anything, but only of itself
and its likes. Everything fades, and memory is bounded whatever is reported. Nothing is decided by these figures: they
are for those who want to know how far to trust a decision. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nearmesh.errors import InvalidInput
from nearmesh_controlplane.routing.demand import Claimant

# What a call's weight halves in: long enough for a thousand of them, short enough to see that something broke.
HALF_LIFE_S = 600.0
# Gateways' and clients' apart; who was silent longest gives way.
MAX_KEYS = 5_000
# No call takes longer, nor is one forecast to.
MAX_MEAN_MS = 600_000.0
# Fewer calls than this are as good as forgotten.
_LEAST = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What a reporter's calls of one model and objective came to since its last report. Sums."""

    model: str
    objective: str
    answered: int
    # Errors of nodes and of the way to them; others may have answered those calls.
    failed: int
    # Of those answered, with a forecast; of these, later than the deadline, and within the forecast percentiles.
    compared: int = 0
    late: int = 0
    within_p50: int = 0
    within_p95: int = 0
    within_p99: int = 0
    # What those answered took, and the medians that were forecast.
    total_ms: float = 0.0
    predicted_ms: float = 0.0

    def __post_init__(self) -> None:
        """Raises InvalidInput."""
        counts = [0, self.within_p50, self.within_p95, self.within_p99, self.compared, self.answered]
        if sorted(counts) != counts or not 0 <= self.late <= self.answered or self.failed < 0:
            raise InvalidInput(
                f"calls of {self.model!r} that cannot be: {self.answered} answered and {self.failed} failed, "
                f"{self.compared} with a forecast, {self.late} late, {self.within_p50}, {self.within_p95} and "
                f"{self.within_p99} within its percentiles"
            )
        for ms in (self.total_ms, self.predicted_ms):
            if not 0 <= ms <= MAX_MEAN_MS * self.answered:
                raise InvalidInput(f"{self.answered} calls of {self.model!r} that took {ms:g} ms in all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Of one client region, model and objective, and of one kind of reporter. Counts are of the calls of late."""

    region: str
    model: str
    objective: str
    reporter: Claimant
    answered: float
    failed: float
    compared: float
    # Shares of those compared.
    late: float
    within_p50: float
    within_p95: float
    within_p99: float
    # The mean of what calls took over that of the medians forecast; 0 when there was no forecast.
    actual_over_predicted: float
    # Since the first call, without fading.
    total_answered: int
    total_failed: int
    total_late: int


class _Sums:
    """Of one key. Fades as a whole."""

    __slots__ = ("at_s", "faded", "totals")

    def __init__(self, now_s: float) -> None:
        self.faded = [0.0] * 9
        self.totals = [0, 0, 0]
        self.at_s = now_s

    def add(self, calls: Calls, now_s: float) -> None:
        # What was late, or took its time, without a forecast is not to be held against those: their part counts.
        part = calls.compared / calls.answered if calls.answered else 0.0
        within = (calls.within_p50, calls.within_p95, calls.within_p99)
        took = (calls.total_ms * part, calls.predicted_ms)
        new = (calls.answered, calls.failed, calls.compared, calls.late * part, *within, *took)
        self.faded = [old + more for old, more in zip(self.as_of(now_s), new, strict=True)]
        counted = (calls.answered, calls.failed, calls.late)
        self.totals = [old + more for old, more in zip(self.totals, counted, strict=True)]
        self.at_s = now_s

    def as_of(self, now_s: float) -> list[float]:
        kept = math.exp2((self.at_s - now_s) / HALF_LIFE_S)
        return [kept * value for value in self.faded]


# A client's region, a model, an objective.
_Key = tuple[str, str, str]


class AccuracyBook:
    """`now_s` is any clock that never goes back."""

    def __init__(self) -> None:
        # What was reported last stands last.
        self._sums: dict[Claimant, dict[_Key, _Sums]] = {"gateway": {}, "clients": {}}

    def report(self, region: str, calls: Iterable[Calls], *, kind: Claimant, now_s: float) -> None:
        """Takes over what calls of a region came to. Names and numbers were checked by the caller."""
        book = self._sums[kind]
        for found in calls:
            key = (region, found.model, found.objective)
            sums = book.pop(key, None) or _Sums(now_s)
            sums.add(found, now_s)
            book[key] = sums
            if len(book) > MAX_KEYS:
                del book[next(iter(book))]

    def forget(self, models: Iterable[str]) -> None:
        """Keeps these alone."""
        known = set(models)
        for kind, book in self._sums.items():
            self._sums[kind] = {key: sums for key, sums in book.items() if key[1] in known}

    def accuracy(self, now_s: float, model: str = "") -> list[Accuracy]:
        """Of every region and objective that was asked for of late, in order; of one model or of all."""
        return sorted(self._rows(now_s, model), key=lambda row: (row.model, row.region, row.objective, row.reporter))

    def _rows(self, now_s: float, model: str) -> Iterator[Accuracy]:
        for kind, book in self._sums.items():
            for (region, name, objective), sums in book.items():
                answered, failed, compared, *rest = sums.as_of(now_s)
                if model not in ("", name) or answered + failed < _LEAST:
                    continue
                late, p50, p95, p99 = (part / compared if compared else 0.0 for part in rest[:4])
                took_ms, predicted_ms = rest[4:]
                yield Accuracy(
                    region=region,
                    model=name,
                    objective=objective,
                    reporter=kind,
                    answered=answered,
                    failed=failed,
                    compared=compared,
                    late=late,
                    within_p50=p50,
                    within_p95=p95,
                    within_p99=p99,
                    actual_over_predicted=took_ms / predicted_ms if predicted_ms else 0.0,
                    total_answered=sums.totals[0],
                    total_failed=sums.totals[1],
                    total_late=sums.totals[2],
                )
