"""What the router believes about network time: measured round trips that age, else the distance.

A pair counts as measured once its window speaks (`nearmesh.quantiles`), from three samples on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nearmesh.errors import InvalidInput
from nearmesh.ids import check_label
from nearmesh.quantiles import Window
from nearmesh.regions import prior_round_trip_ms

WINDOW_SAMPLES = 64
# Older measurements are forgotten; the distance speaks again.
MAX_AGE_S = 300.0
# Bounds what clients can make the control plane remember and believe. The pair that was silent longest gives way;
# gateways' pairs have a bound of their own, so that no client pushes them out.
MAX_PAIRS = 20_000
MAX_SAMPLES_PER_REPORT = 256
MAX_ROUND_TRIP_MS = 60_000.0
# The 95th percentile of a round trip that nobody has measured: beyond 300 km, half of the pairs measured by others
# were within a third of the distance prior.
PRIOR_P95_FACTOR = 1.35


@dataclass(frozen=True, slots=True)
class NetworkTime:
    """A round trip between a region and a node, milliseconds."""

    p50_ms: float
    p95_ms: float
    measured: bool


class LatencyBook:
    """Round trips by client region and node.

    Gateways' measurements win over clients': a gateway has proven who it is, a client may say anything.
    """

    def __init__(self) -> None:
        # The pair that was reported last stands last.
        self._gateways: dict[tuple[str, str], Window] = {}
        self._clients: dict[tuple[str, str], Window] = {}

    def report(self, region: str, node: str, samples_ms: Iterable[float], *, from_gateway: bool, now_s: float) -> None:
        """Takes samples over. Raises InvalidInput for impossible ones."""
        check_label("region", region)
        samples = list(samples_ms)
        if len(samples) > MAX_SAMPLES_PER_REPORT:
            raise InvalidInput(f"{len(samples)} samples in one report; at most {MAX_SAMPLES_PER_REPORT} are taken")
        for sample in samples:
            if not 0 <= sample <= MAX_ROUND_TRIP_MS or math.isnan(sample):
                raise InvalidInput(f"a round trip of {sample} ms is not between 0 and {MAX_ROUND_TRIP_MS:.0f}")
        if not samples:
            return
        book = self._gateways if from_gateway else self._clients
        window = book.pop((region, node), None) or Window(size=WINDOW_SAMPLES, max_age_s=MAX_AGE_S)
        for sample in samples:
            window.add(sample, now_s=now_s)
        book[region, node] = window
        if len(book) > MAX_PAIRS:
            del book[next(iter(book))]

    def estimate(self, region: str, node: str, node_region: str, *, now_s: float) -> NetworkTime:
        """The best that is known of one pair."""
        for book in (self._gateways, self._clients):
            window = book.get((region, node))
            found = window.quantiles(0.5, 0.95, now_s=now_s) if window else None
            if found:
                return NetworkTime(found[0], found[1], True)
        prior = prior_round_trip_ms(region, node_region)
        return NetworkTime(prior, prior * PRIOR_P95_FACTOR, False)
