"""The rivals: how others choose, each in its published form and, where that knows no distance, within a reach as well.

Each client region is one balancer with state of its own, as a gateway or a shared SDK would be.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Sequence

from benchmarks.replay.policy import Known, Rival


class RoundRobin(Rival):
    """Each in turn."""

    name = "round robin"

    def __init__(self, known: Known, reach_ms: float = math.inf) -> None:
        super().__init__(known, reach_ms)
        # Regions start at different nodes, or all would meet at the same one.
        self._turn = list(range(known.regions))

    def choose(self, region: int, nodes: Sequence[int], now_s: float) -> int:
        self._turn[region] += 1
        return nodes[self._turn[region] % len(nodes)] if nodes else -1


class Nearest(Rival):
    """The shortest round trip; among nodes of one region the cheapest. A refusal moves on to the next."""

    name = "nearest"

    def choose(self, region: int, nodes: Sequence[int], now_s: float) -> int:
        return min(nodes, key=self._merit(region), default=-1) if nodes is not self.open[region] else _first(nodes)

    def arrange(self, region: int, nodes: list[int], now_s: float) -> list[int]:
        return sorted(nodes, key=self._merit(region))

    def _merit(self, region: int):  # type: ignore[no-untyped-def]
        row = self.known.network_ms[region]
        return lambda n: (row[n], self.known.usd[n])


class Cheapest(Rival):
    """The lowest price of an inference; a refusal moves on to the next."""

    name = "cheapest"

    def choose(self, region: int, nodes: Sequence[int], now_s: float) -> int:
        return _first(nodes) if nodes is self.open[region] else min(nodes, key=self.known.usd.__getitem__, default=-1)

    def arrange(self, region: int, nodes: list[int], now_s: float) -> list[int]:
        return sorted(nodes, key=self.known.usd.__getitem__)


class LeastRequest(Rival):
    """Envoy's rule: of two nodes at random, the one with fewer requests of this client under way for its size."""

    name = "least request"

    def __init__(self, known: Known, reach_ms: float = math.inf) -> None:
        super().__init__(known, reach_ms)
        self._under_way = [[0] * len(known.node_region) for _ in range(known.regions)]

    def choose(self, region: int, nodes: Sequence[int], now_s: float) -> int:
        if not nodes:
            return -1
        load, size = self._under_way[region], self.known.instances
        first, second = nodes[_below(len(nodes))], nodes[_below(len(nodes))]
        return second if load[second] / size[second] < load[first] / size[first] else first

    def sent(self, region: int, node: int) -> None:
        self._under_way[region][node] += 1

    def ended(self, region: int, node: int, now_s: float, took_s: float) -> None:
        self._under_way[region][node] -= 1


class PeakEwma(LeastRequest):
    """Finagle's and linkerd's rule: of two nodes at random, the one with less latency times requests under way.

    The latency is an average that forgets with DECAY_S and jumps up to every peak at once.
    """

    name = "peak EWMA"
    DECAY_S = 10.0

    def __init__(self, known: Known, reach_ms: float = math.inf) -> None:
        super().__init__(known, reach_ms)
        # Before anything was measured: the round trip and the set-up's own measurement, which Finagle would not know.
        self._cost_s = ((known.network_ms + known.service_ms[0]) / 1000).tolist()
        self._seen_s = [[0.0] * len(known.node_region) for _ in range(known.regions)]

    def choose(self, region: int, nodes: Sequence[int], now_s: float) -> int:
        if not nodes:
            return -1
        first, second = nodes[_below(len(nodes))], nodes[_below(len(nodes))]
        return second if self._load(region, second, now_s) < self._load(region, first, now_s) else first

    def ended(self, region: int, node: int, now_s: float, took_s: float) -> None:
        super().ended(region, node, now_s, took_s)
        cost = self._cost_s[region][node]
        if took_s < cost:
            kept = math.exp((self._seen_s[region][node] - now_s) / self.DECAY_S)
            took_s = cost * kept + took_s * (1 - kept)
        self._cost_s[region][node], self._seen_s[region][node] = took_s, now_s

    def _load(self, region: int, node: int, now_s: float) -> float:
        idle = math.exp((self._seen_s[region][node] - now_s) / self.DECAY_S)
        return self._cost_s[region][node] * idle * (self._under_way[region][node] + 1)


class SkyServe(Rival):
    """SkyServe's rule: spot machines while there are some, on demand for what is missing; the least load for its size.

    SpotHedge falls back on demand for as many instances as are missing; the balancer then sends to the least load over
    all of them. It is one balancer for the whole mesh, so it sees everyone's requests under way; the detour that
    requests would make through it is spared.
    """

    name = "SkyServe"

    def __init__(self, known: Known, reach_ms: float = math.inf) -> None:
        super().__init__(known, reach_ms)
        self._load = [0.0] * len(known.node_region)

    def choose(self, region: int, nodes: Sequence[int], now_s: float) -> int:
        return min(nodes, key=self._load.__getitem__, default=-1)

    def arrange(self, region: int, nodes: list[int], now_s: float) -> list[int]:
        size, spot = self.known.instances, self.known.spot
        wanted = sum(size[n] for n in self._within[region] if spot[n])
        found = [n for n in nodes if spot[n]]
        missing = wanted - sum(size[n] for n in found)
        for node in sorted((n for n in nodes if not spot[n]), key=self.known.usd.__getitem__):
            if missing > 0 or not found:
                found.append(node)
                missing -= size[node]
        return found

    def sent(self, region: int, node: int) -> None:
        self._load[node] += 1 / self.known.per_second[node]

    def ended(self, region: int, node: int, now_s: float, took_s: float) -> None:
        self._load[node] -= 1 / self.known.per_second[node]


class InverseSquare(Rival):
    """OpenRouter's default: at random in proportion to 1 / price squared, among those without recent outages."""

    name = "inverse square"

    def __init__(self, known: Known, reach_ms: float = math.inf) -> None:
        super().__init__(known, reach_ms)
        self._sums: list[list[float]] = [[] for _ in range(known.regions)]

    def choose(self, region: int, nodes: Sequence[int], now_s: float) -> int:
        if not nodes:
            return -1
        sums = self._sums[region] if nodes is self.open[region] else self._weigh(nodes)
        return nodes[bisect.bisect(sums, random.random() * sums[-1], hi=len(nodes) - 1)]

    def arrange(self, region: int, nodes: list[int], now_s: float) -> list[int]:
        self._sums[region] = self._weigh(nodes)
        return nodes

    def _weigh(self, nodes: Sequence[int]) -> list[float]:
        return list(itertools.accumulate(self.known.usd[n] ** -2 for n in nodes))


def _first(nodes: Sequence[int]) -> int:
    return nodes[0] if nodes else -1


def _below(count: int) -> int:
    return int(random.random() * count)
