"""What Prometheus is told of the vectors, as their process said last; nothing where the node keeps none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.part import Vectors

_LABELS = ("namespace", "collection")
_GAUGES: tuple[tuple[str, str, Callable[[pb.Collection], float]], ...] = (
    ("rows", "Rows.", lambda c: c.rows),
    ("bytes", "What they take in memory.", lambda c: c.bytes),
    ("fresh_rows", "Rows that are not in the index yet; they are searched exactly.", lambda c: c.fresh_rows),
    (
        "recall",
        "Share of the true nearest 10 found lately, on a sample; -1: unknown.",
        lambda c: c.recall,
    ),
    ("written_seconds", "When it was written last, since the epoch.", lambda c: c.written_at_s),
    ("embedder_stale", "1 while another version of its embedder serves here.", lambda c: float(c.embedder_stale)),
    ("next_generation_ratio", "Share of the rows that the next generation has.", lambda c: c.next_generation),
)


_REPLICA_LABELS = (*_LABELS, "site")
_REPLICA_GAUGES: tuple[tuple[str, str, Callable[[pb.Collection.Replica], float]], ...] = (
    ("replica_lag_rows", "Changes that a site lacks.", lambda r: r.lag_rows),
    ("replica_lag_seconds", "Since when it lacks the oldest of them.", lambda r: r.lag_s),
    ("replica_connected", "1 while the site follows.", lambda r: float(r.connected)),
)


class VectorFigures(Collector):
    """Of one node. Labels are the collections that there are: callers cannot make up any."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def collect(self) -> Iterator[Metric]:
        if not self._vectors.enabled:
            return
        yield GaugeMetricFamily(
            "nearmesh_vectors_up", "1 while the vectors can be asked for.", value=not self._vectors.detail
        )
        yield CounterMetricFamily(
            "nearmesh_vectors_process_ends", "Times that their process ended by itself.", value=self._vectors.ended
        )
        found = list(self._vectors.collections)
        for name, help_text, value in _GAUGES:
            family = GaugeMetricFamily(f"nearmesh_vectors_{name}", help_text, labels=_LABELS)
            for one in found:
                family.add_metric([one.collection.namespace, one.collection.name], value(one))
            yield family
        for name, help_text, of_replica in _REPLICA_GAUGES:
            family = GaugeMetricFamily(f"nearmesh_vectors_{name}", help_text, labels=_REPLICA_LABELS)
            for one in found:
                for replica in one.replicas:
                    labels = [one.collection.namespace, one.collection.name, replica.site]
                    family.add_metric(labels, of_replica(replica))
            yield family
