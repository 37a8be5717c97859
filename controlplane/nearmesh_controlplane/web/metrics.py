"""What the control plane tells Prometheus: read from its parts when it asks, so that deciding pays nothing for it.

Labels of regions, models and objectives are those that the books of measurements keep, which bound how many there are.
A series that nobody reported for long ends, and begins anew at 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

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
from nearmesh_controlplane.routing.load_reports import LoadReports
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.router import Router

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
    discovery: AggregatedDiscovery | None = None
    load_reports: LoadReports | None = None


@dataclass(slots=True, eq=False)
class MeshMetrics(Collector):
    """Has a registry of its own, so that two control planes fit into one process."""

    observed: Observed
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    async def page(self, _request: Request) -> Response:
        """On the loop, where what it reads is changed: it is a few milliseconds of a large mesh."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def collect(self) -> Iterator[Metric]:
        yield from self._calls()
        yield from self._demand()
        yield from self._planning()
        yield from self._delivery()
        yield from self._nodes()
        yield from self._feed()

    def _calls(self) -> Iterator[Metric]:
        rows = self.observed.measurements.accuracy_now()
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

    def _demand(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("nearmesh_demand_per_second", "Requests per second by origin.", labels=_CALLS[:3])
        for key, per_s in self.observed.measurements.demand_now().items():
            family.add_metric(key, per_s)
        yield family

    def _planning(self) -> Iterator[Metric]:
        done = self.observed.router.work
        yield _counter("plans", "Times that all routes were planned.", done.plans)
        yield _counter("planning_seconds", "Time that planning took.", done.seconds)
        yield _counter("programs", "Linear programs solved for plans.", done.programs)
        yield _gauge("plan_seconds", "Time that the latest plan took.", done.latest_s)
        yield _gauge("unplaced_per_second", "Requests per second that no node has room for.", done.unplaced_per_s)
        yield _gauge("moving", "1 while traffic is on its way to where it was planned to go.", done.moving)
        yield _gauge("generation", "The latest change that routes may follow from.", self.observed.changes.value)
        yield _gauge("leading", "1 where this control plane decides.", _leads(self.observed.role))

    def _delivery(self) -> Iterator[Metric]:
        if self.observed.discovery:
            xds = self.observed.discovery
            yield _gauge("xds_streams", "Open streams of gRPC clients and gateways.", xds.streams)
            yield _counter("xds_pushes", "Responses sent on them.", xds.pushed)
            yield _counter("xds_refused", "Responses that were refused (NACK).", xds.refused)
        if self.observed.load_reports:
            reports = self.observed.load_reports
            yield _gauge("load_report_streams", "Open streams of load reports (LRS).", reports.streams)

    def _nodes(self) -> Iterator[Metric]:
        registry = self.observed.registry
        family = GaugeMetricFamily("nearmesh_nodes", "Machines by presence.", labels=("kind", "presence"))
        there = Counter((node.kind, registry.presence(node.id)) for node in registry.all() if not node.removed)
        for kind in ("node", "gateway"):
            for presence in ("live", "suspect", "gone"):
                family.add_metric([kind, presence], there[kind, presence])
        yield family

    def _feed(self) -> Iterator[Metric]:
        if self.observed.feed:
            state = self.observed.feed.state
            yield _gauge("price_feed_ok", "0 while what the feed says is not in force.", not state.error)
            yield _gauge("price_feed_read_time_seconds", "When the prices in force were read.", state.read_at_s)


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
