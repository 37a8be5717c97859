"""What routes requests: the seam between the simulation and every policy, and what the rivals have in common.

Everyone is given the same means against failure: an answer that is an error, or none in time, is asked for again from
another node, and a node that failed several times in a row is left alone for a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.replay.world import Array

# Envoy's outlier detection with its defaults: five failures in a row, thirty seconds, longer each time.
FAILURES, OUT_S, MOST_OUT_S = 5, 30.0, 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What anyone may know beforehand, or is told while it goes on."""

    regions: int
    deadline_ms: float
    node_region: Sequence[int]
    spot: Sequence[bool]
    instances: Sequence[int]
    # Inferences per second at capacity.
    per_second: Sequence[float]
    # The round trip from each region to each node, as pings between regions show it; shape (regions, nodes).
    network_ms: Array
    deviation_ms: Array
    # The median and the 99th percentile of an inference, as measured when the machines were set up.
    service_ms: tuple[float, float]
    # Kept up to date while the day goes on: USD for one inference, and whether the node takes requests.
    usd: list[float]
    present: list[bool]
    # Means that anyone may use: whether a node answers a health check now, and to send it a copy of a request from a
    # region, which nobody waits for; `copied` tells what became of it.
    alive: Callable[[int], bool]
    send_copy: Callable[[int, int, float], None]


class Policy(Protocol):
    """Routes the requests of all regions. Regions and nodes are indices; -1 is no node."""

    name: str
    # How long a request waits for a node before another is asked beside it: seconds, by region and node.
    patience_s: list[list[float]]

    def pick(self, region: int, now_s: float, tried: Collection[int]) -> int:
        """The node for a request that was sent to `tried` before; it counts as sent."""
        ...

    def answered(self, region: int, node: int, now_s: float, took_s: float, waited_s: float, served_s: float) -> None:
        """An answer: what the client measured, and how long the request waited and was served as the node says."""
        ...

    def failed(self, region: int, node: int, now_s: float, took_s: float, *, refused: bool) -> None:
        """An error: the node has no room or is gone (`refused`), or is broken."""
        ...

    def silent(self, region: int, node: int, now_s: float, took_s: float) -> float:
        """An attempt outlasted the patience: 0 to ask another node beside it, else the seconds to wait until then."""
        ...

    def overtaken(self, region: int, node: int, now_s: float, took_s: float) -> None:
        """Another node answered the request first; this attempt was cancelled."""
        ...

    def copied(self, region: int, node: int, now_s: float, took_s: float, ok: bool) -> None:
        """What became of a copy; one that took too long to be waited for is not ok."""
        ...

    def changed(self, now_s: float) -> None:
        """Prices or the presence of nodes are no longer what they were."""
        ...

    def tick(self, now_s: float) -> None:
        """Called every second."""
        ...


class Rival:
    """A policy without a plan: failover, ejection, and a choice among the nodes that are left.

    With a `reach_ms`, only nodes within that round trip are chosen, and others only when none of them is left: what an
    operator would configure for a policy that knows no distances.
    """

    name = ""

    def __init__(self, known: Known, reach_ms: float = math.inf) -> None:
        self.known = known
        count = len(known.node_region)
        # The deadline; for a node that would hardly keep it, half as long again as it takes in all but the worst case.
        usual_ms = known.network_ms + known.service_ms[1]
        late = usual_ms > known.deadline_ms
        self.patience_s = (np.where(late, 1.5 * usual_ms, known.deadline_ms) / 1000).tolist()
        self._failures = [[0] * count for _ in range(known.regions)]
        self._ejections = [[0] * count for _ in range(known.regions)]
        self._out_until_s = [[0.0] * count for _ in range(known.regions)]
        self._within = [[n for n in range(count) if row[n] <= reach_ms] for row in known.network_ms.tolist()]
        # Nodes that may be chosen now, by region; kept until something changes.
        self.open: list[list[int]] = [[] for _ in range(known.regions)]
        self._next_return_s = 0.0

    def pick(self, region: int, now_s: float, tried: Collection[int]) -> int:
        if now_s >= self._next_return_s:
            self.changed(now_s)
        nodes = self.open[region]
        if tried:
            nodes = [n for n in nodes if n not in tried]
        node = self.choose(region, nodes or self._anywhere(tried), now_s)
        if node >= 0:
            self.sent(region, node)
        return node

    def choose(self, region: int, nodes: Sequence[int], now_s: float) -> int:
        """One of the nodes; -1 when there is none."""
        raise NotImplementedError

    def sent(self, region: int, node: int) -> None:
        """An attempt left."""

    def ended(self, region: int, node: int, now_s: float, took_s: float) -> None:
        """An attempt is over."""

    def arrange(self, region: int, nodes: list[int], now_s: float) -> list[int]:
        """The open nodes of a region as `choose` wants them."""
        return nodes

    def answered(self, region: int, node: int, now_s: float, took_s: float, waited_s: float, served_s: float) -> None:
        self.ended(region, node, now_s, took_s)
        if self._failures[region][node]:
            self._failures[region][node] = 0

    def failed(self, region: int, node: int, now_s: float, took_s: float, *, refused: bool) -> None:
        self.ended(region, node, now_s, took_s)
        self._count(region, node, now_s)

    def silent(self, region: int, node: int, now_s: float, took_s: float) -> float:
        self._count(region, node, now_s)
        return 0.0

    def overtaken(self, region: int, node: int, now_s: float, took_s: float) -> None:
        self.ended(region, node, now_s, took_s)

    def copied(self, region: int, node: int, now_s: float, took_s: float, ok: bool) -> None:
        pass

    def changed(self, now_s: float) -> None:
        for row in self._out_until_s:
            for node, until_s in enumerate(row):
                if 0 < until_s <= now_s:
                    # Envoy's active health checks: who does not answer one stays out.
                    row[node] = 0.0 if self.known.alive(node) else now_s + OUT_S
        self._next_return_s = min((u for row in self._out_until_s for u in row if u > now_s), default=math.inf)
        for region in range(self.known.regions):
            self._reopen(region, now_s)

    def tick(self, now_s: float) -> None:
        pass

    def _count(self, region: int, node: int, now_s: float) -> None:
        self._failures[region][node] += 1
        if self._failures[region][node] < FAILURES:
            return
        self._failures[region][node] = 0
        self._ejections[region][node] += 1
        until_s = now_s + min(MOST_OUT_S, OUT_S * self._ejections[region][node])
        self._out_until_s[region][node] = until_s
        self._next_return_s = min(self._next_return_s, until_s)
        self._reopen(region, now_s)

    def _reopen(self, region: int, now_s: float) -> None:
        out = self._out_until_s[region]
        nodes = [n for n in self._within[region] if self.known.present[n] and out[n] <= now_s]
        self.open[region] = self.arrange(region, nodes, now_s)

    def _anywhere(self, tried: Collection[int]) -> list[int]:
        return [n for n, present in enumerate(self.known.present) if present and n not in tried]
