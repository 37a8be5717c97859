"""Nearmesh in the twin: the control plane's planner and the SDK's health records, budget and delays, as they are.

What stands between them is written anew for the simulation's speed, and does what the product's measuring parts do:
windows of what calls, nodes and agents' pings showed. A client region is one SDK: it draws a node by the planned
shares, sends a copy when an answer is later than forecast and the budget allows it, and leaves nodes that fail.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
from nearmesh_controlplane.routing.demand import Calls, DemandBook
from nearmesh_controlplane.routing.facts import Facts, ModelFacts, NodeFacts, ReplicaFacts
from nearmesh_controlplane.routing.planner import Plan, Planner

from benchmarks.replay.policy import Known
from benchmarks.replay.world import Array
from nearmesh.client.budget import Budget
from nearmesh.client.experience import FIRST_OUT_S, MAX_OUT_S
from nearmesh.client.health import MIN_EXCESS_MS, SLOW, Health
from nearmesh.client.picker import AS_SOON_MS, MOST_PATIENT_P95S, PATIENCE_FACTOR, PATIENCE_FLOOR_S, due_ms
from nearmesh.routing.objectives import Objective
from nearmesh.routing.times import LEVELS, Times

MODEL = "model"

# Samples kept of each pair and of each node, and how many of a pair's are taken over in one report.
PAIR_SAMPLES, NODE_SAMPLES, REPORTED = 64, 256, 16
# Fewer requests in a report say nothing of the tail of a queue.
LEAST_WAITS = 20
# How often what was measured is taken over, seconds; between that, plans are made as the planner asks for them.
MEASURE_S = 5.0
# Quantiles that moved by less than this share are taken for the same: the planner keeps what it worked out.
SAME, SAME_MS = 0.03, 1.0
# A region is many clients with a health record each; here it has one for each node, which hears of every fourth answer.
HEARD = 4
# Races lost in a row for which a node is taken for frozen.
LOST_IN_A_ROW = 3
_P50, _P95 = LEVELS.index(0.5), LEVELS.index(0.95)


class Nearmesh:
    """All client regions with one control plane."""

    def __init__(self, known: Known, objective: Objective = "cheapest-in-time") -> None:
        self.name = "Nearmesh" if objective == "cheapest-in-time" else f"Nearmesh, {objective}"
        self.known, self._objective = known, objective
        self._control = _ControlPlane(known, objective)
        self._count = len(known.node_region)
        pairs = range(known.regions)
        self._health = [[Health() for _ in known.node_region] for _ in pairs]
        self._budget = [Budget() for _ in pairs]
        self._lost = [[0] * self._count for _ in pairs]
        self._failures = [[0] * self._count for _ in pairs]
        self._out_until_s = [[0.0] * self._count for _ in pairs]
        # Who does its work badly, until copies of requests have proven it well.
        self._ejected: list[set[int]] = [set() for _ in pairs]
        self._answers = 0
        self.patience_s: list[list[float]] = []
        # Of each region, the nodes with a share and the running sums of their shares.
        self._choices: list[tuple[list[int], list[float]]] = []
        self._replan(0.0)

    def pick(self, region: int, now_s: float, tried: Collection[int]) -> int:
        self._control.asked[region] += 1
        if tried:
            return self._beside(region, now_s, tried)
        self._budget[region].called()
        if self._ejected[region]:
            self._try_again(region, now_s)
        nodes, sums = self._choices[region]
        if nodes:
            node = nodes[bisect.bisect(sums, random.random() * sums[-1], hi=len(nodes) - 1)]
            if not self._is_out(region, node, now_s):
                return node
        return self._instead(region, now_s)

    def answered(self, region: int, node: int, now_s: float, took_s: float, waited_s: float, served_s: float) -> None:
        self._control.heard(region, node, took_s, waited_s, served_s)
        self._lost[region][node] = self._failures[region][node] = 0
        self._answers += 1
        if self._answers % HEARD == 0:
            p50, p95 = self._control.forecast_ms(region, node)
            ejected = self._health[region][node].answered(
                took_s * 1000, p50, p95, now_s=now_s, peers=lambda: self._peers(region, node, now_s)
            )
            if ejected:
                self._ejected[region].add(node)

    def failed(self, region: int, node: int, now_s: float, took_s: float, *, refused: bool) -> None:
        if refused:
            self._out(region, node, now_s)
        elif self._health[region][node].erred(now_s=now_s):
            self._ejected[region].add(node)

    def silent(self, region: int, node: int, now_s: float, took_s: float) -> float:
        patience_s = self._control.patience_s(region, node)
        if took_s >= patience_s - 1e-9:
            # Taken for frozen: another one is asked whatever the budget says.
            self._out(region, node, now_s)
            return 0.0
        return 0.0 if self._budget[region].take() else patience_s - took_s

    def overtaken(self, region: int, node: int, now_s: float, took_s: float) -> None:
        if took_s < self.patience_s[region][node]:
            return
        self._answers += 1
        if self._answers % HEARD == 0 and self._health[region][node].lost_race(
            now_s=now_s, peers=lambda: self._peers(region, node, now_s)
        ):
            self._ejected[region].add(node)
        self._lost[region][node] += 1
        if self._lost[region][node] >= LOST_IN_A_ROW:
            self._out(region, node, now_s)

    def changed(self, now_s: float) -> None:
        self._replan(now_s)

    def tick(self, now_s: float) -> None:
        self._control.count(now_s)
        if now_s % MEASURE_S == 0:
            self._control.measure()
            self._replan(now_s)
        elif self._control.moving:
            self._replan(now_s)

    def _replan(self, now_s: float) -> None:
        shares = self._control.plan(now_s)
        self._choices = [_choice(row) for row in shares]
        self._rescuers = _rescuers(self._control.total_ms, np.array(self.known.usd), np.array(self.known.present))
        total = self._control.total_ms
        self.patience_s = (MOST_PATIENT_P95S * total[..., _P95] / 1000).tolist()
        for region, (nodes, _) in enumerate(self._choices):
            for node in nodes:
                self.patience_s[region][node] = self._due_ms(region, node, now_s) / 1000

    def _due_ms(self, region: int, node: int, now_s: float) -> float:
        """When a request that was sent there is sent to another node too, by the SDK's rule."""
        rows, late_ms = self._control.total_ms[region], self._control.forecast_ms(region, node)[1]
        late_ms *= self._health[region][node].correction(now_s)
        other = next((n for n in self._rescuers[region] if n != node), None)
        if other is None:
            return late_ms
        times = Times(tuple(rows[node].tolist())), Times(tuple(rows[other].tolist()))
        return max(late_ms, due_ms(*times, self.known.deadline_ms))

    def _instead(self, region: int, now_s: float) -> int:
        """When the node that was drawn is out: another one that was placed, else the best of all."""
        nodes, _ = self._choices[region]
        usable = [n for n in nodes if not self._is_out(region, n, now_s)]
        return usable[int(random.random() * len(usable))] if usable else self._beside(region, now_s, ())

    def _beside(self, region: int, now_s: float, tried: Collection[int]) -> int:
        """The best node that was not asked yet."""
        usable = [n for n in self._rescuers[region] if self.known.present[n] and n not in tried]
        return next((n for n in usable if not self._is_out(region, n, now_s)), usable[0] if usable else -1)

    def _is_out(self, region: int, node: int, now_s: float) -> bool:
        until_s = self._out_until_s[region][node]
        if until_s and until_s <= now_s:
            # The time is over: a probe decides.
            self._out_until_s[region][node] = 0.0
            if not self.known.alive(node):
                self._out(region, node, now_s)
        return until_s > now_s or node in self._ejected[region] or not self.known.present[node]

    def _try_again(self, region: int, now_s: float) -> None:
        """Sends copies to ejected nodes whose time is over, as the budget allows."""
        for node in list(self._ejected[region]):
            health = self._health[region][node]
            if health.ejected_for(now_s) is None:
                self._ejected[region].discard(node)
            elif health.take_trial(now_s) and self._budget[region].take():
                self.known.send_copy(region, node, now_s)

    def copied(self, region: int, node: int, now_s: float, took_s: float, ok: bool) -> None:
        p50, p95 = self._control.forecast_ms(region, node)
        health = self._health[region][node]
        if not ok:
            health.erred(now_s=now_s)
        elif took_s * 1000 > max(SLOW * p95, p95 + MIN_EXCESS_MS):
            health.lost_race(now_s=now_s, peers=lambda: 1.0)
        else:
            health.answered(took_s * 1000, p50, p95, now_s=now_s, peers=lambda: 1.0)

    def _out(self, region: int, node: int, now_s: float) -> None:
        if self._out_until_s[region][node] <= now_s:
            out_s = min(MAX_OUT_S, FIRST_OUT_S * 2.0 ** min(self._failures[region][node], 16))
            self._failures[region][node] += 1
            self._lost[region][node] = 0
            self._out_until_s[region][node] = now_s + out_s

    def _peers(self, region: int, node: int, now_s: float) -> float:
        records = (h for n, h in enumerate(self._health[region]) if n != node)
        known = sorted(off for h in records if (off := h.off_forecast(now_s)) is not None)
        return known[(len(known) - 1) // 2] if known else 1.0


class _ControlPlane:
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
        self._present_since_s = [-1e9] * count
        self.moving = False
        self.ranked: list[list[int]] = []
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
        return float(row[_P50]), float(row[_P95])

    def patience_s(self, region: int, node: int) -> float:
        """After how long a node is taken for frozen."""
        p95_s = float(self.total_ms[region, node, _P95]) / 1000
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
        self.ranked = []
        for row, region in enumerate(self._regions):
            for node, share in plan.shares(region, MODEL, self._objective).items():
                shares[row, self._ids.index(node)] = share
            self.ranked.append([self._ids.index(node.id) for node in plan.order(region, MODEL, self._objective)])
        self._note(plan)
        return shares

    def _note(self, plan: Plan) -> None:
        """The times that the plan expects. Round trips vary so little that quantiles of a sum are sums of quantiles."""
        block = plan.blocks[MODEL, self._objective]
        here = [self._ids.index(node.id) for node in block.offers.nodes]
        self.total_ms[:, here] = block.offers.network[..., [_P50]] + block.offers.service[None]

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
        network, service = _quantiles(self._pairs), _quantiles(self._works)
        speeds = self._speeds(service)
        for row, region in enumerate(self._regions):
            for column, node in enumerate(self._ids):
                new = Times(tuple(network[row, column].tolist()))
                self._network_times[region, node] = _keep(self._network_times.get((region, node)), new)
        for column, node in enumerate(self._ids):
            old = self._replicas.get(node)
            times = _keep(old.service if old else None, Times(tuple(service[column].tolist())))
            new = ReplicaFacts(service=times, per_s=speeds[column], queue=_kept_queue(old, self._queues[column]))
            self._replicas[node] = old if old == new else new

    def _speeds(self, service: Array) -> list[float]:
        """Twins are equally fast: the capacity of an instance is that of the middle one, whatever a node says."""
        return list(self._known.per_second)

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


def _rescuers(total_ms: Array, usd: Array, present: npt.NDArray[np.bool_]) -> list[list[int]]:
    """For each region all nodes in the order in which they are asked beside another one."""
    p50 = np.where(present, total_ms[..., _P50], np.inf)
    later = np.floor((p50 - p50.min(axis=1, keepdims=True)) / AS_SOON_MS)
    return np.lexsort((np.broadcast_to(usd, p50.shape), later), axis=-1).tolist()


def _choice(shares: Array) -> tuple[list[int], list[float]]:
    nodes = np.flatnonzero(shares > 0).tolist()
    return nodes, list(itertools.accumulate(shares[nodes].tolist()))
