"""What the control plane tells Prometheus: read from its parts when it asks, so that deciding pays nothing for it.

Labels of regions, models and objectives are those that the books of measurements keep, the busiest of them if clients
make up too many. A series that nobody reported for long ends, and begins anew at 0.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from nearmesh.errors import NotLeader
from nearmesh.xds.ads import AggregatedDiscovery
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.peers.role import Role
from nearmesh_controlplane.prices.feed import Feed
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.routing.accuracy import Accuracy
from nearmesh_controlplane.routing.demand import Key
from nearmesh_controlplane.routing.load_reports import LoadReports
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.router import Router
from nearmesh_controlplane.runs.run import STATES
from nearmesh_controlplane.runs.runs import Runs

# Regions times models times objectives of a large mesh.
MAX_SERIES = 5_000
_CALLS = ("region", "model", "objective", "reporter")
_QUANTILES = (("0.5", "within_p50"), ("0.95", "within_p95"), ("0.99", "within_p99"))


@dataclass(slots=True, kw_only=True)
class Observed:
    """What there is to be told of; servicers are added once they are there."""

    changes: Generation
    registry: Registry
    router: Router
    measurements: Measurements
    role: Role
    feed: Feed | None = None
    runs: Runs | None = None
    discovery: AggregatedDiscovery | None = None
    load_reports: LoadReports | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one moment."""

    calls: Sequence[Accuracy]
    demand: Mapping[Key, float]
    others: Sequence[Metric]


class MeshMetrics:
    """Reads what is told on the loop, which changes it, and writes it down in a thread: of a large mesh it is a lot."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        # Of its own, so that two control planes fit into one process.
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    async def page(self, _request: Request) -> Response:
        text = await asyncio.to_thread(self.written, self.read())
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def read(self) -> Figures:
        """As of now; plans nothing."""
        measurements = self._observed.measurements
        demand = measurements.demand_now()
        return Figures(
            calls=heapq.nlargest(MAX_SERIES, measurements.accuracy_now(), key=lambda row: row.answered + row.failed),
            demand=dict(heapq.nlargest(MAX_SERIES, demand.items(), key=lambda item: item[1])),
            others=[*self._planning(), *self._delivery(), *self._nodes(), *self._feed(), *self._runs()],
        )

    def written(self, figures: Figures) -> bytes:
        """The page."""
        found = [*_calls(figures.calls), _demand(figures.demand), *figures.others, *self._process.collect()]
        return generate_latest(_Read(found))

    def _planning(self) -> Iterator[Metric]:
        done = self._observed.router.work
        yield _counter("plans", "Times that all routes were planned.", done.plans)
        yield _counter("planning_seconds", "Time that planning took.", done.seconds)
        yield _counter("programs", "Linear programs solved for plans.", done.programs)
        yield _counter("plans_given_up", "Plans without an optimum, or without time to find it.", done.given_up)
        yield _gauge("plan_seconds", "Time that the latest plan took.", done.latest_s)
        yield _gauge("unplaced_per_second", "Requests per second that no node has room for.", done.unplaced_per_s)
        yield _gauge("moving", "1 while traffic is on its way to where it was planned to go.", done.moving)
        yield _gauge("generation", "The latest change that routes may follow from.", self._observed.changes.value)
        yield _gauge("leading", "1 where this control plane decides.", _leads(self._observed.role))

    def _delivery(self) -> Iterator[Metric]:
        if self._observed.discovery:
            xds = self._observed.discovery
            yield _gauge("xds_streams", "Open streams of gRPC clients and gateways.", xds.streams)
            yield _counter("xds_pushes", "Responses sent on them.", xds.pushed)
            yield _counter("xds_refused", "Responses that were refused (NACK).", xds.refused)
        if self._observed.load_reports:
            reports = self._observed.load_reports
            yield _gauge("load_report_streams", "Open streams of load reports (LRS).", reports.streams)

    def _nodes(self) -> Iterator[Metric]:
        registry = self._observed.registry
        family = GaugeMetricFamily("nearmesh_nodes", "Machines by presence.", labels=("kind", "presence"))
        there = Counter((node.kind, registry.presence(node.id)) for node in registry.all() if not node.removed)
        for kind in ("node", "gateway"):
            for presence in ("live", "suspect", "gone"):
                family.add_metric([kind, presence], there[kind, presence])
        yield family

    def _feed(self) -> Iterator[Metric]:
        if self._observed.feed:
            state = self._observed.feed.state
            yield _gauge("price_feed_ok", "0 while what the feed says is not in force.", not state.error)
            yield _gauge("price_feed_read_time_seconds", "When the prices in force were read.", state.read_at_s)

    def _runs(self) -> Iterator[Metric]:
        if self._observed.runs:
            runs = self._observed.runs
            family = GaugeMetricFamily("nearmesh_runs", "Federated runs, of late, by state.", labels=("state",))
            counts = runs.counts()
            for state in STATES:
                family.add_metric([state.replace(" ", "_")], counts.get(state, 0))
            yield family
            yield _counter("run_rounds", "Rounds of federated runs that ended here.", runs.rounds_taken)
            yield _counter("runs_taken_up_again", "Times that a run went on after something had died.", runs.taken_up)


def _calls(rows: Sequence[Accuracy]) -> Iterator[Metric]:
    labels = [[row.region, row.model, row.objective, row.reporter] for row in rows]
    answered = CounterMetricFamily("nearmesh_calls_answered", "Calls that were answered.", labels=_CALLS)
    failed = CounterMetricFamily("nearmesh_calls_failed", "Times that a node failed a call.", labels=_CALLS)
    late = CounterMetricFamily("nearmesh_calls_late", "Answers later than the deadline.", labels=_CALLS)
    lateness = GaugeMetricFamily("nearmesh_late_ratio", "Share of late answers, of late.", labels=_CALLS)
    coverage = GaugeMetricFamily(
        "nearmesh_prediction_coverage_ratio",
        "Share of answers within the predicted quantile, of late; the quantile itself when predictions are right.",
        labels=(*_CALLS, "quantile"),
    )
    ratio = GaugeMetricFamily(
        "nearmesh_prediction_actual_ratio", "Mean time over mean predicted median, of late.", labels=_CALLS
    )
    for row, label in zip(rows, labels, strict=True):
        answered.add_metric(label, row.total_answered)
        failed.add_metric(label, row.total_failed)
        late.add_metric(label, row.total_late)
        if row.compared:
            lateness.add_metric(label, row.late)
            ratio.add_metric(label, row.actual_over_predicted)
            for quantile, name in _QUANTILES:
                coverage.add_metric([*label, quantile], getattr(row, name))
    yield from (answered, failed, late, lateness, coverage, ratio)


def _demand(demand: Mapping[Key, float]) -> Metric:
    family = GaugeMetricFamily("nearmesh_demand_per_second", "Requests per second by origin.", labels=_CALLS[:3])
    for key, per_s in demand.items():
        family.add_metric(key, per_s)
    return family


@dataclass(frozen=True, slots=True)
class _Read(Collector):
    """What was read, for the library to write down."""

    metrics: Sequence[Metric]

    def collect(self) -> Sequence[Metric]:
        return self.metrics


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"nearmesh_{name}", help_text, value=value)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"nearmesh_{name}", help_text, value=float(value))


def _leads(role: Role) -> bool:
    try:
        role.check_leads()
    except NotLeader:
        return False
    return True
