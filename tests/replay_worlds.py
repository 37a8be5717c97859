"""A tiny world for the replay: three nodes, times that do not vary, and a policy that does as it is told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.replay.policy import Known
from benchmarks.replay.world import Hardware, Node, World

HARDWARE = Hardware(machine_type="steady", service_ms_p50=40.0, service_ms_p95=60.0)
DEADLINE_MS = 200.0
# Of three nodes: near, in the next region, and out of reach; and what one hour costs.
ROUND_TRIPS_MS = (1.0, 60.0, 190.0)
PRICES = (1.0, 0.4, 0.1)


def world(at_s: Collection[float] = (), *, instances: int = 4, duration_s: float = 60.0, **changes: Any) -> World:
    """One client region and three nodes; every inference takes the median time, no round trip varies."""
    nodes = tuple(
        Node(id=f"n{n}", region=n, spot=n > 0, instances=instances, hardware=HARDWARE)
        for n in range(len(ROUND_TRIPS_MS))
    )
    trips = np.array([ROUND_TRIPS_MS] * 3)
    count = len(at_s)
    plain = World(
        name="tiny",
        regions=("a", "b", "c"),
        nodes=nodes,
        duration_s=duration_s,
        deadline_ms=DEADLINE_MS,
        least_ms=trips,
        mean_ms=trips,
        deviation_ms=np.zeros_like(trips),
        price_since_s=np.array([0.0]),
        usd_per_hour=np.array([PRICES]),
        arrival_s=np.array(at_s, dtype=np.float64),
        arrival_region=np.zeros(count, dtype=np.int64),
        work=np.ones(count),
    )
    return replace(plain, **changes)


def steady(per_second: float, duration_s: float = 60.0) -> list[float]:
    return [k / per_second for k in range(1, int(per_second * duration_s))]


class Always:
    """A policy that sends everything to one node, or to another after a failure."""

    name = "always"

    def __init__(self, known: Known, first: int = 0, then: int = -1, patience_s: float = 0.5) -> None:
        self.patience_s = [[patience_s] * len(known.node_region)] * known.regions
        self.first, self.then = first, then
        self.heard: list[Any] = []

    def pick(self, region: int, now_s: float, tried: Collection[int]) -> int:
        return self.then if tried else self.first

    def answered(self, *heard: Any) -> None:
        self.heard.append(("answered", *heard))

    def failed(self, *heard: Any, refused: bool) -> None:
        self.heard.append(("refused" if refused else "failed", *heard))

    def silent(self, *heard: Any) -> float:
        self.heard.append(("silent", *heard))
        return 0.0

    def overtaken(self, *heard: Any) -> None:
        self.heard.append(("overtaken", *heard))

    def copied(self, *heard: Any) -> None:
        self.heard.append(("copied", *heard))

    def changed(self, now_s: float) -> None:
        pass

    def tick(self, now_s: float) -> None:
        pass
