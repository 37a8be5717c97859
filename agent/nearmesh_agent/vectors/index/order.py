"""Slots in the order of their ids, for whoever reads a table page by page: made once, and not anew for every page."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from heapq import merge

import numpy as np
from numpy.typing import NDArray

# Sorted in pieces of so many: sorting holds up all other threads, merging does not.
_PIECE = 20_000
# Newer slots are sorted for each page, until there are so many, or this share of all.
_MOST_NEWER, _MOST_NEWER_SHARE = 2_000, 0.1

_NONE = np.empty(0, np.int64)


class Order:
    """Of the slots of one table. Pages may be asked for from several threads; the last order that was made is kept."""

    def __init__(self, ids: Sequence[str]) -> None:
        """`ids` by slot; grows at its end."""
        self._ids = ids
        self._sorted = _NONE

    def after(self, id_: str, used: int) -> Iterator[NDArray[np.int64]]:
        """The first `used` slots whose ids come after this one, in their order, in arrays that grow longer."""
        order = self._order(used)
        first = bisect_right(order, id_, key=self._ids.__getitem__)
        size = _MOST_NEWER
        while first < len(order):
            yield order[first : first + size]
            first, size = first + size, size * 2

    def _order(self, used: int) -> NDArray[np.int64]:
        known = self._sorted
        if len(known) > used or used - len(known) > max(_MOST_NEWER, used * _MOST_NEWER_SHARE):
            known = self._made(0, used)
            self._sorted = known
        if used == len(known):
            return known
        newer = self._made(len(known), used)
        places = [bisect_right(known, self._ids[slot], key=self._ids.__getitem__) for slot in newer.tolist()]
        return np.insert(known, places, newer)

    def _made(self, start: int, end: int) -> NDArray[np.int64]:
        key = self._ids.__getitem__
        pieces = [sorted(range(at, min(at + _PIECE, end)), key=key) for at in range(start, end, _PIECE)]
        return np.fromiter(pieces[0] if len(pieces) == 1 else merge(*pieces, key=key), np.int64, end - start)
