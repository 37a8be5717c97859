"""The requests that wait for one replica: the most urgent first, requests of one kind together.

Urgency is the priority, then the deadline (earliest deadline first), then the order of arrival. Not thread-safe: the
scheduler holds its lock around every call. No clock: `now_s` is passed in.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from nearmesh_agent.engines.base import Array

# Triton's priorities: 1 is the highest, 0 means the default. Callers may rank themselves above it or below.
DEFAULT_PRIORITY = 2
LOWEST_PRIORITY = 9
# So many more of those who left than of those who wait may be in the heaps before they are swept out.
_MOST_LEFT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one replica's queue."""

    # Requests that may wait for an instance.
    waiting: int = 64
    # How long a request waits for company although an instance is free; 0: not at all.
    max_delay_s: float = 0.0


# Not frozen: it is made for every request, and a frozen one takes three times as long to make.
@dataclass(slots=True)
class Answer:
    """What one request got from the engine, and where its time on the node went."""

    outputs: Mapping[str, Array]
    queue_ms: float
    compute_ms: float
    # Rows of the engine call that this request shared; one request of each call stands for it in the statistics.
    batch_rows: int = 1
    first: bool = True
    # The call had the machine for itself.
    alone: bool = False
    # Rows of this request alone.
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Prospect:
    """A request whose tensors are still on their way."""

    rows: int
    priority: int
    # On the scheduler's clock; infinite when the caller set none.
    deadline_s: float


@dataclass(slots=True, eq=False)
class Waiting:
    """One request in the queue."""

    inputs: Mapping[str, Array]
    rows: int
    # Requests of one kind may share an engine call.
    kind: Hashable
    priority: int
    # On the scheduler's clock; infinite when the caller set none.
    deadline_s: float
    entered_s: float
    future: asyncio.Future[Answer]
    # Nobody waits for it any more: it was cancelled, answered or taken by an engine.
    gone: bool = field(default=False)

    @property
    def urgency(self) -> tuple[int, float]:
        """The smaller, the sooner."""
        return self.priority, self.deadline_s


@dataclass(slots=True)
class _Level:
    """What waits at one priority."""

    count: int = 0
    rows: int = 0
    # Not before any deadline that waits here; exact whenever requests come in the order of their deadlines.
    latest_s: float = -math.inf


_Heap = list[tuple[int, float, int, Waiting]]


class RequestQueue:
    """See the module. Bounds are the caller's business."""

    def __init__(self) -> None:
        self._heaps: dict[Hashable, _Heap] = {}
        self._levels: dict[int, _Level] = {}
        self._arrivals = 0
        self._count = 0
        # Those who left and are still in their heaps.
        self._left = 0
        self.rows = 0
        # Of a request that waits, at most; exact when it was last empty.
        self.most_rows = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiting]:
        """Whoever still waits, in no order."""
        return (entry[3] for heap in self._heaps.values() for entry in heap if not entry[3].gone)

    def push(self, request: Waiting) -> None:
        self._arrivals += 1
        heap = self._heaps.get(request.kind)
        if heap is None:
            heap = self._heaps[request.kind] = []
        heapq.heappush(heap, (request.priority, request.deadline_s, self._arrivals, request))
        level = self._levels.get(request.priority)
        if level is None:
            level = self._levels[request.priority] = _Level()
        level.count += 1
        level.rows += request.rows
        level.latest_s = max(level.latest_s, request.deadline_s)
        self._count += 1
        self.rows += request.rows
        self.most_rows = max(self.most_rows, request.rows)

    def leave(self, request: Waiting) -> bool:
        """Takes out a request that nobody waits for any more; False if it is not here."""
        if request.gone:
            return False
        self._forget(request)
        # It stays in its heap until it comes to the top; its tensors need not wait with it.
        request.inputs = {}
        self._left += 1
        if self._left > self._count + _MOST_LEFT:
            self._sweep()
        return True

    def rows_ahead(self, priority: int, deadline_s: float) -> int:
        """Rows that would be served before a request of this urgency."""
        ahead = 0
        for number, level in self._levels.items():
            if number < priority or (number == priority and level.latest_s <= deadline_s):
                ahead += level.rows
            elif number == priority:
                ahead += sum(r.rows for r in self if r.priority == priority and r.deadline_s <= deadline_s)
        return ahead

    def behind(self, priority: int, deadline_s: float) -> list[Waiting]:
        """Those of the same priority that a request of this urgency would overtake, the most urgent first."""
        level = self._levels.get(priority)
        if level is None or level.latest_s <= deadline_s:
            return []
        found = (r for r in self if r.priority == priority and r.deadline_s > deadline_s)
        return sorted(found, key=lambda request: request.deadline_s)

    def least_urgent(self) -> Waiting | None:
        return max(self, key=lambda request: request.urgency, default=None)

    def pop(self, most_rows: int, now_s: float) -> tuple[list[Waiting], list[Waiting]]:
        """A batch with the most urgent request at its head, of up to `most_rows` unless that one alone has more.

        The second list are those whose deadline had passed when their turn came.
        """
        late: list[Waiting] = []
        batch: list[Waiting] = []
        heap = self._most_urgent(now_s, late)
        if heap is None:
            return batch, late
        rows = 0
        while (request := self._head(heap, now_s, late)) and (not batch or rows + request.rows <= most_rows):
            heapq.heappop(heap)
            self._forget(request)
            batch.append(request)
            rows += request.rows
        if not heap:
            del self._heaps[batch[0].kind]
        return batch, late

    def _most_urgent(self, now_s: float, late: list[Waiting]) -> _Heap | None:
        best: _Heap | None = None
        for kind, heap in list(self._heaps.items()):
            if self._head(heap, now_s, late) is None:
                del self._heaps[kind]
            elif best is None or heap[0] < best[0]:
                best = heap
        return best

    def _head(self, heap: _Heap, now_s: float, late: list[Waiting]) -> Waiting | None:
        """The most urgent request of a kind that is still wanted; what is before it leaves."""
        while heap:
            request = heap[0][3]
            if request.gone:
                self._left -= 1
            elif request.deadline_s > now_s:
                return request
            else:
                self._forget(request)
                late.append(request)
            heapq.heappop(heap)
        return None

    def _sweep(self) -> None:
        """Empties the heaps of those who left: what never comes to the top would stay as long as others keep coming."""
        for kind, heap in list(self._heaps.items()):
            heap[:] = [entry for entry in heap if not entry[3].gone]
            heapq.heapify(heap)
            if not heap:
                del self._heaps[kind]
        self._left = 0

    def _forget(self, request: Waiting) -> None:
        request.gone = True
        self._count -= 1
        self.rows -= request.rows
        level = self._levels[request.priority]
        level.count -= 1
        level.rows -= request.rows
        if not level.count:
            del self._levels[request.priority]
        if not self._count:
            self.most_rows = 0
