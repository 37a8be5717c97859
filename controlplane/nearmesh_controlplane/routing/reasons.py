"""Why each node won or lost, in words: read from the same arrays that decided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nearmesh.routing import IN_TIME, Candidate, Ranked, format_usd
from nearmesh.routing.residency import refusal
from nearmesh.routing.rule import HYSTERESIS, late_because
from nearmesh.routing.times import LEVELS, sum_of
from nearmesh_controlplane.routing.drafts import BROKEN_BELOW
from nearmesh_controlplane.routing.facts import Facts, ModelFacts, NodeFacts
from nearmesh_controlplane.routing.planner import Block, Plan

_DOUBTS = {
    "suspect": "its session just broke",
    "gone": "its session is gone, but no live node serves this model",
}
# Shares that differ by less are the same.
_SAME = 0.005
_P50 = LEVELS.index(0.5)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """All nodes for one region, model and objective: those that may answer best first, then the others."""

    ranking: tuple[Ranked, ...]
    deadline_ms: float


def verdicts(
    plan: Plan,
    model: ModelFacts,
    block: Block | None,
    region: str,
    measured: dict[str, bool],
    best: int | None = None,
) -> Verdicts:
    """`measured`: by node, whether somebody measured the way to it. With `best`, of that many of the able alone."""
    row = plan.regions[region]
    view = _View(plan, model, block, row, region, measured)
    able = view.order()
    known = {node.id for node in able}
    unable = [node for node in plan.facts.nodes if node.id not in known] if best is None else []
    ranking = view.all_able(able[:best]) + [view.unable(node) for node in unable]
    return Verdicts(tuple(ranking), model.deadline_ms)


class _View:
    """One row of a block."""

    def __init__(
        self, plan: Plan, model: ModelFacts, block: Block | None, row: int, region: str, measured: dict[str, bool]
    ) -> None:
        self._plan = plan
        self._facts: Facts = plan.facts
        self._model = model
        self._block = block
        self._row = row
        self._region = region
        self._measured = measured
        self._at = {node.id: at for at, node in enumerate(block.offers.nodes)} if block else {}

    def order(self) -> list[NodeFacts]:
        if self._block is None:
            return []
        return self._plan.order(self._region, self._model.name, self._block.objective)

    def all_able(self, nodes: list[NodeFacts]) -> list[Ranked]:
        """Nodes that may answer, the best first."""
        candidates = [self._candidate(node) for node in nodes]
        # Whoever is to have the most, not whoever still has it: traffic may be on its way.
        winner = max(candidates, key=lambda found: self._target(found.node), default=None)
        return [self._able(node, found, winner or found) for node, found in zip(nodes, candidates, strict=True)]

    def _able(self, node: NodeFacts, candidate: Candidate, winner: Candidate) -> Ranked:
        in_time = self._chance(node.id) >= IN_TIME
        if node.standing != "live":
            return Ranked(candidate, in_time, f"tried last: {_DOUBTS[node.standing]}")
        wins = self._target(node.id) > 0 or candidate is winner
        why = self._why_won(candidate) if wins else self._why_lost(candidate, winner)
        return Ranked(candidate, in_time, why + self._on_its_way(node))

    def unable(self, node: NodeFacts) -> Ranked:
        """A node that does not serve the model, or must not."""
        rule = refusal(node.region, self._model.regions, self._facts.residency(self._region))
        why = rule if node.id in self._at and rule else self._model.absent.get(node.id, "does not serve this model")
        return Ranked(self._candidate(node, unready_why=why), False, f"not ready: {why}")

    def _candidate(self, node: NodeFacts, *, unready_why: str = "") -> Candidate:
        network = self._facts.network[self._region, node.id]
        at = self._at.get(node.id)
        common = {
            "node": node.id,
            "site": node.site,
            "region": node.region,
            "network_ms_p50": network.p50_ms,
            "network_ms_p95": network.p95_ms,
            "network_times": network,
            "network_measured": self._measured.get(node.id, False),
            "usd_per_hour": node.usd_per_hour,
            "spot": node.spot,
            "ready": not unready_why,
            "unready_why": unready_why,
        }
        if at is None or self._block is None:
            return Candidate(
                **common,  # type: ignore[arg-type]
                service_ms_p50=float("nan"),
                service_ms_p95=float("inf"),
                usd_per_1000=float("inf"),
            )
        offers, service = self._block.offers, self._block.offers.service_times(at)
        doubt = _DOUBTS.get(node.standing, "")
        return Candidate(
            **{**common, "unready_why": unready_why or doubt},  # type: ignore[arg-type]
            service_ms_p50=service.p50_ms,
            service_ms_p95=service.p95_ms,
            service_times=service,
            usd_per_1000=float(offers.usd_per_1000[self._row, at]),
            transfer_usd_per_1000=float(offers.transfer_usd_per_1000[self._row, at]),
            share=float(self._block.shares[self._row, at]),
        )

    def _chance(self, node: str) -> float:
        assert self._block is not None
        return float(self._block.offers.p_in_time[self._row, self._at[node]])

    def _target(self, node: str) -> float:
        """The share that it is to have."""
        assert self._block is not None
        return float(self._block.target[self._row, self._at[node]])

    def _late(self, c: Candidate) -> str:
        assert self._block is not None
        busy, deadline_ms = self._block.offers.busy_times(self._at[c.node]), self._model.deadline_ms
        why = late_because(self._chance(c.node), sum_of(c.network, busy), deadline_ms)
        return why if c.p_in_time(deadline_ms) < IN_TIME else f"{why}, as busy as it would be"

    def _why_won(self, c: Candidate) -> str:
        assert self._block is not None
        objective, deadline_ms = self._block.objective, self._model.deadline_ms
        others = [n for n in self._block.offers.nodes if n.standing == "live" and n.id != c.node]
        part = f"{c.share:.0%} of this region's requests: " if c.share < 1 - _SAME else ""
        if not others:
            return "the only node that serves this model now"
        room = " with room" if self._better_is_full(c) else ""
        if objective == "nearest":
            return f"{part}nearest{room}: {c.network_ms_p50:.1f} ms round trip"
        if objective == "cheapest":
            return f"{part}cheapest{room}: ${format_usd(c.usd_per_1000)} per 1,000"
        p = self._chance(c.node)
        if p >= IN_TIME:
            return f"{part}cheapest in time{room}: {c.total_ms_p95:.0f} of {deadline_ms:.0f} ms at p95"
        return f"{part}soonest: {p:.1%} within {deadline_ms:.0f} ms, and no node does better at that"

    def _better_is_full(self, c: Candidate) -> bool:
        """Whether another node would be the choice if it had room for everybody."""
        assert self._block is not None
        offers, row = self._block.offers, self._row
        merit = offers.network[row, :, _P50] if self._block.objective == "nearest" else offers.usd_per_1000[row]
        able = offers.allowed[row] & (merit < merit[self._at[c.node]])
        if self._block.objective == "cheapest-in-time":
            able &= offers.p_in_time[row] >= IN_TIME
        better = (offers.nodes[at] for at in np.flatnonzero(able))
        return any(node.standing == "live" and self._plan.scarcity.get(node.id, 0.0) > 0 for node in better)

    def _why_lost(self, c: Candidate, winner: Candidate) -> str:
        assert self._block is not None
        objective = self._block.objective
        if objective == "nearest":
            if self._chance(c.node) < BROKEN_BELOW <= self._chance(winner.node):
                return self._late(c)
            if c.network_ms_p50 < winner.network_ms_p50:
                return self._why_not_though_better(c, "nearer", f"by under {HYSTERESIS:.0%}")
            return f"farther: {c.network_ms_p50:.1f} ms against {winner.network_ms_p50:.1f} ms round trip"
        if objective == "cheapest-in-time" and self._chance(c.node) < IN_TIME:
            return self._late(c)
        if c.usd_per_1000 < winner.usd_per_1000:
            return self._why_not_though_better(c, "cheaper", f"by under {HYSTERESIS:.0%}")
        if np.isclose(c.usd_per_1000, winner.usd_per_1000):
            return f"as cheap: {c.total_ms_p95:.0f} ms against {winner.total_ms_p95:.0f} ms at p95"
        return f"dearer: ${format_usd(c.usd_per_1000)} against ${format_usd(winner.usd_per_1000)} per 1,000"

    def _why_not_though_better(self, c: Candidate, better: str, little: str) -> str:
        if self._plan.scarcity.get(c.node, 0.0) > 0:
            return f"{better}, but full: its room goes to those whose next choice costs them more"
        return f"{better} {little}, which does not move traffic"

    def _on_its_way(self, node: NodeFacts) -> str:
        assert self._block is not None
        now, target = self._block.shares[self._row, self._at[node.id]], self._target(node.id)
        return f"; on its way to {target:.0%}" if abs(now - target) > _SAME else ""
