"""The node's load as gRPC clients understand it: an OrcaLoadReport in the trailers of each answer.

gRPC's weighted round robin (gRFC A58, over the reports of gRFC A51) gives an endpoint the weight

    requests per second / (utilization + errors per second / requests per second x penalty)

so what matters is their ratio, and all of them are averages over the same few seconds. Utilization is the scarcer of
the two things that a node has to offer, and is 1 where that one is used up, more where requests queue for it:

- its engines: engine calls that run, and calls that wait, for each instance (by Little's law the seconds that they
  took, divided by the seconds that passed). Requests wait singly and are served together, so those that wait count as
  the calls that they will share. A model has as many instances as suit the machine, so the shares of several models
  add up.
- its event loop, which reads and writes for all of them: the share of time in which its thread computed.

Requests are those answered well; what the node refused or failed are its errors, and what callers got wrong is neither.
A client that sees no trailers, or only zeros in them, weighs the endpoint as the average of the others.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

from nearmesh_agent.engines.cores import usable_cores
from nearmesh_agent.serving.metrics import FAULTS
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.tally import Tally

TRAILER = "endpoint-load-metrics-bin"

# Reports are as old as this at most; clients look at the latest about once a second.
EVERY_S = 0.1
# What averages forget with: more is calmer, less is quicker to tell of a burst.
MEMORY_S = 2.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a report says. Rates and shares are averages, `queue` is of the moment."""

    # Of the cores that the process may use.
    cpu: float = 0.0
    # See the module.
    utilization: float = 0.0
    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    # Requests that wait.
    queue: int = 0


class _Happened(NamedTuple):
    """Between two looks; divided by the time between them, a rate."""

    cpu_s: float = 0.0
    loop_s: float = 0.0
    # Seconds of calls that ran or waited, for each instance.
    engine_s: float = 0.0
    answered: float = 0.0
    failed: float = 0.0


class _Counted(NamedTuple):
    """What a replica's tally said at a look."""

    answered: float = 0.0
    failed: float = 0.0
    calls: float = 0.0
    compute_ms: float = 0.0
    queue_ms: float = 0.0


class OrcaReporter:
    """Of one node. Belongs to the thread of its event loop."""

    def __init__(
        self,
        replicas: Iterable[Replica],
        *,
        clock: Clock = time.monotonic,
        process_clock: Clock = time.process_time,
        thread_clock: Clock = time.thread_time,
    ) -> None:
        """`replicas` are looked through at each report: the node's table. The clocks count the CPU's seconds."""
        self._replicas = replicas
        self._clock = clock
        self._process_clock = process_clock
        self._thread_clock = thread_clock
        self._cores = usable_cores()
        self._looked_s = clock()
        self._clocks = process_clock(), thread_clock()
        self._counted: WeakKeyDictionary[Replica, _Counted] = WeakKeyDictionary()
        # Averages, of a second each; None before the first look.
        self._rates: _Happened | None = None
        self._due_s = -math.inf
        self._metadata: tuple[tuple[str, bytes], ...] = ()

    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Trailing metadata for an answer; measured anew every EVERY_S at most."""
        now = self._clock()
        if now >= self._due_s:
            self._due_s = now + EVERY_S
            self._metadata = ((TRAILER, encode(self.load(now))),)
        return self._metadata

    def utilization(self) -> float:
        """The node's, as of now."""
        return self.load(self._clock()).utilization

    def load(self, now_s: float) -> Load:
        """Takes in what happened since the last look."""
        elapsed_s = now_s - self._looked_s
        if elapsed_s > 0:
            self._looked_s = now_s
            rates = _Happened(*(value / elapsed_s for value in self._happened()))
            weight = 1 - math.exp(-elapsed_s / MEMORY_S)
            before = self._rates or rates
            self._rates = _Happened(*(old + weight * (new - old) for old, new in zip(before, rates, strict=True)))
        average = self._rates or _Happened()
        return Load(
            cpu=average.cpu_s / self._cores,
            utilization=max(average.engine_s, average.loop_s),
            requests_per_s=average.answered,
            errors_per_s=average.failed,
            queue=sum(replica.waiting for replica in self._replicas),
        )

    def _happened(self) -> _Happened:
        """Since the last look."""
        before, self._clocks = self._clocks, (self._process_clock(), self._thread_clock())
        parts = [_Happened(self._clocks[0] - before[0], self._clocks[1] - before[1])]
        for replica in self._replicas:
            # A version that came since then has all that it counted from this time.
            known = self._counted.get(replica, _Counted())
            found = self._counted[replica] = _counted(replica.tally)
            parts.append(_share(_Counted(*(new - old for old, new in zip(known, found, strict=True))), replica))
        return _Happened(*map(sum, zip(*parts, strict=True)))


def answered_and_failed(tally: Tally) -> tuple[int, int]:
    """Requests that were answered, and those that were refused or failed by the node's own fault."""
    return tally.service_ms.count, sum(tally.outcomes.get(outcome, 0) for outcome in FAULTS)


def _counted(tally: Tally) -> _Counted:
    return _Counted(*answered_and_failed(tally), tally.executions, tally.compute_ms.total, tally.queue_ms.total)


def _share(grown: _Counted, replica: Replica) -> _Happened:
    """What one replica takes of the node."""
    calls_of_request = grown.calls / grown.answered if grown.answered else 0.0
    engine_ms = grown.compute_ms + grown.queue_ms * calls_of_request
    # Nobody saw how a version on trial failed: the standing one answered.
    failed = 0.0 if replica.on_trial else grown.failed
    return _Happened(engine_s=engine_ms / 1000 / max(1, replica.instances), answered=grown.answered, failed=failed)


# Wire types of protobuf's encoding.
_FIXED64, _LENGTH = 1, 2


def encode(load: Load) -> bytes:
    """An `xds.data.orca.v3.OrcaLoadReport`, written by hand: an agent needs no other message of xDS."""
    queue = _string(1, "queue") + _double(2, load.queue)
    return b"".join(
        (
            _double(1, load.cpu),
            _double(6, load.requests_per_s),
            _double(7, load.errors_per_s),
            # named_metrics, a map: each entry is a message of its key and its value.
            bytes((8 << 3 | _LENGTH, len(queue))) + queue,
            _double(9, load.utilization),
        )
    )


def _double(field: int, value: float) -> bytes:
    # A clock that was set back, or rounding, must not make a report that clients refuse: no figure is below 0.
    return struct.pack("<Bd", field << 3 | _FIXED64, max(0.0, value))


def _string(field: int, value: str) -> bytes:
    written = value.encode()
    return bytes((field << 3 | _LENGTH, len(written))) + written
