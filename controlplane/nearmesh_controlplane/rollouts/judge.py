"""Whether a version does worse than the one that stands: looked at each second, from what the nodes say. Pure.

It is taken back when
- a node refuses it: its warm-up or its digest or signature is wrong, or the process ended with it;
- nodes that have it go away without having said that they leave: two of them, or all;
- surely more of its requests fail (Newcombe's bound on the difference, with three failures at least: one error of ten
  thousand is no verdict, and neither is the first of all);
- it is slower on a node for some reports in a row, by a factor and by a number of milliseconds;
- surely fewer of its answers agree than have to (Wilson's bound).
"""

from __future__ import annotations

from collections.abc import Sequence

from nearmesh.v1 import node_pb2
from nearmesh_controlplane.rollouts.evidence import Counts, NodeEvidence
from nearmesh_controlplane.rollouts.rollout import Limits, Rollout
from nearmesh_controlplane.rollouts.statistics import surely_larger_by, wilson
from nearmesh_controlplane.rollouts.views import View
from nearmesh_controlplane.rollouts.wants import on_trial

FAILED = node_pb2.REPLICA_STATE_FAILED

LEAST_FAILURES = 3
# Requests to the standing version in this step, from which on it is judged by them alone.
LEAST_STANDING = 100
LEAST_COMPARED = 5
# Reports in a row, one a second: a hiccup of a node is over by then. The count of requests keeps one slow answer after
# the warm-up from being a 95th percentile.
SLOW_LOOKS = 3
LEAST_TIMED = 10
# A session that broke comes back within a second or two, and a process that was started anew soon after. Two nodes that
# went within a minute have something in common.
LOST_S, LOST_TOGETHER_S = 6.0, 60.0


def breach(rollout: Rollout, nodes: Sequence[NodeEvidence]) -> str:
    """Why it is to be taken back; empty where it is not."""
    return (
        _refused(nodes)
        or _lost(rollout, nodes)
        or _failing(rollout.plan.limits, nodes)
        or _slow(rollout, nodes)
        or _disagreeing(rollout.plan.limits, nodes)
    )


def slow_nodes(rollout: Rollout, views: Sequence[View]) -> list[str]:
    """Those on which it takes too long by what they say now."""
    return [view.node for view in views if view.live and _too_slow(rollout, view)]


def asked(nodes: Sequence[NodeEvidence]) -> dict[str, int]:
    """Requests to the standing version, by node."""
    return {n.view.node: n.old.tried for n in nodes}


def requests(nodes: Sequence[NodeEvidence]) -> int:
    """That the new version answered, compared ones too."""
    return _sum(nodes, new=True).tried


def _refused(nodes: Sequence[NodeEvidence]) -> str:
    return next((f"{n.view.node} refuses it: {n.view.refused}" for n in nodes if n.view.live and n.view.refused), "")


def _lost(rollout: Rollout, nodes: Sequence[NodeEvidence]) -> str:
    told = {*rollout.changed, *rollout.changing}
    trying = [n.view for n in nodes if n.view.node in told or _is_asked(rollout, n.view)]
    lost = [view for view in trying if LOST_S <= view.lost_s < LOST_TOGETHER_S]
    if not lost or (len(lost) < 2 and any(view.live for view in trying)):
        return ""
    names = ", ".join(view.node for view in lost)
    return f"{names} went away without a word soon after it came there"


def _is_asked(rollout: Rollout, view: View) -> bool:
    if rollout.phase == "scouting":
        return view.node == rollout.scout
    return on_trial(rollout, view.node, view.standing)


def _failing(limits: Limits, nodes: Sequence[NodeEvidence]) -> str:
    new, old = _sum(nodes, new=True), _sum(nodes, new=False)
    if new.failed < LEAST_FAILURES:
        return ""
    if old.tried < LEAST_STANDING:
        # Every node has changed over, or the standing version is asked little: what it did before stands for it.
        old = sum((n.old_ever for n in nodes), Counts())
    if surely_larger_by(new.failed, new.tried, old.failed, old.tried) <= limits.error_rate:
        return ""
    return (
        f"{new.failed} of its {new.tried} requests failed, and {old.failed} of {old.tried} of the standing version; "
        f"the difference is surely above {limits.error_rate:g}"
    )


def _too_slow(rollout: Rollout, view: View) -> bool:
    limits = rollout.plan.limits
    standing_ms = rollout.changed.get(view.node, 0.0) or view.standing_ms
    if not standing_ms or not view.new.service_ms_p95:
        return False
    return view.new.service_ms_p95 > max(limits.latency_factor * standing_ms, standing_ms + limits.latency_floor_ms)


def _slow(rollout: Rollout, nodes: Sequence[NodeEvidence]) -> str:
    for n in nodes:
        if n.slow >= SLOW_LOOKS and n.new.tried >= LEAST_TIMED:
            standing_ms = rollout.changed.get(n.view.node, 0.0) or n.view.standing_ms
            return (
                f"on {n.view.node} its 95th percentile is {n.view.new.service_ms_p95:.1f} ms, and {standing_ms:.1f} ms "
                f"of the standing version; {rollout.plan.limits.latency_factor:g} times that, and "
                f"{rollout.plan.limits.latency_floor_ms:g} ms more, are borne"
            )
    return ""


def _disagreeing(limits: Limits, nodes: Sequence[NodeEvidence]) -> str:
    total = _sum(nodes, new=True)
    if not limits.agreement or total.compared < LEAST_COMPARED:
        return ""
    if wilson(total.agreed, total.compared)[1] >= limits.agreement:
        return ""
    return (
        f"{total.agreed} of {total.compared} compared answers agree with the standing version's; "
        f"{limits.agreement:g} of them have to"
    )


def _sum(nodes: Sequence[NodeEvidence], *, new: bool) -> Counts:
    return sum((n.new if new else n.old for n in nodes), Counts())
