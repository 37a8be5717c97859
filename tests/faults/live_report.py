"""What came of the live fault run: calls, faults and decisions held against each other. No clock, no sockets.

Times are seconds since the epoch, all of one machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nearmesh.devmesh.load import Call

# Faults by which a site is dead or out of reach, and by which it is there and says nothing.
DEAD, FROZEN = ("kill", "site", "partition"), ("freeze",)
# In which clients have left such a site.
LEFT_WITHIN_S = 2.0
# A plain xDS client learns of a frozen node from calls that ran into their deadline, and looks at them once a second.
XDS_TIMEOUT_S = 1.5
XDS_LOOKS_S = 1.5
# A decision is on its way to a client, and a call that began under the old one ends under the new.
LAG_S = 2.0
# What a client learnt from a fault it may act on for so long: gateways eject for 10 s, the SDK for a second and more.
AFTER_S = 12.0
# A gateway that lost the control plane asks a node, whose snapshot is a little older. That one sends it back when it
# has had the control plane for 15 s itself.
CONTROL_PLANE, AFTER_CONTROL_PLANE_S = "control-plane", 25.0
# Calls to a frozen node that end with the caller's deadline may have begun before it froze.
SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that was done to the mesh."""

    kind: str
    # A node, or "control-plane".
    target: str
    began_s: float
    healed_s: float
    recovered_s: float

    def over(self, since_s: float, until_s: float) -> bool:
        """Whether it was felt in that time."""
        return self.began_s <= until_s and since_s <= self.recovered_s

    def remembered(self, since_s: float, until_s: float) -> bool:
        """Whether clients may have acted on it in that time."""
        after_s = AFTER_CONTROL_PLANE_S if self.target == CONTROL_PLANE else AFTER_S
        return self.over(since_s - after_s, until_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the control plane said from `at_s` on: by node its share, and why."""

    at_s: float
    generation: int
    shares: Mapping[str, float]
    why: Mapping[str, str]

    @property
    def placed(self) -> frozenset[str]:
        """Who is sent requests; the first alone where nobody has a share."""
        some = {node for node, share in self.shares.items() if share > 0}
        return frozenset(some or list(self.shares)[:1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A call that another node answered than the call before it."""

    at_s: float
    way: str
    before: str
    after: str
    # Empty: nothing explains it.
    reason: str
    text: str


def in_force(decisions: Sequence[Decision], since_s: float, until_s: float) -> list[Decision]:
    """Those that a client may have acted on in that time: the last before it, and all in it."""
    earlier = [d for d in decisions if d.at_s < since_s]
    return [*earlier[-1:], *(d for d in decisions if since_s <= d.at_s <= until_s)]


# By node, when it answered calls later than the model's deadline, in order.
Late = Mapping[str, Sequence[float]]


def late_answers(calls: Mapping[str, Sequence[Call]], deadline_ms: float) -> Late:
    found: dict[str, list[float]] = {}
    for call in (call for made in calls.values() for call in made):
        if call.node and call.ms > deadline_ms:
            found.setdefault(call.node, []).append(call.started_s + call.ms / 1000)
    return {node: sorted(times) for node, times in found.items()}


def _overloaded(late: Late, node: str, since_s: float, until_s: float) -> bool:
    times = late.get(node, ())
    at = bisect_left(times, since_s)
    return at < len(times) and times[at] <= until_s


def moves(
    way: str, calls: Iterable[Call], faults: Sequence[Fault], decisions: Sequence[Decision], late: Late
) -> list[Move]:
    """Every change of the answering node, each with the reason for it."""
    found, last = [], ""
    for call in sorted((call for call in calls if call.node), key=lambda call: call.started_s):
        if last and call.node != last:
            reason, text = why_moved(last, call, faults, decisions, late)
            found.append(Move(at_s=call.started_s, way=way, before=last, after=call.node, reason=reason, text=text))
        last = call.node
    return found


def why_moved(
    before: str, call: Call, faults: Sequence[Fault], decisions: Sequence[Decision], late: Late
) -> tuple[str, str]:
    """In one word, and in the words of whoever decided it; both empty when nothing explains it."""
    ended_s = call.started_s + call.ms / 1000
    valid = in_force(decisions, call.started_s - LAG_S, ended_s)
    placing = [d for d in valid if call.node in d.placed]
    if placing:
        newest = placing[-1]
        kind = "shares" if before in newest.placed else "decision"
        return kind, f"generation {newest.generation}: {newest.why.get(call.node, '')}"
    if "after " in call.why:
        return "receipt", call.why
    placed = {node for d in valid for node in d.placed}
    # The call went round whoever was placed; so a fault must have been felt there, or on the control plane, whose word
    # of a newer placement was then still on its way.
    guilty = [
        f for f in faults if f.remembered(call.started_s, ended_s) and f.target in {*placed, before, CONTROL_PLANE}
    ]
    if guilty:
        return "fault", f"{guilty[-1].kind} of {guilty[-1].target}"
    # A node that has no time for a request refuses it, and a gateway asks the next one.
    full = [node for node in placed if _overloaded(late, node, call.started_s - LAG_S, ended_s + LAG_S)]
    if full:
        return "overload", f"{full[0]} answered others too late"
    return ("receipt", call.why) if call.why else ("", "")


def apart(way: str, call: Call, faults: Iterable[Fault]) -> bool:
    """P1's one exception: a plain xDS client's call that was sent to a node which froze."""
    ended_s = call.started_s + call.ms / 1000
    return way == "xds" and any(f.kind in FROZEN and f.over(call.started_s, ended_s) for f in faults)


def left_after_s(calls: Iterable[Call], fault: Fault, late_ms: float) -> float:
    """When the last call began that still went to the dead or frozen node, from the fault on; 0 when none did."""
    wrong = [
        call.started_s - fault.began_s
        for call in calls
        if fault.began_s < call.started_s < fault.healed_s and _went_to(call, fault.target, late_ms)
    ]
    return max(wrong, default=0.0)


def _went_to(call: Call, node: str, late_ms: float) -> bool:
    """It answered, or nobody did, or somebody else at a second attempt, and late for that.

    Of attempts a gateway and gRPC know the number alone; the SDK's receipt says whom it asked before. Whoever left a
    node tries it again by a call now and then; one that is refused at once and answered elsewhere in time is no wait.
    """
    again = call.attempt > 1 or f"after {node}" in call.why
    return bool(call.error) or call.node == node or (again and call.ms > late_ms)


def calm_p95_ms(calls: Mapping[str, Sequence[Call]], faults: Sequence[Fault]) -> float:
    """What a call took on the slowest way before anything was done to the mesh; 0 without calls."""
    began_s = min((fault.began_s for fault in faults), default=float("inf"))
    before = [sorted(c.ms for c in made if c.started_s + c.ms / 1000 < began_s) for made in calls.values()]
    return max((_at(times, 0.95) for times in before if times), default=0.0)


def report(
    calls: Mapping[str, Sequence[Call]], faults: Sequence[Fault], decisions: Sequence[Decision], deadline_ms: float
) -> dict[str, Any]:
    """All figures, by way and by kind of fault."""
    late = late_answers(calls, deadline_ms)
    moved = [move for way, made in calls.items() for move in moves(way, made, faults, decisions, late)]
    kinds = sorted({fault.kind for fault in faults})
    return {
        "deadline_ms": deadline_ms,
        "calm_p95_ms": round(calm_p95_ms(calls, faults), 1),
        "ways": {way: _way(way, made, faults, deadline_ms) for way, made in calls.items()},
        "kinds": {kind: _kind(calls, [f for f in faults if f.kind == kind], faults, deadline_ms) for kind in kinds},
        "moves": {
            "all": len(moved),
            "by_reason": dict(Counter(move.reason or "unexplained" for move in moved)),
            "unexplained": [asdict(move) for move in moved if not move.reason][:SHOWN],
        },
        "decisions": len(decisions),
        "faults": [asdict(fault) for fault in faults],
        "errors": _errors(calls, faults)[: 5 * SHOWN],
    }


def _errors(calls: Mapping[str, Sequence[Call]], faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Those first that nothing excuses."""
    found = [
        {"way": way, "apart": apart(way, call, faults), "during": _during(call, faults), **asdict(call)}
        for way, made in calls.items()
        for call in made
        if call.error
    ]
    return sorted(found, key=lambda error: error["apart"])


def _way(way: str, calls: Sequence[Call], faults: Sequence[Fault], deadline_ms: float) -> dict[str, Any]:
    times = sorted(call.ms for call in calls) or [0.0]
    failed = [call for call in calls if call.error]
    return {
        "calls": len(calls),
        "errors": sum(not apart(way, call, faults) for call in failed),
        "errors_frozen_xds": sum(apart(way, call, faults) for call in failed),
        # While nothing was done to the mesh: the machine itself had no room for the calls.
        "of_those_undisturbed": sum(not _during(call, faults) for call in failed),
        "of_those_cut_off": sum(bool(call.cut_off) for call in failed),
        "late_share": round(sum(ms > deadline_ms for ms in times) / len(times), 4),
        "p50_ms": round(_at(times, 0.5), 1),
        "p99_ms": round(_at(times, 0.99), 1),
        "max_ms": round(times[-1], 1),
        "by_node": dict(Counter(call.node for call in calls if call.node)),
    }


def _kind(
    calls: Mapping[str, Sequence[Call]], mine: Sequence[Fault], faults: Sequence[Fault], deadline_ms: float
) -> dict[str, Any]:
    felt = {
        way: [c for c in made if any(f.began_s <= c.started_s <= f.recovered_s for f in mine)]
        for way, made in calls.items()
    }
    found: dict[str, Any] = {
        "faults": len(mine),
        "calls": {way: len(made) for way, made in felt.items()},
        "errors": {way: sum(bool(c.error) and not apart(way, c, faults) for c in made) for way, made in felt.items()},
    }
    if mine[0].kind in DEAD + FROZEN:
        # Of two faults at a time nobody could say which one a call had waited for.
        alone = [
            fault
            for fault in mine
            if not any(other.over(fault.began_s, fault.healed_s) for other in faults if other is not fault)
        ]
        found["alone"] = len(alone)
        found["left_within_s"] = {
            way: round(max((left_after_s(made, fault, deadline_ms) for fault in alone), default=0.0), 2)
            for way, made in calls.items()
        }
    return found


def _during(call: Call, faults: Iterable[Fault]) -> list[str]:
    ended_s = call.started_s + call.ms / 1000
    return [f"{f.kind} of {f.target}" for f in faults if f.over(call.started_s, ended_s)]


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def broken(found: Mapping[str, Any]) -> list[str]:
    """What the run promised and did not hold, each in a line."""
    wrong = [f"{way}: {figures['errors']} errors" for way, figures in found["ways"].items() if figures["errors"]]
    for kind, figures in found["kinds"].items():
        for way, seconds in figures.get("left_within_s", {}).items():
            allowed_s = XDS_TIMEOUT_S + XDS_LOOKS_S if way == "xds" and kind in FROZEN else LEFT_WITHIN_S
            if seconds > allowed_s:
                wrong.append(f"{way}: {seconds} s to leave after {kind}, {allowed_s} s are allowed")
    unexplained = found["moves"]["by_reason"].get("unexplained", 0)
    if unexplained:
        wrong.append(f"{unexplained} moves that nothing explains, such as {found['moves']['unexplained'][0]}")
    return wrong
