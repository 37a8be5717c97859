"""How a rollout goes on: from what it is at and what its nodes say, what it is at next. Pure.

    running: loading -> scouting (one node) -> steps (one share after the other) -> rolling (node after node) -> done
    running <-> paused                     by operators
    running, paused -> rolling back        by a breach, or by an operator
    rolling back -> failed, aborted        once every node that is there has what it had

Every step may be made again: it names what should be, and what is there already changes nothing. So a control plane
that begins in the middle goes on from what is on disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nearmesh.errors import InvalidInput
from nearmesh_controlplane.rollouts.rollout import Rollout, State
from nearmesh_controlplane.rollouts.views import View
from nearmesh_controlplane.rollouts.wants import on_trial

# Requests after which a version that ends its process at once would have done so.
SCOUT_REQUESTS = 10
# So long nodes are watched before one is chosen to go first, which has to be one that is asked. Another one that is
# asked so many times more goes first in its place.
WATCHED_S, MUCH_MORE = 2.0, 4
# A step that gets fewer requests than it wants ends after so many times its time.
PATIENCE = 3.0
# After a canary its version has proven itself; a node that changed over only has to be heard of once more.
AFTER_CANARY_S = 1.0
# Nodes that were told to go back and do not say that they have: the rollout ends all the same, they go on trying.
BACK_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the nodes come to together."""

    # Seconds since the epoch.
    now_s: float
    # Why the version is to be taken back; empty: it is not.
    breach: str = ""
    # Requests that the new version answered since the step began, compared ones too.
    requests: int = 0
    # Requests that each node's standing version was to answer since then.
    asked: Mapping[str, int] = field(default_factory=dict)


def advanced(rollout: Rollout, views: Sequence[View], look: Look) -> Rollout:
    """What the rollout is at now; the same object when nothing is different."""
    if rollout.ended:
        return rollout
    if rollout.state == "rolling back":
        return _back(rollout, views, look.now_s)
    if look.breach:
        return taken_back(rollout, look.breach, "failed", look.now_s)
    expected = [view for view in views if view.expected]
    if views and not expected:
        # None of its nodes is there, or this control plane is cut off: nothing is learnt, so nothing goes on.
        return rollout
    if rollout.phase == "rolling":
        # Also while it is paused: whoever has begun comes to an end.
        rollout = _settled(rollout, expected, look.now_s)
    if rollout.state == "paused" or not all(view.live for view in expected):
        # A session that broke comes back, or its node is soon no longer expected.
        return rollout
    if rollout.phase == "loading":
        return _loading(rollout, expected, look)
    if rollout.phase == "scouting":
        return _scouting(rollout, views, look)
    if rollout.phase == "steps":
        return _steps(rollout, look)
    return _rolling(rollout, expected, look.now_s)


# What operators ask


def paused(rollout: Rollout) -> Rollout:
    """Raises InvalidInput."""
    _check_state(rollout, "paused", "running", "paused")
    return rollout if rollout.state == "paused" else dataclasses.replace(rollout, state="paused")


def resumed(rollout: Rollout, now_s: float) -> Rollout:
    """A step begins anew: how long it was paused says nothing. Raises InvalidInput."""
    _check_state(rollout, "resumed", "running", "paused")
    return rollout if rollout.state == "running" else dataclasses.replace(rollout, state="running", since_s=now_s)


def aborted(rollout: Rollout, by: str, now_s: float) -> Rollout:
    """Raises InvalidInput."""
    if rollout.state == "rolling back":
        return rollout
    _check_state(rollout, "aborted", "running", "paused")
    return taken_back(rollout, f"aborted by {by}", "aborted", now_s)


def taken_back(rollout: Rollout, reason: str, outcome: State, now_s: float) -> Rollout:
    return dataclasses.replace(rollout, state="rolling back", reason=reason, outcome=outcome, since_s=now_s)


def _check_state(rollout: Rollout, what: str, *states: State) -> None:
    if rollout.state not in states:
        raise InvalidInput(f"the rollout of {rollout.name} is {rollout.state}, so it cannot be {what}")


# The phases


def _loading(rollout: Rollout, expected: Sequence[View], look: Look) -> Rollout:
    """A canary's first: every node that has a standing version brings the new one beside it."""
    trying = [view for view in expected if on_trial(rollout, view.node, view.standing)]
    loading = [view for view in trying if not view.loaded_new]
    left_out = {view.node: _why(view) for view in loading if view.still_s > rollout.plan.node_limit_s}
    if left_out:
        rollout = _without(rollout, left_out)
    if len(left_out) < len(loading) or look.now_s - rollout.since_s < WATCHED_S:
        return rollout
    # Where nothing stands there is nothing to be held against, and nobody to protect.
    having = [view.node for view in trying if view.node not in left_out]
    if not having:
        return dataclasses.replace(rollout, phase="rolling", since_s=look.now_s)
    if len(having) == 1:
        return dataclasses.replace(rollout, phase="steps", since_s=look.now_s)
    scout = max(having, key=lambda node: look.asked.get(node, 0))
    return dataclasses.replace(rollout, phase="scouting", scout=scout, since_s=look.now_s)


