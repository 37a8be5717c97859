"""What a replica has answered so far: as Triton's statistics count it, and as histograms for Prometheus.

Counting must cost next to nothing for each request; whoever wants to read does the adding up. One event loop writes;
other threads may read at any time, and copy what they walk through.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from nearmesh_agent.serving.queue import Answer

_NS_PER_MS = 1_000_000

# From a tiny model on a fast core to a call that is about to be taken for hung; milliseconds.
TIME_BOUNDS_MS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Times of single requests that are kept for whoever compares them.
LATEST = 512

# Answers of one decoupled request that are told apart; what comes after them is not, or a long stream would make the
# statistics as long as itself.
MAX_RESPONSES = 64


class Buckets:
    """A histogram: counts of values up to each bound, and of those above all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Total:
    """How often something happened and how long it took altogether."""

    count: int
    milliseconds: float

    @property
    def ns(self) -> int:
        return round(self.milliseconds * _NS_PER_MS)


@dataclass(slots=True)
class BatchTally:
    """Engine calls of one size, with the reading and writing of all requests that shared them; milliseconds."""

    calls: int = 0
    decode_ms: float = 0.0
    compute_ms: float = 0.0
    encode_ms: float = 0.0


@dataclass(slots=True)
class ResponseTally:
    """The first, the second ... answer of a decoupled model's requests; milliseconds."""

    count: int = 0
    compute_ms: float = 0.0
    encode_ms: float = 0.0


@dataclass(slots=True)
class Tally:
    """Totals since the version came to this node."""

    # Requests by how they ended: "OK", "CANCELLED" or an error's reason.
    outcomes: dict[str, int] = field(default_factory=dict)
    # Of requests answered well: from bytes in to bytes out, and the part of it in the queue.
    service_ms: Buckets = field(default_factory=lambda: Buckets(TIME_BOUNDS_MS))
    queue_ms: Buckets = field(default_factory=lambda: Buckets(TIME_BOUNDS_MS))
    # Of engine calls, however many requests shared them.
    compute_ms: Buckets = field(default_factory=lambda: Buckets(TIME_BOUNDS_MS))
    batch_rows: Buckets = field(default_factory=lambda: Buckets(ROW_BOUNDS))
    # Engine calls by their rows.
    batches: dict[int, BatchTally] = field(default_factory=dict)
    # By their place among their request's answers, MAX_RESPONSES at most.
    responses: list[ResponseTally] = field(default_factory=list)
    # Milliseconds of the latest requests answered well, since they were last taken; not of decoupled models.
    latest_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    # Rows answered, and the engine calls that they shared.
    inferences: int = 0
    executions: int = 0
    # Of requests answered well: their messages and those of their answers.
    bytes_in: int = 0
    bytes_out: int = 0
    # Milliseconds since the epoch of the latest answer; 0 before any.
    last_inference_ms: int = 0
    # How often it came into memory, and how often it had to leave for another version.
    loads: int = 0
    evictions: int = 0
    # On trial: answers of the standing version that this one was asked for as well, and those of them that agreed.
    compared: int = 0
    agreed: int = 0
    # Milliseconds of requests that were answered well, each with the whole of the calls that it shared; of the others.
    _decode_ms: float = 0.0
    _compute_ms: float = 0.0
    _encode_ms: float = 0.0
    _failed_ms: float = 0.0

    def moved(self, bytes_in: int, bytes_out: int) -> None:
        """Counts what an answered request and its answers came to on the wire."""
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out

    def answered(self, answer: Answer, *, rows: int, decode_ms: float, encode_ms: float, now_ms: int) -> None:
        """Counts one answered request; its whole time is the sum of its parts."""
        queue_ms, compute_ms = answer.queue_ms, answer.compute_ms
        service_ms = queue_ms + decode_ms + compute_ms + encode_ms
        self.service_ms.add(service_ms)
        self.latest_ms.append(service_ms)
        self.queue_ms.add(queue_ms)
        self._decode_ms += decode_ms
        self._compute_ms += compute_ms
        self._encode_ms += encode_ms
        self.inferences += rows
        self.last_inference_ms = now_ms
        self.outcomes["OK"] = self.outcomes.get("OK", 0) + 1
        batch = self.batches.get(answer.batch_rows)
        if batch is None:
            batch = self.batches[answer.batch_rows] = BatchTally()
        batch.decode_ms += decode_ms
        batch.encode_ms += encode_ms
        if answer.first:
            self.executions += 1
            batch.calls += 1
            batch.compute_ms += compute_ms
            self.compute_ms.add(compute_ms)
            self.batch_rows.add(answer.batch_rows)

    def responded(self, number: int, *, compute_ms: float, encode_ms: float) -> None:
        """Counts one answer of a decoupled model; `number` is its place among its request's, from 0, without gaps."""
        if number >= MAX_RESPONSES:
            return
        if number == len(self.responses):
            self.responses.append(ResponseTally())
        response = self.responses[number]
        response.count += 1
        response.compute_ms += compute_ms
        response.encode_ms += encode_ms

    def streamed(self, milliseconds: float, now_ms: int) -> None:
        """Counts one request that a decoupled model answered, however often; an instance was its own all the while."""
        self.service_ms.add(milliseconds)
        self.compute_ms.add(milliseconds)
        self._compute_ms += milliseconds
        self.inferences += 1
        self.executions += 1
        self.last_inference_ms = now_ms
        self.outcomes["OK"] = self.outcomes.get("OK", 0) + 1

    def take_latest_ms(self) -> list[float]:
        """What single requests took since this was last asked. On the event loop, by one who asks."""
        taken = list(self.latest_ms)
        self.latest_ms.clear()
        return taken

    def failed(self, outcome: str, milliseconds: float) -> None:
        """Counts one request that ended in an error, or was cancelled."""
        self._failed_ms += milliseconds
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    # As Triton adds them up: of requests, each with the whole of the engine call that it shared.

    @property
    def success(self) -> Total:
        return Total(self.service_ms.count, self.service_ms.total)

    @property
    def fail(self) -> Total:
        """Also what was refused, and what the caller broke off."""
        ended = self.outcomes.copy()
        return Total(sum(ended.values()) - ended.get("OK", 0), self._failed_ms)

    @property
    def queue(self) -> Total:
        return Total(self.queue_ms.count, self.queue_ms.total)

    @property
    def decode(self) -> Total:
        return Total(self.queue_ms.count, self._decode_ms)

    @property
    def compute(self) -> Total:
        return Total(self.service_ms.count, self._compute_ms)

    @property
    def encode(self) -> Total:
        return Total(self.queue_ms.count, self._encode_ms)
