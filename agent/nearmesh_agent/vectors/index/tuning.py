"""How many lists there are, when they are made anew, and how many rows a search looks at, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Below, all rows are scored one by one, which takes about a millisecond.
LEAST_ROWS = 8_000
# Of the true nearest; the promise is 0.97, and tomorrow's queries are not those that it was measured with. Where the
# full share takes a look at more than a small part of all rows, they are nearly as far from one another as random ones
# are, and somewhat less has to do.
TARGET_RECALL, DEAR_RECALL = 0.99, 0.98
_DEAR_SHARE = 0.03
# With less than this, real searches are not what it was measured with.
LEAST_RECALL = 0.97
# That is looked at after so many searches, and then when there are twice as many, but after no more than so many: it
# takes as long as some hundred of them.
_FIRST_CHECK, _LAST_CHECK = 256, 65_536
# Numbers of results for which it is measured; between them the next larger one counts.
MEASURED_K = (10, 100)
# Lists are made for a table that goes on growing, and anew when it is so many times as large.
_LISTS_PER_ROOT = 2.0
_GROWTH = 2.5
# And when there are so many times as many rows as then, and they lie in the lists so much less evenly.
_UNEVEN_GROWTH, _UNEVENNESS = 1.25, 2.0
# faiss wants that many rows for each list that it trains.
_LEAST_ROWS_PER_LIST = 39
# How many rows are enough is measured anew when there are so many times as many.
_MEASURED_GROWTH = 1.25
# Dead rows take memory and time; copying the others takes more, so it waits until this share of all is dead.
_DEAD_SHARE = 0.3
_LEAST_DEAD = 4_000
# Lists cost something themselves: which are nearest, and which of their rows a filter takes. So all that it takes are
# scored one by one where they are fewer than this many times what is enough.
_ALONE = 2.5
# Rows to be seen for each result, to begin with; and how the numbers that are tried grow.
_LEAST_TRIED = 16
_TRIED_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Tuned:
    """How many of the rows that may be found a search must see, as it was measured."""

    # For the number of results; empty: not measured.
    enough: Mapping[int, int] = field(default_factory=dict)
    # The same where a filter takes some of the rows alone.
    filtered: Mapping[int, int] = field(default_factory=dict)
    # When there were so many.
    rows: int = 0

    def enough_for(self, k: int, rows: int, *, filtered: bool) -> int:
        """Of a table that may have grown since."""
        if not self.enough:
            return rows
        # A filter may be easier than the one that it was measured with, but hardly than none.
        enough = {at: max(most, self.filtered[at]) if filtered else most for at, most in self.enough.items()}
        measured = next((at for at in sorted(enough) if k <= at), max(enough))
        grown = max(1.0, rows / max(self.rows, 1)) * max(1.0, k / measured)
        return min(rows, math.ceil(enough[measured] * grown))

    def is_old(self, rows: int, recall: float) -> bool:
        """Whether it is measured anew. `recall`: of real searches; -1: not known."""
        return rows > self.rows * _MEASURED_GROWTH or 0 <= recall < LEAST_RECALL


@dataclass(frozen=True, slots=True)
class Trained:
    """How lists were when they were made."""

    rows: int
    # How much longer a list is that a search meets than the mean of all; 1: all are equally long.
    unevenness: float


def list_count(rows: int) -> int:
    return max(1, min(int(_LISTS_PER_ROOT * math.sqrt(rows)), rows // _LEAST_ROWS_PER_LIST))


def trains(rows: int, before: Trained | None, unevenness: float = 0.0) -> bool:
    """Whether lists are made, or made anew since `before`, for so many rows."""
    if rows < LEAST_ROWS or before is None:
        return rows >= LEAST_ROWS
    uneven = unevenness >= before.unevenness * _UNEVENNESS
    return rows >= before.rows * (_UNEVEN_GROWTH if uneven else _GROWTH)


def tidies(live: int, dead: int) -> bool:
    """Whether what lives is copied into files of its own."""
    return dead >= _LEAST_DEAD and dead >= (live + dead) * _DEAD_SHARE


def scores_all(taken: int, enough: int) -> bool:
    """Whether the rows that a filter takes are scored one by one, without the lists."""
    return taken <= enough * _ALONE


def least_enough(k: int, rows: int, recall_of: Callable[[int], float]) -> int:
    """The least number of rows, of those tried, with which enough of the nearest are found."""
    tried = _LEAST_TRIED * k
    while tried < rows and recall_of(tried) < (DEAR_RECALL if tried > rows * _DEAR_SHARE else TARGET_RECALL):
        tried = math.ceil(tried * _TRIED_GROWTH)
    return min(tried, rows)


def next_check(searches: int) -> int:
    """The number of searches at which the recall of real ones is looked at next."""
    return searches + min(max(searches, _FIRST_CHECK), _LAST_CHECK)
