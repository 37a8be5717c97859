"""A day of a mesh as it truly is: nodes, round trips, prices, spot machines that come and go, arrivals, faults.

Nothing here decides. Who routes sees only what it measured or was told; the optimum alone looks into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Fault = Literal["slow", "erroring", "frozen", "lying"]

_Z95 = 1.6448536269514722


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What one inference takes on a kind of machine, log-normal, when nothing else runs on its instance."""

    machine_type: str
    service_ms_p50: float
    service_ms_p95: float

    @property
    def sigma(self) -> float:
        return math.log(self.service_ms_p95 / self.service_ms_p50) / _Z95

    @property
    def service_ms_mean(self) -> float:
        return self.service_ms_p50 * math.exp(self.sigma**2 / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine with some execution instances that share one queue."""

    id: str
    # Index of the region.
    region: int
    spot: bool
    instances: int
    hardware: Hardware

    @property
    def per_second(self) -> float:
        """Inferences per second when no instance ever waits."""
        return 1000 * self.instances / self.hardware.service_ms_mean


@dataclass(frozen=True, slots=True)
class Absence:
    """A spot machine is taken away: it drains from `notice_s`, is off from `off_s` and serves again from `on_s`."""

    node: int
    notice_s: float
    off_s: float
    on_s: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """A node that is ill from `start_s` to `end_s`."""

    node: int
    fault: Fault
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class World:
    """Times in seconds since the start, or in milliseconds where a name says so."""

    name: str
    regions: tuple[str, ...]
    nodes: tuple[Node, ...]
    duration_s: float
    deadline_ms: float
    # Round trips from a client's region to a node: least, mean, and mean deviation; shape (regions, nodes).
    least_ms: Array
    mean_ms: Array
    deviation_ms: Array
    # From when on each row of prices holds, and USD per hour; shapes (rows,) and (rows, nodes).
    price_since_s: Array
    usd_per_hour: Array
    absences: tuple[Absence, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    # Each request, in the order of time: when it starts, where, and how much longer than the median its work takes.
    arrival_s: Array = field(repr=False)
    arrival_region: npt.NDArray[np.int64] = field(repr=False)
    work: Array = field(repr=False)

    @cached_property
    def node_region(self) -> npt.NDArray[np.int64]:
        return np.array([node.region for node in self.nodes])

    @cached_property
    def per_second(self) -> Array:
        return np.array([node.per_second for node in self.nodes])

    @cached_property
    def usd_per_request(self) -> Array:
        """What one inference costs on a node that is never idle; shape (price rows, nodes)."""
        return self.usd_per_hour / (3600 * self.per_second)

    def price_row(self, at_s: float) -> int:
        return int(np.searchsorted(self.price_since_s, at_s, side="right")) - 1

    def present(self, at_s: float) -> npt.NDArray[np.bool_]:
        """Which nodes take new requests: those that are there and not leaving."""
        found = np.ones(len(self.nodes), dtype=bool)
        for absence in self.absences:
            if absence.notice_s <= at_s < absence.on_s:
                found[absence.node] = False
        return found


def absences(
    rng: np.random.Generator, node: int, up_s: float, down_s: float, duration_s: float, notice_s: float
) -> Sequence[Absence]:
    """A spot machine's day: up and down by turns, each for an exponential time with the given mean.

    No time is shorter than two notices, so that no machine is taken away before it was there.
    """
    found: list[Absence] = []
    at = 0.0
    if rng.random() < down_s / (up_s + down_s):
        at = max(2 * notice_s, rng.exponential(down_s))
        found.append(Absence(node, 0.0, 0.0, at))
    while True:
        off = at + max(2 * notice_s, rng.exponential(up_s))
        if off >= duration_s:
            return found
        at = off + max(2 * notice_s, rng.exponential(down_s))
        found.append(Absence(node, off - notice_s, off, at))


def arrivals(rng: np.random.Generator, rates: Array, step_s: float) -> tuple[Array, npt.NDArray[np.int64]]:
    """Requests at the given mean rates per second, shape (regions, steps of `step_s`): when and where, in order."""
    counts = rng.poisson(rates * step_s)
    region, step = np.nonzero(counts)
    each = counts[region, step]
    regions, steps = np.repeat(region, each), np.repeat(step, each)
    at = (steps + rng.random(len(steps))) * step_s
    order = np.argsort(at, kind="stable")
    return at[order], regions[order]
