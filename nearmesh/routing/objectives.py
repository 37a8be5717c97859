"""What a call may ask of a route, and what makes a node better at it: by how much it must be before traffic moves.

Whoever decides goes by these: the control plane for all at once, the SDK and the nodes with a route in hand.
"""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from nearmesh.errors import InvalidInput

T = TypeVar("T", float, npt.NDArray[np.float64])

Objective = Literal["cheapest-in-time", "nearest", "cheapest"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
DEFAULT_OBJECTIVE: Objective = "cheapest-in-time"
DEFAULT_DEADLINE_MS = 300.0
# The header (gRPC metadata key) by which a single call names its objective.
OBJECTIVE_HEADER = "nearmesh-objective"

# A node is in time for a locality when at least this share of its requests is, ...
IN_TIME = 0.99
# ... and ill for it when fewer than this are: `nearest` means one that works, where there is one.
BROKEN_BELOW = 0.9

# The present choice stays until another one is cheaper, or nearer, by this share: a price that moves by 5 % moves no
# traffic, nor does the noise of a measurement.
HYSTERESIS = 0.06
# And it stays until it would be late even with this share more of the deadline, so that a node on the edge of it does
# not win and lose by turns. That is on the side of staying: if those who move had to be in time with something to
# spare, the cheap nodes at the edge would be shut out.
GRACE = 0.01
# Round trips that differ by less than this are the same distance.
NEAR_MS = 0.5


def distance_ms(round_trip_ms: T) -> T:
    """Round trips as `nearest` compares them, numbers or arrays of them."""
    found: T = np.floor(round_trip_ms / NEAR_MS) * NEAR_MS
    return found


def staying_distance_ms(distance: T) -> T:
    """How near another node has to be, at most, before who is at that distance is left for it."""
    found: T = np.maximum(0.0, distance - np.maximum(NEAR_MS, HYSTERESIS * distance))
    return found


def parse_objective(text: str) -> Objective:
    """The objective of that name. Raises InvalidInput."""
    for name in get_args(Objective):
        if text == name:
            return name  # type: ignore[no-any-return]
    raise InvalidInput(f"objective {text!r} is not one of {', '.join(OBJECTIVES)}")
