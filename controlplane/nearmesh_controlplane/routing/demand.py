"""How many requests come from where: per client region, model and objective, as of now and for the next moment.

Nodes count what they were asked; that total is believed. Gateways and clients tell where it comes from, and what they
claim is a share of the total, never more: gateways first, clients of what is left. So a client that lies takes shares
from other clients, and invents no demand. Everything ages, and memory is bounded whatever is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from nearmesh.errors import InvalidInput
from nearmesh.ids import check_label

# A client's region, a model, and an objective; "" is the model's policy.
Key = tuple[str, str, str]
Claimant = Literal["gateway", "clients"]

HALF_LIFE_S = 15.0
# Rates are averages over seconds; what comes within one is counted together.
SECOND_S = 1.0
# The forecast is what the next second stays below six times of ten, as far as the latest ones tell. The bound of what a
# node may carry has room for chance already; in replayed days, nine of ten cost a tenth more for hardly more in time.
_Z60 = 0.2533

# Bounds of memory. A key that was silent longest gives way, gateways' and clients' apart.
MAX_KEYS = 20_000
MAX_REPORTERS = 10_000
# Apps often share one token all over the world; one that names more regions than there are clouds' is making them up.
MAX_REGIONS_OF_REPORTER = 200
MAX_CALLS = 1_000_000
# What a node counted since its last report is spread over the time since then; of more than so many seconds only these
# count. Else an hour of requests would come in the second in which a node is back, or this control plane leads again.
REPORT_S = 2.0
# A rate below this is silence.
LEAST_PER_S = 1e-3


class Rate:
    """Events per second, smoothed, and by how much single seconds differ from that (West, CACM 22, 1979)."""

    __slots__ = ("_count", "_mean", "_since_s", "_started_s", "_variance")

    def __init__(self, now_s: float) -> None:
        self._count = self._mean = self._variance = 0.0
        # Of the second that is being counted, and of all of them.
        self._since_s = self._started_s = now_s

    def add(self, count: float, *, now_s: float) -> None:
        """Counts what happened since the last time."""
        self._count += count
        elapsed_s = now_s - self._since_s
        if elapsed_s >= SECOND_S:
            off = self._count / elapsed_s - self._mean
            # Of all that is remembered; the first figure is all of it.
            weight = _forgotten(elapsed_s) / _forgotten(now_s - self._started_s)
            self._mean += weight * off
            # One figure for several seconds is their mean: it varies as much less.
            self._variance = (1 - weight) * (self._variance + weight * off * off * elapsed_s / SECOND_S)
            self._count, self._since_s = 0.0, now_s

    def per_s(self, now_s: float) -> float:
        """The mean; without news it falls as if nothing had come, but for reports on their way."""
        return self._mean * self._silence(now_s)

    def variance(self, now_s: float) -> float:
        """Of single seconds."""
        return self._variance * self._silence(now_s)

    def _silence(self, now_s: float) -> float:
        return math.exp2(-max(0.0, now_s - self._since_s - 2 * SECOND_S) / HALF_LIFE_S)


def _forgotten(elapsed_s: float) -> float:
    """Share of what was known before, after so long."""
    return 1 - math.exp2(-elapsed_s / HALF_LIFE_S)


@dataclass(frozen=True, slots=True)
class Calls:
    """What a reporter's calls of one model and objective came to since its last report."""

    model: str
    objective: str
    count: int


