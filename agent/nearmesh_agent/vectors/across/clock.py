"""When something happened, so that sites agree on what was later although their clocks do not.

A hybrid logical clock: milliseconds since the epoch, a count for what falls into one of them or comes while the clock
stands behind what was heard of, and a part of the node's name. What happens after something was heard of has the
greater stamp, whatever the clocks say. (Kulkarni et al., "Logical Physical Clocks", 2014.)
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable

from nearmesh.errors import InvalidInput

# Of a stamp, from the top: 44 bits of milliseconds (positive as a signed number until 2248), a count, and the node, by
# which two sites that write in the same millisecond differ.
_COUNT_BITS = 10
_NODE_BITS = 10
# A stamp farther ahead than this is of a node whose clock is wrong; taken over, it would be every clock's.
MAX_AHEAD_S = 3600.0


class HybridClock:
    """Of one node; any thread may ask."""

    def __init__(self, node: str, *, last: int = 0, wall_s: Callable[[], float] = time.time) -> None:
        """`last` is the greatest stamp that was given or heard of before a restart."""
        self._node = zlib.crc32(node.encode()) & ((1 << _NODE_BITS) - 1)
        self._wall_s = wall_s
        self._lock = threading.Lock()
        self._last = last >> _NODE_BITS

    def now(self) -> int:
        """Greater than any before, and than any that was heard of."""
        with self._lock:
            self._last = max(int(self._wall_s() * 1000) << _COUNT_BITS, self._last + 1)
            return self._last << _NODE_BITS | self._node

    def heard(self, stamp: int) -> None:
        """Something happened then; what comes next is later."""
        with self._lock:
            self._last = max(self._last, stamp >> _NODE_BITS)

    def check(self, stamp: int) -> None:
        """Another node's. Raises InvalidInput for one that no clock which is right can give."""
        ahead_s = seconds(stamp) - self._wall_s()
        if ahead_s > MAX_AHEAD_S:
            raise InvalidInput(
                f"a change is stamped {ahead_s:.0f} s ahead of this node's clock, at most {MAX_AHEAD_S:.0f} s are "
                "taken: set the clock of the node that wrote it, or of this one"
            )

    @property
    def last(self) -> int:
        """The greatest so far."""
        return self._last << _NODE_BITS | self._node


def seconds(stamp: int) -> float:
    """Since the epoch."""
    return (stamp >> _NODE_BITS + _COUNT_BITS) / 1000


def stamp_at(at_s: float) -> int:
    """The first of a moment."""
    return int(at_s * 1000) << _COUNT_BITS + _NODE_BITS
