"""What the router believes about network time: who measured it, how lately, and what is inferred when nobody has.

Of each pair of a client region and a node: what gateways of the region measured, else its clients, else its nodes,
else what measured pairs of regions let infer, else the distance. A source that falls silent fades, and the next one
comes back in the same measure, with its uncertainty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from nearmesh.errors import InvalidInput
from nearmesh.ids import check_label
from nearmesh.regions import COORDINATES, light_ms, prior_round_trip_ms
from nearmesh.routing.times import Times
from nearmesh.sketch import faded
from nearmesh_controlplane.routing.coordinates import Coordinates, Point
from nearmesh_controlplane.routing.voices import Bounds, Heard, Voices

# Who measures: each is believed before the next. A gateway and a node have proven who they are, a client may say
# anything; but a client measures the very way that its region's calls go.
Reporter = Literal["gateway", "clients", "nodes"]
Source = Literal["gateway", "clients", "nodes", "coordinates", "distance"]
REPORTERS: tuple[Reporter, ...] = ("gateway", "clients", "nodes")

# What a measurement's weight halves in. Gateways measure each second and SDKs every few; nodes measure each other by
# turns, which must last until the next one.
HALF_LIFE_S: dict[Reporter, float] = {"gateway": 30.0, "clients": 30.0, "nodes": 300.0}
# A source that makes up less than this of the answer does not give it its name.
NAMED_FROM = 0.5
MAX_SAMPLES_PER_REPORT = 256
MAX_ROUND_TRIP_MS = 60_000.0
# Gateways and nodes are few and known, and cannot name other regions than their own. What clients can fill is about
# 64 MiB at the very worst; the voices of an ordinary one are a tenth as large.
BOUNDS: dict[Reporter, Bounds] = {
    "gateway": Bounds(voices=40_000, voices_of_pair=8, voices_of_reporter=5_000, buckets=256),
    "clients": Bounds(voices=20_000, voices_of_pair=32, voices_of_reporter=1_000, buckets=32),
    "nodes": Bounds(voices=40_000, voices_of_pair=16, voices_of_reporter=5_000, buckets=64),
}
# Fewer clients than this cannot outvote a liar: what they say is kept within bounds. Never sooner than light, which
# bounds any number of them; never later than so many times what is believed without them, and a bad last mile.
ENOUGH_CLIENTS = 3
CLIENTS_FACTOR = 3.0
LAST_MILE_MS = 100.0
# Of each pair of regions, so many nodes with a measured round trip tell what the way between them takes.
NODES_OF_PAIR = 4
# Clients name their regions; what is inferred for them is forgotten at once when it is too much.
MAX_INFERRED = 20_000
# The 95th percentile of a round trip that nobody has measured, over its median: of the pairs of 20 regions of one
# cloud 5 % are beyond 2.2 times the prior's median, and of others' pairs of cities 10 % beyond 1.8 times.
PRIOR_P95_FACTOR = 2.1
# The standard deviation of a logarithm, to the 95th percentile.
_Z95 = 1.6449


@dataclass(frozen=True, slots=True)
class NetworkTime:
    """A round trip between a region and a node."""

    times: Times
    source: Source

    @property
    def p50_ms(self) -> float:
        return self.times.p50_ms

    @property
    def p95_ms(self) -> float:
        return self.times.p95_ms

    @property
    def measured(self) -> bool:
        """By somebody, for this very pair."""
        return self.source in REPORTERS


class LatencyBook:
    """Round trips by client region and node."""

    def __init__(self) -> None:
        self._voices = {kind: Voices(bounds, half_life_s=HALF_LIFE_S[kind]) for kind, bounds in BOUNDS.items()}
        self._coordinates = Coordinates({})
        self._inferred: dict[tuple[str, str], NetworkTime] = {}

    def report(
        self, region: str, node: str, samples_ms: Iterable[float], *, kind: Reporter, reporter: str, now_s: float
    ) -> None:
        """Takes samples over, newest last. Raises InvalidInput for impossible ones."""
        check_label("region", region)
        samples = list(samples_ms)
        if len(samples) > MAX_SAMPLES_PER_REPORT:
            raise InvalidInput(f"{len(samples)} samples in one report; at most {MAX_SAMPLES_PER_REPORT} are taken")
        for sample in samples:
            # What is no number fails every comparison.
            if not 0 <= sample <= MAX_ROUND_TRIP_MS:
                raise InvalidInput(f"a round trip of {sample} ms is not between 0 and {MAX_ROUND_TRIP_MS:.0f}")
        if samples:
            self._voices[kind].add((region, node), reporter, samples, now_s=now_s)

    def estimate(self, region: str, node: str, node_region: str, *, now_s: float) -> NetworkTime:
        """The best that is known of one pair."""
        return self._from(REPORTERS, (region, node), node_region, now_s)

    def between_regions(self, regions: Mapping[str, str], *, now_s: float) -> dict[tuple[Point, Point], float]:
        """What `Coordinates` are made of: medians by pair of places; `regions` are the nodes' regions.

        From gateways and nodes alone: a client that lies moves its own region's pairs, and no others. Of the nodes of a
        pair of regions the shortest counts: what a busy node adds is not the way's.
        """
        found: dict[tuple[Point, Point], float] = {}
        taken: Counter[tuple[Point, Point]] = Counter()
        for kind in ("gateway", "nodes"):
            voices = self._voices[kind]
            for region, node in voices.pairs():
                a, b = COORDINATES.get(region), COORDINATES.get(regions.get(node, ""))
                if a is None or b is None or a == b:
                    continue
                key = min(a, b), max(a, b)
                heard = voices.heard((region, node), now_s=now_s) if taken[key] < NODES_OF_PAIR else None
                if heard and heard.trust >= NAMED_FROM:
                    taken[key] += 1
                    found[key] = min(heard.times.p50_ms, found.get(key, math.inf))
        return found

    def infer_by(self, coordinates: Coordinates) -> None:
        """From now on, pairs that nobody measured are inferred by these."""
        self._coordinates = coordinates
        self._inferred.clear()

    def _from(self, kinds: tuple[Reporter, ...], pair: tuple[str, str], node_region: str, now_s: float) -> NetworkTime:
        """What the first of `kinds` says, as far as it is fresh, and for the rest what those after it say."""
        if not kinds:
            return self._unmeasured(pair[0], node_region)
        kind, *later = kinds
        heard = self._voices[kind].heard(pair, now_s=now_s)
        if heard and heard.trust >= 1 and kind != "clients":
            return NetworkTime(heard.times, kind)
        otherwise = self._from(tuple(later), pair, node_region, now_s)
        if heard is None:
            return otherwise
        times = _bounded(heard, otherwise.times, light_ms(pair[0], node_region)) if kind == "clients" else heard.times
        source = kind if heard.trust >= NAMED_FROM else otherwise.source
        return NetworkTime(faded(times, otherwise.times, heard.trust), source)

    def _unmeasured(self, region: str, node_region: str) -> NetworkTime:
        """The same for every node of a region, until something new is learned."""
        key = (region, node_region)
        found = self._inferred.get(key)
        if found is None:
            prior = prior_round_trip_ms(region, node_region)
            ends = (COORDINATES.get(region), COORDINATES.get(node_region))
            found = self._infer(*ends, prior=prior) if region != node_region else _by_distance(prior)
            if len(self._inferred) >= MAX_INFERRED:
                self._inferred.clear()
            self._inferred[key] = found
        return found

    def _infer(self, a: Point | None, b: Point | None, *, prior: float) -> NetworkTime:
        if a is None or b is None or not self._coordinates.known:
            return _by_distance(prior)
        guess = self._coordinates.guess(a, b)
        times = Times.spread(guess.median_ms, guess.median_ms * math.exp(_Z95 * guess.spread))
        return NetworkTime(times, "coordinates")


def _by_distance(prior_ms: float) -> NetworkTime:
    return NetworkTime(Times.spread(prior_ms, prior_ms * PRIOR_P95_FACTOR), "distance")


def _bounded(heard: Heard, otherwise: Times, least_ms: float) -> Times:
    """Clients' word, within what can be."""
    most_ms = CLIENTS_FACTOR * otherwise.p95_ms + LAST_MILE_MS if heard.voices < ENOUGH_CLIENTS else math.inf
    return Times(tuple(min(max(ms, least_ms), most_ms) for ms in heard.times.ms))
