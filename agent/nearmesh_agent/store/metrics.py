"""What Prometheus is told of versions that come to this node, and of those that it hands on."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter

from nearmesh_agent.store.fetch import DISK
from nearmesh_agent.store.transfer import REGISTRY

# By name of a source; all others are nodes, which would be too many labels.
_SOURCES = {REGISTRY: "registry", DISK: "disk"}


class StoreMetrics:
    """Counts from the start of the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pulled = Counter(
            "nearmesh_pulled_bytes", "Of versions that came here, by where from.", ["source"], registry=registry
        )
        self._given = Counter("nearmesh_given_bytes", "Of versions, handed to other nodes.", registry=registry)
        for label in ("registry", "node", "disk"):
            self._pulled.labels(label)

    def brought(self, sizes: Mapping[str, int]) -> None:
        """What one pull brought, bytes by source."""
        for source, size_bytes in sizes.items():
            self._pulled.labels(_SOURCES.get(source, "node")).inc(size_bytes)

    def given(self, size_bytes: int) -> None:
        self._given.inc(size_bytes)