def _scouting(rollout: Rollout, views: Sequence[View], look: Look) -> Rollout:
    """A version that ends its process would end those of all nodes within a moment: one goes first."""
    scout = next((view for view in views if view.node == rollout.scout), None)
    if scout is not None and scout.lost_s:
        return rollout  # The judge's to say.
    if scout is None or not scout.expected or not on_trial(rollout, scout.node, scout.standing):
        return dataclasses.replace(rollout, phase="loading", scout="", since_s=look.now_s)
    if look.requests < SCOUT_REQUESTS:
        if look.now_s - rollout.since_s < rollout.plan.step_s:
            return rollout
        having = [view.node for view in views if view.expected and on_trial(rollout, view.node, view.standing)]
        busiest = max(having, key=lambda node: look.asked.get(node, 0))
        if look.asked.get(busiest, 0) > MUCH_MORE * look.asked.get(scout.node, 0):
            return dataclasses.replace(rollout, scout=busiest, since_s=look.now_s)
    return dataclasses.replace(rollout, phase="steps", scout="", step=0, since_s=look.now_s)


def _steps(rollout: Rollout, look: Look) -> Rollout:
    plan, for_s = rollout.plan, look.now_s - rollout.since_s
    enough = look.requests >= plan.step_requests or for_s >= PATIENCE * plan.step_s
    if for_s < plan.step_s or not enough:
        return rollout
    if rollout.step + 1 < len(plan.steps):
        return dataclasses.replace(rollout, step=rollout.step + 1, since_s=look.now_s)
    return dataclasses.replace(rollout, phase="rolling", since_s=look.now_s)


def _rolling(rollout: Rollout, expected: Sequence[View], now_s: float) -> Rollout:
    if rollout.changing:
        return rollout
    between_s = AFTER_CANARY_S if rollout.plan.strategy == "canary" else rollout.plan.step_s
    if rollout.changed and now_s - rollout.since_s < between_s:
        return rollout
    left = [view for view in expected if not _is_over(rollout, view)]
    if not left:
        return _done(rollout, now_s)
    # Those that serve nothing of the model yet risk nothing, and need not wait for each other.
    empty = [view for view in left if not view.standing]
    turn = left if rollout.plan.strategy == "all" else empty or left[:1]
    return dataclasses.replace(rollout, changing=tuple(sorted(view.node for view in turn)), since_s=now_s)


def _is_over(rollout: Rollout, view: View) -> bool:
    if view.node in rollout.changed or view.node in rollout.left_out:
        return True
    return view.standing == rollout.digest and view.settled_new


def _settled(rollout: Rollout, expected: Sequence[View], now_s: float) -> Rollout:
    """Of the nodes that were told to change over: those that have, those that are left out, and those that went."""
    there = {view.node: view for view in expected}
    over: dict[str, float] = dict(rollout.changed)
    left_out: dict[str, str] = {}
    still: list[str] = []
    for node in rollout.changing:
        view = there.get(node)
        if view is None:
            # It went away. When it is back, its turn comes again.
            continue
        if view.settled_new:
            over[node] = view.standing_ms
        elif view.still_s > rollout.plan.node_limit_s:
            left_out[node] = _why(view)
        else:
            still.append(node)
    if len(still) == len(rollout.changing):
        return rollout
    found = dataclasses.replace(rollout, changing=tuple(still), changed=over, since_s=now_s)
    return _without(found, left_out)


def _done(rollout: Rollout, now_s: float) -> Rollout:
    listed = "; ".join(f"{node}: {why}" for node, why in sorted(rollout.left_out.items()))
    reason = f"left out, and to follow by themselves: {listed}" if listed else ""
    return dataclasses.replace(rollout, state="done", reason=reason, ended_at_s=now_s)


def _back(rollout: Rollout, views: Iterable[View], now_s: float) -> Rollout:
    late = [view.node for view in views if view.expected and not _is_back(rollout, view)]
    if late and now_s - rollout.since_s < BACK_WITHIN_S:
        return rollout
    reason = f"{rollout.reason}; not yet back: {', '.join(late)}" if late else rollout.reason
    return dataclasses.replace(rollout, state=rollout.outcome, reason=reason, ended_at_s=now_s)


def _is_back(rollout: Rollout, view: View) -> bool:
    if view.standing == rollout.digest:
        return True
    told = view.node in rollout.changed or view.node in rollout.changing
    return view.without_new and (view.serves_old or not told)


def _without(rollout: Rollout, left_out: Mapping[str, str]) -> Rollout:
    return dataclasses.replace(rollout, left_out={**rollout.left_out, **left_out}) if left_out else rollout


def _why(view: View) -> str:
    said = f": {view.new.detail}" if view.new.detail else ""
    return f"nothing moved on it for {view.still_s:.0f} s{said}"
