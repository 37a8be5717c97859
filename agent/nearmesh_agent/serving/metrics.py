"""What the node tells Prometheus: read from the replicas when it asks, so that requests pay nothing for it.

Series of a version begin at 0 when it comes to the node and end when it leaves, so no counter ever goes back while it
is served; a version that comes back begins anew, which Prometheus takes for the restart that it is. Labels are the
models of the table alone: callers must not be able to make up any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from nearmesh.errors import DeadlineExceeded, Draining, EngineFailure, MeshError, NotReady, Overloaded
from nearmesh_agent.serving.gpu import GpuFigures
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.tally import Buckets, Tally

# Labels of requests that reached no model of the node. A model may have this name, but no version is without one.
UNKNOWN_MODEL, NO_VERSION = "unknown", ""

# A request that ended with one of these was refused for the node's sake, not for its contents.
REFUSALS = frozenset({Overloaded.reason, Draining.reason, NotReady.reason, DeadlineExceeded.reason})

# How requests end by the node's own fault.
FAULTS = REFUSALS | {EngineFailure.reason, MeshError.reason}

_LABELS = ("model", "version")
_MS = 0.001

# Labels with their replica.
_Found = Sequence[tuple[list[str], Replica]]

_HISTOGRAMS: tuple[tuple[str, str, Callable[[Tally], Buckets], float], ...] = (
    ("service_seconds", "Time from bytes in to bytes out, of requests answered well.", lambda t: t.service_ms, _MS),
    ("queue_seconds", "Time in the queue, of requests answered well.", lambda t: t.queue_ms, _MS),
    ("compute_seconds", "Time of engine calls, however many requests shared them.", lambda t: t.compute_ms, _MS),
    ("batch_rows", "Rows of engine calls.", lambda t: t.batch_rows, 1),
)
_COUNTERS: tuple[tuple[str, str, Callable[[Tally], int]], ...] = (
    ("inferences", "Rows answered.", lambda t: t.inferences),
    ("loads", "Times that the version came into memory.", lambda t: t.loads),
    ("evictions", "Times that the version left memory for another one.", lambda t: t.evictions),
    ("compared", "Answers of the standing version that this one on trial was asked for as well.", lambda t: t.compared),
    ("agreed", "Of those compared, answers that agreed.", lambda t: t.agreed),
)
_GAUGES: tuple[tuple[str, str, Callable[[Replica], float]], ...] = (
    ("in_flight", "Inference requests that wait or run.", lambda r: r.in_flight),
    ("waiting", "Inference requests that wait.", lambda r: r.waiting),
    ("busy_ratio", "The share of the instances that compute, 0 to 1.", lambda r: r.busy_share),
    ("load_seconds", "What the latest load into memory took.", lambda r: r.load_s),
    ("memory_bytes", "What the version takes in memory at the moment.", lambda r: r.held_bytes),
    ("resident", "1 while the version is in memory.", lambda r: r.active),
    ("ready", "0 while an engine call hangs, or calls fail.", lambda r: r.ready),
    ("on_trial", "1 while the version is served beside the standing one.", lambda r: r.on_trial),
)


def fault_of(reason: str) -> str:
    """How it is counted that a version on trial ended like this what the standing version answered."""
    return reason if reason in FAULTS else EngineFailure.reason


class ServingMetrics(Collector):
    """Has a registry of its own, so that two nodes fit into one process. `collect` runs in a thread of the scrape's."""

    def __init__(self, replicas: Iterable[Replica] = (), *, gpus: Collector | None = None) -> None:
        """`replicas` are looked through at each scrape: the node's table."""
        self._replicas = replicas
        self._unknown: dict[str, int] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.registry.register(gpus or GpuFigures())
        ProcessCollector(registry=self.registry)

    def unknown(self, outcome: str) -> None:
        """Counts a request that reached no model of this node."""
        self._unknown[outcome] = self._unknown.get(outcome, 0) + 1

    def collect(self) -> Iterator[Metric]:
        # A version may be here twice, when its package was published anew under the same number: the latest speaks.
        latest = {(replica.name, replica.version): replica for replica in self._replicas}
        found = [(list(labels), replica) for labels, replica in latest.items()]
        yield from self._requests(found)
        yield from _histograms(found)
        yield from _counters(found)
        yield from _gauges(found)

    def _requests(self, found: _Found) -> Iterator[Metric]:
        requests = CounterMetricFamily("nearmesh_requests", "Inference requests ended.", labels=(*_LABELS, "status"))
        rejected = CounterMetricFamily(
            "nearmesh_rejected",
            "Inference requests refused for the node's sake, not for their contents.",
            labels=(*_LABELS, "reason"),
        )
        ended = [(labels, replica.tally.outcomes) for labels, replica in found]
        for labels, outcomes in (*ended, ([UNKNOWN_MODEL, NO_VERSION], self._unknown)):
            # Copied in one step: requests go on being counted meanwhile.
            for outcome, count in outcomes.copy().items():
                requests.add_metric([*labels, outcome], count)
                if outcome in REFUSALS:
                    rejected.add_metric([*labels, outcome], count)
        yield requests
        yield rejected


def _histograms(found: _Found) -> Iterator[Metric]:
    for name, help_text, read, scale in _HISTOGRAMS:
        family = HistogramMetricFamily(f"nearmesh_{name}", help_text, labels=_LABELS)
        for labels, replica in found:
            buckets = read(replica.tally)
            family.add_metric(labels, _cumulative(buckets, scale), buckets.total * scale)
        yield family


def _cumulative(buckets: Buckets, scale: float) -> list[tuple[str, float]]:
    # Rounded: a bound is part of a series' name, and 0.1 ms must not be 0.00010000000000000002 s.
    bounds = [str(round(float(bound) * scale, 9)) for bound in buckets.bounds]
    return list(zip([*bounds, "+Inf"], accumulate(buckets.counts.copy()), strict=True))


def _counters(found: _Found) -> Iterator[Metric]:
    for name, help_text, count in _COUNTERS:
        counter = CounterMetricFamily(f"nearmesh_{name}", help_text, labels=_LABELS)
        for labels, replica in found:
            counter.add_metric(labels, count(replica.tally))
        yield counter


def _gauges(found: _Found) -> Iterator[Metric]:
    for name, help_text, value in _GAUGES:
        gauge = GaugeMetricFamily(f"nearmesh_{name}", help_text, labels=_LABELS)
        for labels, replica in found:
            gauge.add_metric(labels, value(replica))
        yield gauge
