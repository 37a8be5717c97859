"""What a replica has answered so far, counted as Triton's statistics count it. Durations are in nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from nearmesh_agent.serving.lanes import Answer

_NS_PER_MS = 1_000_000


@dataclass(slots=True)
class Total:
    """How often something happened and how long it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, milliseconds: float) -> None:
        self.count += 1
        self.ns += round(milliseconds * _NS_PER_MS)


@dataclass(slots=True)
class Tally:
    """Totals since the replica was loaded."""

    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    decode: Total = field(default_factory=Total)
    compute: Total = field(default_factory=Total)
    encode: Total = field(default_factory=Total)
    # Rows answered; equal to engine calls where nothing is batched.
    inferences: int = 0
    executions: int = 0
    # Milliseconds since the epoch of the latest answer; 0 before any.
    last_inference_ms: int = 0

    def answered(self, answer: Answer, *, rows: int, decode_ms: float, encode_ms: float, now_ms: int) -> None:
        """Counts one answered request; its whole time is the sum of its parts."""
        self.queue.add(answer.queue_ms)
        self.decode.add(decode_ms)
        self.compute.add(answer.compute_ms)
        self.encode.add(encode_ms)
        self.success.add(answer.queue_ms + decode_ms + answer.compute_ms + encode_ms)
        self.inferences += rows
        self.executions += 1
        self.last_inference_ms = now_ms

    def failed(self, milliseconds: float) -> None:
        """Counts one request that ended in an error."""
        self.fail.add(milliseconds)
