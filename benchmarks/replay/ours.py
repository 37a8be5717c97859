"""Nearmesh in the twin: a control plane, and in each client region an SDK.

The SDK draws a node by the planned shares, sends a copy when an answer is later than forecast and the budget allows it,
and leaves nodes that fail. Its health records, budget and delays are the product's own; what puts them together is
written anew for the simulation's speed.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from benchmarks.replay.control import P50, P95, ControlPlane
from benchmarks.replay.policy import Known
from benchmarks.replay.world import Array
from nearmesh.client.budget import Budget
from nearmesh.client.experience import FIRST_OUT_S, MAX_OUT_S
from nearmesh.client.health import MIN_EXCESS_MS, SLOW, Health
from nearmesh.client.picker import AS_SOON_MS, MOST_PATIENT_P95S, due_ms
from nearmesh.routing.objectives import Objective
from nearmesh.routing.times import Times

# How often what was measured is taken over, seconds; between that, plans are made as the planner asks for them.
MEASURE_S = 5.0
# A region is many clients with a health record each; here it has one for each node, which hears of every fourth answer.
HEARD = 4
# Races lost in a row for which a node is taken for frozen.
LOST_IN_A_ROW = 3


class Nearmesh:
    """All client regions with one control plane."""

    def __init__(self, known: Known, objective: Objective = "cheapest-in-time") -> None:
        self.name = "Nearmesh" if objective == "cheapest-in-time" else f"Nearmesh, {objective}"
        self.known, self._objective = known, objective
        self._control = ControlPlane(known, objective)
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
        # Of each region, the nodes with a share and the running sums of their shares; and whom to ask beside them.
        self._choices: list[tuple[list[int], list[float]]] = []
        self._rescuers: list[list[int]] = []
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

    def copied(self, region: int, node: int, now_s: float, took_s: float, ok: bool) -> None:
        p50, p95 = self._control.forecast_ms(region, node)
        health = self._health[region][node]
        if not ok:
            health.erred(now_s=now_s)
        elif took_s * 1000 > max(SLOW * p95, p95 + MIN_EXCESS_MS):
            health.lost_race(now_s=now_s, peers=lambda: 1.0)
        else:
            health.answered(took_s * 1000, p50, p95, now_s=now_s, peers=lambda: 1.0)

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
        total = self._control.total_ms
        self._rescuers = _rescuers(total, np.array(self.known.usd), np.array(self.known.present))
        self.patience_s = (MOST_PATIENT_P95S * total[..., P95] / 1000).tolist()
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
        if 0 < self._out_until_s[region][node] <= now_s:
            # The time is over: a probe decides.
            self._out_until_s[region][node] = 0.0
            if not self.known.alive(node):
                self._out(region, node, now_s)
        out = self._out_until_s[region][node] > now_s
        return out or node in self._ejected[region] or not self.known.present[node]

    def _try_again(self, region: int, now_s: float) -> None:
        """Sends copies to ejected nodes whose time is over, as the budget allows."""
        for node in list(self._ejected[region]):
            health = self._health[region][node]
            if health.ejected_for(now_s) is None:
                self._ejected[region].discard(node)
            elif health.take_trial(now_s) and self._budget[region].take():
                self.known.send_copy(region, node, now_s)

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


def _rescuers(total_ms: Array, usd: Array, present: npt.NDArray[np.bool_]) -> list[list[int]]:
    """For each region all nodes in the order in which they are asked beside another one."""
    p50 = np.where(present, total_ms[..., P50], np.inf)
    later = np.floor((p50 - p50.min(axis=1, keepdims=True)) / AS_SOON_MS)
    return np.lexsort((np.broadcast_to(usd, p50.shape), later), axis=-1).tolist()


def _choice(shares: Array) -> tuple[list[int], list[float]]:
    nodes = np.flatnonzero(shares > 0).tolist()
    return nodes, list(itertools.accumulate(shares[nodes].tolist()))
