"""The control plane in the twin: what is measured, and the plan that the product's own planner makes of it.

What calls, nodes and agents' pings showed is kept in windows, written anew for the simulation's speed; demand is the
product's own book, and so is everything that decides.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from nearmesh_controlplane.routing.demand import Calls, DemandBook
from nearmesh_controlplane.routing.facts import Facts, ModelFacts, NodeFacts, ReplicaFacts
from nearmesh_controlplane.routing.planner import Plan, Planner

from benchmarks.replay.policy import Known
from benchmarks.replay.world import Array
from nearmesh.client.picker import PATIENCE_FACTOR, PATIENCE_FLOOR_S
from nearmesh.routing.objectives import Objective
from nearmesh.routing.times import LEVELS, Times

MODEL = "model"
# Samples kept of each pair and of each node, and how many of a pair's are taken over in one report.
PAIR_SAMPLES, NODE_SAMPLES, REPORTED = 64, 256, 16
# Fewer requests in a report say nothing of the tail of a queue.
LEAST_WAITS = 20
# Quantiles that moved by less than this share are taken for the same: the planner keeps what it worked out.
SAME, SAME_MS = 0.03, 1.0
P50, P95 = LEVELS.index(0.5), LEVELS.index(0.95)


class ControlPlane:
    """What is measured, and the plan that is made of it."""

    def __init__(self, known: Known, objective: Objective) -> None:
        self._known, self._objective = known, objective
        self._planner = Planner()
        self._rng = np.random.default_rng(1)
        count = len(known.node_region)
        self._regions = tuple(f"region-{r}" for r in range(known.regions))
        self._ids = tuple(f"node-{n}" for n in range(count))
        self.asked = [0] * known.regions
        self._demand = DemandBook()
        self._counts = [0] * count
        self._network: list[list[float]] = [[] for _ in range(known.regions * count)]
        self._served: list[list[float]] = [[] for _ in range(count)]
        self._waited: list[list[float]] = [[] for _ in range(count)]
        self._pairs = self._pings(PAIR_SAMPLES)
        self._works = self._set_up(NODE_SAMPLES)
        # Of the latest report alone: a queue is soon another one.
        self._queues: list[Times | None] = [None] * count
        self._network_times: dict[tuple[str, str], Times] = {}
        self._replicas: dict[str, ReplicaFacts] = {}
        # Since when each node is there; None while it is not.
        self._present_since_s: list[float | None] = [-1e9] * count
        self.moving = False
        self.total_ms = np.zeros((known.regions, count, len(LEVELS)))
        self._refresh()

    def heard(self, region: int, node: int, took_s: float, waited_s: float, served_s: float) -> None:
        """From a client's report, and from the node's own."""
        self._network[region * len(self._ids) + node].append(took_s - waited_s - served_s)
        self._counts[node] += 1
        self._served[node].append(served_s)
        self._waited[node].append(waited_s)

    def forecast_ms(self, region: int, node: int) -> tuple[float, float]:
        row = self.total_ms[region, node]
        return float(row[P50]), float(row[P95])

    def patience_s(self, region: int, node: int) -> float:
        """After how long a node is taken for frozen."""
        p95_s = float(self.total_ms[region, node, P95]) / 1000
        return max(PATIENCE_FACTOR * p95_s, PATIENCE_FLOOR_S + p95_s)

    def count(self, now_s: float) -> None:
        """What clients and nodes report every second of how much is asked."""
        for region, calls in zip(self._regions, self.asked, strict=True):
            claim = [Calls(MODEL, self._objective, calls)]
            self._demand.report(region, claim, kind="gateway", reporter=region, now_s=now_s)
        self.asked[:] = [0] * len(self.asked)
        for node, count in zip(self._ids, self._counts, strict=True):
            self._demand.answered(node, {MODEL: (MODEL, count)}, now_s=now_s)

    def measure(self) -> None:
        """Takes over what was reported of times since the last time."""
        # Agents ping each other: so pairs that nobody uses are known, and what calls once showed of them fades.
        self._pairs = np.concatenate([self._pairs[..., 1:], self._pings(1)], axis=-1)
        for place, samples in enumerate(self._network):
            if samples:
                _shift(self._pairs[divmod(place, len(self._ids))], samples[-REPORTED:])
                samples.clear()
        idle = self._set_up(1)
        for node, (served, waited) in enumerate(zip(self._served, self._waited, strict=True)):
            _shift(self._works[node], served[-NODE_SAMPLES:] or idle[node] / 1000)
            enough = len(waited) >= LEAST_WAITS
            self._queues[node] = Times(tuple((_quantiles(np.array(waited)) * 1000).tolist())) if enough else None
            served.clear()
            waited.clear()
        self._refresh()

    def plan(self, now_s: float) -> Array:
        """Shares by region and node."""
        plan = self._planner.plan(self._facts(now_s), now_s, [(r, MODEL, self._objective) for r in self._regions])
        self.moving = plan.moving
        shares = np.zeros((len(self._regions), len(self._ids)))
        for row, region in enumerate(self._regions):
            for node, share in plan.shares(region, MODEL, self._objective).items():
                shares[row, self._ids.index(node)] = share
        self._note(plan)
        return shares

    def _note(self, plan: Plan) -> None:
        """The times that the plan expects. Round trips vary so little that quantiles of a sum are sums of quantiles."""
        block = plan.blocks[MODEL, self._objective]
        here = [self._ids.index(node.id) for node in block.offers.nodes]
        self.total_ms[:, here] = block.offers.network[..., [P50]] + block.offers.service[None]

    def _facts(self, now_s: float) -> Facts:
        known = self._known
        nodes = tuple(
            NodeFacts(
                id=self._ids[n],
                site=self._ids[n],
                region=self._regions[known.node_region[n]],
                usd_per_hour=3600 * known.per_second[n] * known.usd[n],
                spot=known.spot[n],
            )
            for n in range(len(self._ids))
        )
        replicas = {self._ids[n]: self._replicas[self._ids[n]] for n in range(len(nodes)) if known.present[n]}
        self._present_since_s = [
            (since if present else None) if since is not None or not present else now_s
            for since, present in zip(self._present_since_s, known.present, strict=True)
        ]
        return Facts(
            nodes=nodes,
            models=(
                ModelFacts(name=MODEL, objective=self._objective, deadline_ms=known.deadline_ms, replicas=replicas),
            ),
            regions=self._regions,
            network=self._network_times,
            demand=self._demand.demand(now_s, forecast=True),
            ready_for_s={
                (self._ids[n], MODEL): now_s - since
                for n, since in enumerate(self._present_since_s)
                if since is not None and since > 0
            },
        )

    def _refresh(self) -> None:
        """Facts from the windows. The speed of twins is that of the middle one, so that nobody's lie counts."""
        network, service = _quantiles(self._pairs), _quantiles(self._works)
        for row, region in enumerate(self._regions):
            for column, node in enumerate(self._ids):
                times = Times(tuple(network[row, column].tolist()))
                self._network_times[region, node] = _keep(self._network_times.get((region, node)), times)
        for column, node in enumerate(self._ids):
            old = self._replicas.get(node)
            alone = _keep(old.service if old else None, Times(tuple(service[column].tolist())))
            new = ReplicaFacts(
                service=alone, per_s=self._known.per_second[column], queue=_kept_queue(old, self._queues[column])
            )
            self._replicas[node] = old if old == new else new

    def _pings(self, count: int) -> Array:
        """Round trips as agents measure them among themselves, milliseconds; shape (regions, nodes, count)."""
        jitter = self._rng.exponential(size=(*self._known.network_ms.shape, count)) - 1.0
        return np.maximum(0.0, self._known.network_ms[..., None] + self._known.deviation_ms[..., None] * jitter)

    def _set_up(self, count: int) -> Array:
        """Inferences as they were measured when the machines were set up, milliseconds; shape (nodes, count)."""
        p50_ms, p99_ms = self._known.service_ms
        sigma = np.log(p99_ms / p50_ms) / 2.326
        found: Array = p50_ms * np.exp(sigma * self._rng.standard_normal((len(self._known.node_region), count)))
        return found


def _keep(old: Times | None, new: Times) -> Times:
    if old is None:
        return new
    near = all(abs(a - b) <= max(SAME_MS, SAME * a) for a, b in zip(old.ms, new.ms, strict=True))
    return old if near else new


def _kept_queue(old: ReplicaFacts | None, new: Times | None) -> Times | None:
    return _keep(old.queue if old else None, new) if new else None


def _shift(window: Array, new_s: Collection[float] | Array) -> None:
    """The oldest samples give way; seconds in, milliseconds kept."""
    kept = len(window) - len(new_s)
    window[:kept] = window[len(new_s) :].copy()
    window[kept:] = np.asarray(new_s) * 1000


def _quantiles(samples: Array) -> Array:
    """Of the last axis, at LEVELS."""
    ordered = np.sort(samples, axis=-1)
    at = np.array(LEVELS) * (samples.shape[-1] - 1)
    low = np.floor(at).astype(int)
    part = at - low
    return ordered[..., low] * (1 - part) + ordered[..., np.minimum(low + 1, samples.shape[-1] - 1)] * part
