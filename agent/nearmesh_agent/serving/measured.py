"""What a replica has measured about itself on this node, and what it tells the router of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nearmesh.package import Batching
from nearmesh.routing.times import Times
from nearmesh.sketch import Sketch
from nearmesh_agent.engines.base import Array, Engine
from nearmesh_agent.serving.batch import BatchLayout
from nearmesh_agent.serving.proof import measure
from nearmesh_agent.serving.queue import Answer
from nearmesh_agent.serving.reading import Reading
from nearmesh_agent.serving.scheduler import Clock
from nearmesh_agent.serving.times import ServiceTimes

# What the weight of a measurement halves in. What a busy minute left fades to what the warm-up showed: a node that was
# slow once must get another chance, and without traffic nothing else would tell that it is fast again.
HALF_LIFE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """What a replica says about itself; zeros before anything was measured."""

    # A request's whole time on the node, and the part of it in which it waited for an engine call.
    service: Times
    queue: Times
    inferences_per_second: float
    in_flight: int


class Measured:
    """Of one version: stays with it while it is out of memory. Belongs to one event loop, but for `warmed_up`."""

    def __init__(self, batching: Batching, clock: Clock) -> None:
        self.times = ServiceTimes(batching.max_batch, batching.preferred_batch_sizes)
        self._clock = clock
        self._service_ms = Reading(half_life_s=HALF_LIFE_S)
        self._queue_ms = Reading(half_life_s=HALF_LIFE_S)
        self._row_ms = Sketch(half_life_s=HALF_LIFE_S)
        # What the warm-up measured: seconds of a lone request, and of a row when many come.
        self._proven_s = self._proven_row_s = 0.0

    def warmed_up(self, engine: Engine, layout: BatchLayout, inputs: Mapping[str, Array]) -> None:
        """Times an engine that has just proven itself. Blocks; for the thread that loads it."""
        measure(engine, layout, inputs, self.times, self._clock)
        self._proven_s = self.times.mean_s(1)
        self._proven_row_s = self.times.mean_s(self.times.best) / self.times.best

    def answered(self, answer: Answer) -> None:
        """Takes note of how long a request waited; and of its engine call, once for all requests that shared it."""
        now_s = self._clock()
        self._queue_ms.add(answer.queue_ms, now_s=now_s)
        if answer.first and not answer.alone:
            self._row_ms.add(answer.compute_ms / answer.batch_rows, now_s=now_s)

    def served(self, service_ms: float) -> None:
        """Takes note of a request's whole time on the node, from bytes in to bytes out."""
        self._service_ms.add(service_ms, now_s=self._clock())

    def too_late(self, service_ms: float) -> None:
        """Takes note of a request that its deadline ended after so long.

        It would have taken longer still. A caller with hardly any time ends sooner than answers do, and proves nothing.
        """
        if service_ms >= self.service().p50_ms:
            self.served(service_ms)

    def patience_s(self, least_s: float) -> float:
        """How long an engine call may take: far longer than a usual one, and than one request of the largest size."""
        times = self.times
        return max(least_s, 10 * times.mean_s(times.best), 3 * times.mean_s(times.sizes[-1]))

    def service(self) -> Times:
        """A request's whole time on the node."""
        # The warm-up's few calls have no 95th percentile: one that the machine held up would be it, for ever, since a
        # node that looks slow gets no requests that could prove otherwise. The fastest is what it can do; requests will
        # soon tell what it does.
        return self._of(self._service_ms, self._proven_s * 1000)

    def stats(self, *, instances: int, in_flight: int) -> ReplicaStats:
        """All of it, for a replica that makes so many engine calls at a time."""
        row_s = self._row_s()
        return ReplicaStats(
            service=self.service(),
            queue=self._of(self._queue_ms, 0.0),
            inferences_per_second=instances / row_s if row_s else 0.0,
            in_flight=in_flight,
        )

    def _of(self, reading: Reading, proven_ms: float) -> Times:
        return reading.times(Times.certain(proven_ms), now_s=self._clock())

    def _row_s(self) -> float:
        # The fastest tenth is what the machine can do when nothing else holds it up.
        trust, fastest_ms = self._row_ms.trust(self._clock()), self._row_ms.quantile(0.1)
        if not trust or fastest_ms is None:
            return self._proven_row_s
        if not self._proven_row_s:
            return fastest_ms / 1000
        return float((fastest_ms / 1000) ** trust * self._proven_row_s ** (1 - trust))
