"""A version that is served beside the standing one of its model: which requests are its turn, and how long it may take.

Pure decisions; no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.serving.replica import Replica

# Shares are counted in whole parts of this many, so that they add up exactly however long a trial goes on.
_WHOLE = 1_000_000

# Of what is left of a request's time, what stays for the standing version: twice its 95th percentile, some milliseconds
# for the change of hands on a busy machine, and a share of all for the way back.
_STANDING_P95S, _CHANGE_S, _WAY_BACK = 2.0, 0.02, 0.1
# The version on trial is asked only where it gets so much time: with less, a version that is just as fast would fail.
_TRIAL_P95S, _LEAST_S = 2.0, 0.005
# However far away the deadline is: nobody waits longer for a version that hangs.
_MOST_P95S, _MOST_S = 5.0, 1.0


class Share:
    """Every so many-th request, exactly: by error diffusion, so that no luck of the draw gives a version more."""

    __slots__ = ("_due", "_parts")

    def __init__(self, share: float = 0.0) -> None:
        self._due = 0
        self.change(share)

    def change(self, share: float) -> None:
        """From the next request on; what was due stays due. What is no share between 0 and 1 counts as none."""
        self._parts = round(share * _WHOLE) if math.isfinite(share) and 0 < share <= 1 else 0

    def due(self) -> bool:
        """Takes note of one more request; whether it is one of them. Where it cannot be taken, the next one is."""
        # No more than one is ever due: after a while in which none was taken, they do not come in a row.
        self._due = min(self._due, _WHOLE) + self._parts
        return self._due >= _WHOLE

    def take(self) -> None:
        """The request that is due is taken."""
        self._due -= _WHOLE

    def next(self) -> bool:
        """As `due`, and it is taken."""
        due = self.due()
        if due:
            self.take()
        return due


@dataclass(slots=True, eq=False)
class Trial:
    """What one version on trial gets. Belongs to one event loop."""

    replica: Replica
    # Of the requests that name no version, without sequences; of the sequences that begin; of what the standing version
    # answered, what is asked of this one as well.
    requests: Share = field(default_factory=Share)
    sequences: Share = field(default_factory=Share)
    mirrored: Share = field(default_factory=Share)

    def change(self, wanted: pb.Trial) -> None:
        """Takes over the shares that are wanted now."""
        self.requests.change(wanted.share)
        self.sequences.change(wanted.share)
        self.mirrored.change(wanted.mirror_share)


def patience_s(left_s: float | None, standing_p95_s: float) -> float:
    """How long a version on trial may take while the standing one could still answer; 0: there is no time for both.

    `left_s` until the request's deadline, None if it has none.
    """
    most_s = _MOST_S + _MOST_P95S * standing_p95_s
    if left_s is None:
        return most_s
    kept_s = _STANDING_P95S * standing_p95_s + _CHANGE_S + _WAY_BACK * left_s
    found_s = min(left_s - kept_s, most_s)
    return found_s if found_s >= _TRIAL_P95S * standing_p95_s + _LEAST_S else 0.0


def together_s(left_s: float | None, standing_p95_s: float) -> float:
    """The same where the standing version works on the request as well, so that its answer is there by then."""
    most_s = patience_s(None, standing_p95_s)
    return most_s if left_s is None else max(0.0, min(most_s, (1 - _WAY_BACK) * left_s - _CHANGE_S))
