"""Why each node won or lost, in words: read from the same arrays that decided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearmesh.routing import IN_TIME, Candidate, Ranked, format_usd
from nearmesh.routing.objectives import BROKEN_BELOW, HYSTERESIS, NEAR_MS
from nearmesh.routing.residency import refusal
from nearmesh.routing.rule import late_because
from nearmesh.routing.times import LEVELS, sum_of
from nearmesh_controlplane.routing.facts import Facts, ModelFacts, NodeFacts
from nearmesh_controlplane.routing.planner import Block, Plan
from nearmesh_controlplane.routing.stack import TWINS

Mask = npt.NDArray[np.bool_]

_DOUBTS = {
    "suspect": "its session just broke",
    "gone": "its session is gone, but no live node serves this model",
}
_NEEDED_MORE = "its room goes to those whose next choice costs them more"
# Shares, and chances, that differ by less are the same.
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
            return Ranked(candidate, in_time, f"tried last: {_DOUBTS[node.standing]}" + self._cold(node))
        wins = self._target(node.id) > 0 or candidate is winner
        why = self._why_won(candidate) if wins else self._why_lost(candidate, winner)
        return Ranked(candidate, in_time, why + self._cold(node) + self._on_its_way(node))

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
        busy = self._block.offers.busy_times(self._at[c.node])
        why = late_because(self._chance(c.node), sum_of(c.network, busy), self._model.deadline_ms)
        return why + self._as_busy(c)

    def _as_busy(self, c: Candidate) -> str:
        """Where the times of this moment, which stand beside it, say something else than those that decided."""
        decided, shown = self._chance(c.node), c.p_in_time(self._model.deadline_ms)
        alike = (decided >= IN_TIME) == (shown >= IN_TIME) and abs(decided - shown) <= _SAME
        return "" if alike else ", as busy as it would be"

    def _why_won(self, c: Candidate) -> str:
        assert self._block is not None
        objective = self._block.objective
        others = [n for n in self._block.offers.nodes if n.standing == "live" and n.id != c.node]
        part = f"{c.share:.0%} of this region's requests: " if c.share < 1 - _SAME else ""
        if not others:
            return "the only node that serves this model now"
        if objective == "cheapest-in-time" and self._chance(c.node) < IN_TIME:
            return part + self._why_won_late(c)
        aside = self._aside(self._better(c))
        if objective == "nearest":
            return f"{part}nearest{aside}: {c.network_ms_p50:.1f} ms round trip"
        if objective == "cheapest":
            return f"{part}cheapest{aside}: ${format_usd(c.usd_per_1000)} per 1,000"
        return f"{part}cheapest in time{aside}: {self._in_time(c)}"

    def _in_time(self, c: Candidate) -> str:
        """How it is in time, by the figures that stand beside it or, where its queue of now makes those late, despite
        them."""
        deadline_ms = self._model.deadline_ms
        if c.p_in_time(deadline_ms) >= IN_TIME:
            return f"{c.total_ms_p95:.0f} of {deadline_ms:.0f} ms at p95"
        usual = f"{self._chance(c.node):.1%} within {deadline_ms:.0f} ms once its present queue is over"
        return f"{usual}, {c.p_in_time(deadline_ms):.1%} with it"

    def _why_won_late(self, c: Candidate) -> str:
        assert self._block is not None
        offers, row, p = self._block.offers, self._row, self._chance(c.node)
        says = f"{p:.1%} within {self._model.deadline_ms:.0f} ms{self._as_busy(c)}"
        better = self._live(offers.allowed[row] & (offers.p_in_time[row] > p + _SAME))
        if not better:
            return f"soonest: {says}, and no node does better at that"
        if offers.p_staying[row, self._at[c.node]] >= IN_TIME and not any(map(self._full, better)):
            return f"stays: {says}, too little under {IN_TIME:.0%} to move traffic"
        return f"soonest{self._aside(better)}: {says}"

    def _better(self, c: Candidate) -> list[str]:
        """The nodes that would be the choice if all had room and traffic came from nowhere yet."""
        assert self._block is not None
        offers, row, own = self._block.offers, self._row, self._at[c.node]
        nearest, chance = self._block.objective == "nearest", offers.p_in_time[row]
        if nearest:
            able = offers.network[row, :, _P50] <= offers.network[row, own, _P50] - NEAR_MS
        else:
            able = offers.usd_per_1000[row] < offers.usd_per_1000[row, own] * (1 - TWINS)
        if nearest and chance[own] >= BROKEN_BELOW:
            able &= chance >= BROKEN_BELOW
        if self._block.objective == "cheapest-in-time":
            able &= chance >= IN_TIME
        return self._live(able & offers.allowed[row])

    def _live(self, mask: Mask) -> list[str]:
        assert self._block is not None
        nodes = (self._block.offers.nodes[at] for at in np.flatnonzero(mask).tolist())
        return [node.id for node in nodes if node.standing == "live"]

    def _aside(self, better: list[str]) -> str:
        """What has to be said beside "best" where others are better."""
        if any(map(self._full, better)):
            return " with room"
        return ", differences aside that move no traffic" if better else ""

    def _full(self, node: str) -> bool:
        return self._plan.scarcity.get(node, 0.0) > 0

    def _why_lost(self, c: Candidate, winner: Candidate) -> str:
        assert self._block is not None
        objective = self._block.objective
        if objective == "nearest":
            return self._why_farther(c, winner)
        chance, best = self._chance(c.node), self._chance(winner.node)
        if objective == "cheapest-in-time" and chance < IN_TIME:
            return self._late(c)
        if objective == "cheapest-in-time" and best < IN_TIME <= chance and self._full(c.node):
            return f"in time, but full: {_NEEDED_MORE}"
        if np.isclose(c.usd_per_1000, winner.usd_per_1000):
            return self._why_not_alike(c, winner)
        if c.usd_per_1000 < winner.usd_per_1000:
            return self._why_not_though_better(c, "cheaper", 1 - c.usd_per_1000 / winner.usd_per_1000)
        return f"dearer: ${format_usd(c.usd_per_1000)} against ${format_usd(winner.usd_per_1000)} per 1,000"

    def _why_farther(self, c: Candidate, winner: Candidate) -> str:
        if self._chance(c.node) < BROKEN_BELOW <= self._chance(winner.node):
            return self._late(c)
        farther_ms = c.network_ms_p50 - winner.network_ms_p50
        if abs(farther_ms) < NEAR_MS and c.usd_per_1000 > winner.usd_per_1000:
            prices = f"${format_usd(c.usd_per_1000)} against ${format_usd(winner.usd_per_1000)} per 1,000"
            return f"as near, and dearer: {prices}"
        if farther_ms < 0:
            return self._why_not_though_better(c, "nearer", -farther_ms / winner.network_ms_p50)
        return f"farther: {c.network_ms_p50:.1f} ms against {winner.network_ms_p50:.1f} ms round trip"

    def _why_not_alike(self, c: Candidate, winner: Candidate) -> str:
        if self._full(c.node):
            return f"as cheap, but full: {_NEEDED_MORE}"
        if c.total_ms_p95 < winner.total_ms_p95:
            return "as cheap, and no reason to move traffic"
        return f"as cheap: {c.total_ms_p95:.0f} ms against {winner.total_ms_p95:.0f} ms at p95"

    def _why_not_though_better(self, c: Candidate, better: str, by: float) -> str:
        if self._full(c.node):
            return f"{better}, but full: {_NEEDED_MORE}"
        if by <= HYSTERESIS:
            return f"{better} by under {HYSTERESIS:.0%}, which does not move traffic"
        return f"{better} by {by:.0%}, but what there is to gain is too little to move traffic now"

    def _cold(self, node: NodeFacts) -> str:
        load_ms = self._model.replicas[node.id].load_ms if node.id in self._model.replicas else 0.0
        return f"; cold: about {max(load_ms / 1000, 0.1):.1f} s to load" if load_ms else ""

    def _on_its_way(self, node: NodeFacts) -> str:
        assert self._block is not None
        now, target = self._block.shares[self._row, self._at[node.id]], self._target(node.id)
        return f"; on its way to {target:.0%}" if abs(now - target) > _SAME else ""
