"""How long an engine call of so many rows takes on this node, and how many rows pay: learned, never assumed.

On a CPU a large batch is often slower per row than a small one; on a GPU it is the other way round. So sizes are
measured when a version is loaded, again with every call that serves, and the neighbours of the size in use are tried
now and then. No clock: durations are passed in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# Weight of a new measurement, and of its distance from the mean, as TCP smooths round trips (RFC 6298).
_ALPHA, _BETA = 1 / 8, 1 / 4
# A smaller batch is taken when it has this share of the best size's rows per second: it answers sooner.
_NEARLY = 0.97
# The fastest call is forgotten at this rate a call, by half in 70.
_FORGET = 1.01
# One call in so many tries a neighbour of the size in use.
_EXPLORE_EVERY = 48


class _Size:
    """Calls of one size, smoothed."""

    __slots__ = ("deviation_s", "effort_s", "mean_s", "rows")

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.mean_s = 0.0
        self.deviation_s = 0.0
        self.effort_s = 0.0

    def add(self, seconds: float, effort_s: float) -> None:
        if not self.mean_s:
            self.mean_s, self.deviation_s, self.effort_s = seconds, seconds / 4, effort_s
            return
        self.effort_s += _ALPHA * (effort_s - self.effort_s)
        self.deviation_s += _BETA * (abs(seconds - self.mean_s) - self.deviation_s)
        self.mean_s += _ALPHA * (seconds - self.mean_s)


class ServiceTimes:
    """Of one replica. Its loop and its engine threads share it; every change is one step that any order suits."""

    def __init__(self, max_rows: int, preferred: Sequence[int] = ()) -> None:
        """`max_rows` of 0: requests are served one by one."""
        self._preferred = sorted(preferred)
        sizes = set(preferred) or {1 << power for power in range(max_rows.bit_length())} | {max_rows}
        self._sizes = [_Size(rows) for rows in sorted({1} | sizes - {0})]
        self._rows = [size.rows for size in self._sizes]
        self._best = 0
        self._calls = 0
        # What a call of the best size takes; 0 before anything was measured.
        self.best_mean_s = 0.0
        # What the fastest of the latest calls took, of whatever size: others only slow a call down.
        self.fastest_s = 0.0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are told apart, ascending."""
        return tuple(self._rows)

    @property
    def best(self) -> int:
        """Rows of the call that pays, as far as is known."""
        return self._rows[self._best]

    def add(self, rows: int, seconds: float, effort_s: float | None = None) -> None:
        """Takes in what a call of `rows` took, and what of that it worked rather than waited (None: all of it).

        Which size pays is a matter of effort: while more wants to run than there are cores, every call takes longer,
        and by more the oftener it has to wait for its turn.
        """
        self.fastest_s = min(seconds, _FORGET * self.fastest_s or seconds)
        size = self._sizes[self._index(rows)]
        # A call between two sizes counts for the larger one as if it had been full; one beyond all, for its part.
        part = size.rows / max(1, rows)
        size.add(seconds * part, (seconds if effort_s is None else effort_s) * part)
        self._choose()

    def at_most(self, rows: int, seconds: float) -> None:
        """Takes in that a call of `rows` need not take longer, whatever a bad moment once showed."""
        size = self._sizes[self._index(rows)]
        bound_s = seconds * size.rows / max(1, rows)
        self.fastest_s = min(self.fastest_s, seconds)
        if size.mean_s > bound_s > 0:
            size.mean_s, size.deviation_s = bound_s, min(size.deviation_s, bound_s / 4)
            size.effort_s = min(size.effort_s, bound_s)
            self._choose()

    def limit(self, waiting: int) -> int:
        """Rows that the next call may take while so many wait: the best size, now and then a neighbour of it.

        Of sizes that are preferred, the largest that can be had; if there are none, no more than wait.
        """
        self._calls += 1
        turn, left = divmod(self._calls, _EXPLORE_EVERY)
        most = self._rows[self._best if left else self._neighbour(up=turn % 2 == 1)]
        if not self._preferred:
            return min(most, max(1, waiting))
        return max((size for size in self._preferred if size <= min(most, waiting)), default=most)

    def _neighbour(self, *, up: bool) -> int:
        return min(self._best + 1, len(self._rows) - 1) if up else max(self._best - 1, 0)

    def mean_s(self, rows: int) -> float:
        """What a call of `rows` takes; 0 before anything was measured."""
        size = self._known(rows)
        return size.mean_s * max(1.0, rows / size.rows) if size else 0.0

    def deviation_s(self, rows: int) -> float:
        """How far calls of `rows` are from their mean, on average."""
        size = self._known(rows)
        return size.deviation_s * max(1.0, rows / size.rows) if size else 0.0

    def _known(self, rows: int) -> _Size | None:
        """The smallest measured size that holds `rows`, or else the largest one."""
        at = self._index(rows)
        usual = self._sizes[at]
        if usual.mean_s:
            return usual
        for size in (*self._sizes[at:], *reversed(self._sizes[:at])):
            if size.mean_s:
                return size
        return None

    def _index(self, rows: int) -> int:
        return min(bisect_left(self._rows, rows), len(self._rows) - 1)

    def _choose(self) -> None:
        rates = [size.rows / size.effort_s if size.effort_s else 0.0 for size in self._sizes]
        enough = _NEARLY * max(rates)
        self._best = next(at for at, rate in enumerate(rates) if rate >= enough)
        self.best_mean_s = self._sizes[self._best].mean_s
