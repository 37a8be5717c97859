"""What the node tells Prometheus about the requests it answers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a tiny model on a fast core to a call that is about to be taken for hung; seconds.
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Label of requests for a model that the node does not have: callers must not be able to make up labels.
UNKNOWN_MODEL = "unknown"


class ServingMetrics:
    """Counters and histograms in a registry of their own, so that two nodes fit into one process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.requests = Counter(
            "nearmesh_requests", "Inference requests answered.", ("model", "status"), registry=self.registry
        )
        self.rejected = Counter(
            "nearmesh_rejected",
            "Inference requests refused for the node's sake, not for their contents.",
            ("model", "reason"),
            registry=self.registry,
        )
        self.service_s = Histogram(
            "nearmesh_service_seconds",
            "Time from bytes in to bytes out, of requests answered well.",
            ("model",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "nearmesh_in_flight", "Inference requests on the node at present.", registry=self.registry
        )