class DemandBook:
    """`now_s` is any clock that never goes back."""

    def __init__(self) -> None:
        # The key that was reported last stands last.
        self._claims: dict[Claimant, dict[Key, Rate]] = {"gateway": {}, "clients": {}}
        self._totals: dict[str, Rate] = {}
        # When each node reported last, and what it had counted by then, by digest.
        self._counted: dict[str, tuple[float, dict[str, int]]] = {}
        # When each reporter last named each region.
        self._regions: dict[str, dict[str, float]] = {}
        # When anybody last reported anything.
        self._heard_s = math.inf

    def report(
        self,
        region: str,
        calls: Iterable[Calls],
        *,
        kind: Claimant,
        reporter: str,
        now_s: float,
        over_s: float = SECOND_S,
    ) -> None:
        """Takes over a claim about the last `over_s`. Raises InvalidInput.

        The caller sees to it that models and objectives exist.
        """
        check_label("region", region)
        claims = list(calls)
        for claim in claims:
            if not 0 <= claim.count <= MAX_CALLS:
                raise InvalidInput(f"{claim.count} calls of {claim.model!r} in one report; at most {MAX_CALLS}")
        if kind == "clients":
            self._check_regions(reporter, region, now_s)
        self._hear(now_s)
        book = self._claims[kind]
        for claim in claims:
            key = (region, claim.model, claim.objective)
            rate = book.pop(key, None) or Rate(now_s - min(max(over_s, SECOND_S), HALF_LIFE_S))
            rate.add(claim.count, now_s=now_s)
            book[key] = rate
            if len(book) > MAX_KEYS:
                del book[next(iter(book))]

    def answered(self, node: str, counted: Mapping[str, tuple[str, int]], *, now_s: float) -> None:
        """Takes over a node's counts: by digest the model, and how many it was asked since it loaded that version."""
        self._hear(now_s)
        last = self._counted.get(node)
        self._counted[node] = now_s, {digest: count for digest, (_, count) in counted.items()}
        if last is None:
            # It is new here, and has a past of which nobody knows when it was.
            return
        last_s, before = last
        lately = REPORT_S / max(REPORT_S, now_s - last_s)
        grown: dict[str, int] = {}
        for digest, (model, count) in counted.items():
            # One that started again has no past.
            known = before.get(digest, 0)
            grown[model] = grown.get(model, 0) + (count - known if count >= known else count)
        for model, count in grown.items():
            rate = self._totals.setdefault(model, Rate(now_s - SECOND_S))
            rate.add(min(count * lately, MAX_CALLS), now_s=now_s)

    def forget(self, nodes: Iterable[str], models: Iterable[str]) -> None:
        """Keeps these nodes and models alone."""
        kept, known = set(nodes), set(models)
        self._counted = {node: counts for node, counts in self._counted.items() if node in kept}
        self._totals = {model: rate for model, rate in self._totals.items() if model in known}
        for kind, book in self._claims.items():
            self._claims[kind] = {key: rate for key, rate in book.items() if key[1] in known}

    def total(self, model: str, *, now_s: float) -> float:
        """Requests per second that nodes counted, from wherever they came."""
        rate = self._totals.get(model)
        return rate.per_s(now_s) if rate else 0.0

    def demand(self, now_s: float, *, forecast: bool = True) -> dict[Key, float]:
        """Requests per second, for the next moment or (`forecast` False) on average; silent keys are left out.

        The averages of a model's keys add up to no more than its total.
        """
        found: dict[Key, float] = {}
        # Of single seconds, as far as the claims tell.
        unrest: dict[Key, float] = {}
        left = {model: rate.per_s(now_s) for model, rate in self._totals.items()}
        for book in (self._claims["gateway"], self._claims["clients"]):
            claims = {key: rate.per_s(now_s) for key, rate in book.items()}
            sums: dict[str, float] = {}
            for (_, model, _), per_s in claims.items():
                sums[model] = sums.get(model, 0.0) + per_s
            scales = {
                model: min(1.0, left.get(model, 0.0) / claimed) if claimed else 0.0 for model, claimed in sums.items()
            }
            for key, per_s in claims.items():
                scale = scales[key[1]]
                found[key] = found.get(key, 0.0) + per_s * scale
                unrest[key] = unrest.get(key, 0.0) + book[key].variance(now_s) * scale * scale
            left |= {model: left.get(model, 0.0) - sums[model] * scales[model] for model in sums}
        found = {key: per_s for key, per_s in found.items() if per_s >= LEAST_PER_S}
        if not forecast:
            return found
        return {key: self._forecast(key[1], per_s, unrest[key], now_s) for key, per_s in found.items()}

    def _forecast(self, model: str, per_s: float, unrest: float, now_s: float) -> float:
        """What the next second stays below six times of ten, by how much single seconds of the key vary.

        Its own counts tell, `unrest`, as far as the nodes' bear them out. Those saw the variance V of the model's total
        of m per second, of which the key has the share s. If all keys share one unrest, each request of the total is
        the key's by chance, and its seconds vary by s^2 V + s (1 - s) m: by s m as Poisson's do, and by s^2 of the rest
        of V (a thinned stream; the law of total variance, Ross, Introduction to Probability Models, 3.5). If each key
        is restless by itself, variances add up to V, and it is s V where all are alike. More than these only reports
        make that come in lumps; less than Poisson's only a key that is young, unless the total is steadier than that.
        """
        rate = self._totals[model]
        mean, whole = max(rate.per_s(now_s), per_s), rate.variance(now_s)
        share = per_s / mean
        least, most = min(per_s, share * whole), max(share * whole, share * share * whole + share * (1 - share) * mean)
        return per_s + _Z60 * math.sqrt(min(max(unrest, least), most))

    def _hear(self, now_s: float) -> None:
        """Nodes report even when they are idle: nobody did because this control plane did not lead. What it knew is
        old, and what was asked meanwhile was not told here; it begins anew, as after a start."""
        if now_s - self._heard_s > HALF_LIFE_S:
            self._claims, self._totals, self._counted = {"gateway": {}, "clients": {}}, {}, {}
        self._heard_s = now_s

    def _check_regions(self, reporter: str, region: str, now_s: float) -> None:
        named = self._regions.pop(reporter, {})
        named[region] = now_s
        if len(named) > MAX_REGIONS_OF_REPORTER:
            named = {name: last_s for name, last_s in named.items() if last_s > now_s - 10 * HALF_LIFE_S}
        self._regions[reporter] = named
        if len(self._regions) > MAX_REPORTERS:
            del self._regions[next(iter(self._regions))]
        if len(named) > MAX_REGIONS_OF_REPORTER:
            del named[region]
            raise InvalidInput(f"calls from more than {MAX_REGIONS_OF_REPORTER} regions within a few minutes")
