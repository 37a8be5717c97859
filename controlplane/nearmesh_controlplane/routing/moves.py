"""How fast traffic moves: at once where nobody feels it, else by a ramp; away from what is broken always at once.

A node that got nothing until now is not ready for everything: its caches are cold, its queue starts to fill before
anyone has measured how it does. So a node's load grows by no more than a part of its capacity each second. Traffic that
is small for who receives it moves in one step, whatever its share.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Of its capacity, what a node may take over in a second. Higher follows prices sooner, lower spares nodes.
RAMP_PER_S = 0.25
# A plan after a long quiet time moves no more at once than one after this.
MOST_S = 1.0
# A new replica begins with this part of its capacity and has all of it after so long.
JOINING_PART = 0.1
JOINING_S = 30.0
_NOTHING = 1e-6


def joined(ready_for_s: Array) -> Array:
    """The part of its capacity that a replica may use which has been ready for so long."""
    found: Array = np.clip(JOINING_PART + (1 - JOINING_PART) * ready_for_s / JOINING_S, JOINING_PART, 1.0)
    return found


def advance(
    held: Array, target: Array, broken: Mask, *, demand: Array, load: Array, capacity: Array, elapsed_s: float
) -> Array:
    """The shares after `elapsed_s` on the way from `held` to `target`; arrays over rows and nodes.

    What is `broken` is left at once, ramp or not; so is what is held by nobody here any more, or not yet.
    """
    gain, loss = np.maximum(target - held, 0.0), np.maximum(held - target, 0.0)
    taken = (demand[:, None] * load * gain).sum(axis=0)
    room = RAMP_PER_S * min(elapsed_s, MOST_S) * capacity
    # A row without demand is felt by nobody.
    slowly = np.where(demand[:, None] > 0, np.minimum(1.0, _ratio(room, taken, 1.0)), 1.0)
    gentle, fled = gain * slowly, np.where(broken, loss, 0.0)
    must = fled.sum(axis=1) + np.maximum(0.0, 1 - held.sum(axis=1))
    moved = np.maximum(gentle.sum(axis=1), must)
    arriving = np.where(
        (gentle.sum(axis=1) >= must)[:, None], gentle, gain * _ratio(must, gain.sum(axis=1), 0.0)[:, None]
    )
    free = loss - fled
    after = held - fled - free * _ratio(moved - must, free.sum(axis=1), 0.0)[:, None] + arriving
    after = np.where(after < _NOTHING, 0.0, after)
    found: Array = after / after.sum(axis=1, keepdims=True)
    return found


def _ratio(part: Array, whole: Array, otherwise: float) -> Array:
    return np.where(whole > 0, part / np.maximum(whole, 1e-12), otherwise)
