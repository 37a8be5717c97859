"""What this client has found out about each node by itself: network times, and who has just failed it.

Pure: `now_s` is any clock that never goes back. A node that failed (no connection, no answer in time) is out until a
probe reaches it; a node that merely refused a model (not ready, draining, full) is out for that model for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nearmesh.quantiles import Window

# Below this many samples the control plane's estimate is the better one.
MIN_SAMPLES = 5
# Network times older than this say little about now.
MAX_AGE_S = 60.0
# A node that failed is out this long, and twice as long each time it fails again, up to the maximum.
FIRST_OUT_S = 0.5
MAX_OUT_S = 10.0
# Samples kept for the next report; a busy client need not send thousands.
MAX_REPORTED = 100


@dataclass(slots=True)
class _Out:
    """How often in a row something failed, and until when it is out."""

    until_s: float
    failures: int


@dataclass(slots=True)
class _Node:
    window: Window = field(default_factory=lambda: Window(size=64, max_age_s=MAX_AGE_S))
    unreported: list[float] = field(default_factory=list)
    failed: _Out | None = None
    refused: dict[str, _Out] = field(default_factory=dict)


class Experience:
    """By node id. `on_failed` is told of each node that goes out, so that it can be probed in time."""

    def __init__(self, on_failed: Callable[[str], None] = lambda node: None) -> None:
        self._nodes: dict[str, _Node] = {}
        self._on_failed = on_failed

    def sample(self, node: str, network_ms: float, *, now_s: float) -> None:
        """A round trip without the node's own time, milliseconds."""
        found = self._node(node)
        found.window.add(network_ms, now_s=now_s)
        if len(found.unreported) < MAX_REPORTED:
            found.unreported.append(network_ms)

    def measured(self, *, now_s: float) -> dict[str, tuple[float, float]]:
        """50th and 95th percentile of the network time, milliseconds, of every node with enough samples."""
        found: dict[str, tuple[float, float]] = {}
        for name, node in self._nodes.items():
            quantiles = node.window.quantiles(0.5, 0.95, now_s=now_s)
            if quantiles and len(node.window) >= MIN_SAMPLES:
                found[name] = (quantiles[0], quantiles[1])
        return found

    def take_unreported(self) -> dict[str, list[float]]:
        """Samples since the last time this was asked, by node."""
        found = {name: node.unreported for name, node in self._nodes.items() if node.unreported}
        for name in found:
            self._nodes[name].unreported = []
        return found

    def failed(self, node: str, *, now_s: float) -> None:
        """The node could not be reached, or was silent for too long; it is out until it `answered`."""
        found = self._node(node)
        found.failed = _longer(found.failed, now_s)
        self._on_failed(node)

    def refused(self, node: str, model: str, *, now_s: float, retry_after_ms: int | None = None) -> None:
        """The node is alive and does not serve this model just now."""
        refused = self._node(node).refused
        refused[model] = _longer(refused.get(model), now_s)
        if retry_after_ms is not None:
            refused[model].until_s = now_s + min(retry_after_ms / 1000, MAX_OUT_S)

    def answered(self, node: str, model: str = "") -> None:
        """The node answered a probe, or served `model`."""
        found = self._node(node)
        found.failed = None
        found.refused.pop(model, None)

    def out(self, model: str, *, now_s: float) -> set[str]:
        """The nodes that a call for `model` should rather not try."""
        return {name for name, node in self._nodes.items() if node.failed or _is_out(node.refused.get(model), now_s)}

    def probe_due_s(self, node: str) -> float | None:
        """When a node that failed should be probed; None when it did not fail."""
        failed = self._node(node).failed
        return failed.until_s if failed else None

    def forget(self, node: str) -> None:
        """The node is in no route any more."""
        self._nodes.pop(node, None)

    def _node(self, name: str) -> _Node:
        return self._nodes.setdefault(name, _Node())


def _longer(before: _Out | None, now_s: float) -> _Out:
    """Failures that come while the node is out (calls that were under way) count as one."""
    if before and now_s < before.until_s:
        return before
    failures = before.failures + 1 if before else 1
    return _Out(now_s + min(MAX_OUT_S, FIRST_OUT_S * 2.0 ** min(failures - 1, 16)), failures)


def _is_out(refused: _Out | None, now_s: float) -> bool:
    return refused is not None and now_s < refused.until_s
