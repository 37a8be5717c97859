"""What a client's calls came to: counts for the app, and for the control plane since the last report. Pure.

The error of the forecast is a figure here: how many answers came within the quantiles that were forecast (of a right
forecast 50, 95 and 99 %), and how far they were from its median, as the mean of |log(actual / forecast)|.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nearmesh.routing.times import Times

# Below this a time is noise of the clock.
_LEAST_MS = 0.01


@dataclass(slots=True)
class Calls:
    """Of one node. Sums over those answered."""

    answered: int = 0
    # Errors and silences; the calls may have been answered by others.
    failed: int = 0
    # Of those answered: within the forecast quantiles, and later than the model's deadline.
    within_p50: int = 0
    within_p95: int = 0
    within_p99: int = 0
    late: int = 0
    total_ms: float = 0.0
    predicted_ms: float = 0.0
    abs_log_error: float = 0.0

    def add(self, ms: float, forecast: Times, late: bool) -> None:
        """One answer."""
        self.answered += 1
        self.within_p50 += ms <= forecast.p50_ms
        self.within_p95 += ms <= forecast.p95_ms
        self.within_p99 += ms <= forecast.p99_ms
        self.late += late
        self.total_ms += ms
        self.predicted_ms += forecast.p50_ms
        self.abs_log_error += abs(math.log(max(ms, _LEAST_MS) / max(forecast.p50_ms, _LEAST_MS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatistics:
    """What one node did for this client."""

    answered: int
    # Errors of its own, and silence for too long.
    failed: int
    # Later than the model's deadline, of those answered.
    late: int
    # Answers within the forecast quantiles.
    within_p50: int
    within_p95: int
    within_p99: int
    # Mean of |log(actual / forecast median)|: 0 is perfect, 0.69 is wrong by a factor of two. 0 without answers.
    forecast_error: float
    # By model: "healthy", "suspect", "ejected" or "probation"; absent where nothing is known.
    states: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a client's calls came to since it was opened."""

    calls: int
    # Calls that ended with an error for the caller, its own mistakes included.
    failed: int
    # Second requests beside a call that took longer than its forecast 95th percentile; at most one call in ten.
    hedges: int
    # Hedges that answered first.
    hedges_won: int
    # Copies of calls to nodes on probation; they are paid from the hedges' budget.
    trials: int
    # Times that the next node was asked because one failed, or because one was silent beyond all patience.
    failovers: int
    silences: int
    # Times that a node was put out of first choice for its errors or its slowness.
    ejections: int
    nodes: Mapping[str, NodeStatistics]


@dataclass(frozen=True, slots=True)
class Key:
    """What calls are counted by."""

    model: str
    node: str
    # As asked for; empty for the model's policy.
    objective: str


@dataclass(slots=True)
class Tally:
    """Counts up. Bounded by the nodes, models and objectives in use."""

    calls: int = 0
    failed: int = 0
    hedges: int = 0
    hedges_won: int = 0
    trials: int = 0
    failovers: int = 0
    silences: int = 0
    ejections: int = 0
    _nodes: dict[str, Calls] = field(default_factory=dict)
    _unreported: dict[Key, Calls] = field(default_factory=dict)

    def answered(self, key: Key, ms: float, forecast: Times, *, late: bool) -> None:
        """A node's answer was the call's; `ms` from that node's being asked."""
        for calls in self._both(key):
            calls.add(ms, forecast, late)

    def node_failed(self, key: Key) -> None:
        """A node was asked, and erred or kept silent."""
        for calls in self._both(key):
            calls.failed += 1

    def take_unreported(self) -> dict[Key, Calls]:
        """Since the last time this was asked."""
        found, self._unreported = self._unreported, {}
        return found

    def forget(self, node: str) -> None:
        """The node is in no route any more."""
        self._nodes.pop(node, None)

    def statistics(self, states: Mapping[str, Mapping[str, str]]) -> Statistics:
        """All of it as of now; `states` by node and model."""
        return Statistics(
            calls=self.calls,
            failed=self.failed,
            hedges=self.hedges,
            hedges_won=self.hedges_won,
            trials=self.trials,
            failovers=self.failovers,
            silences=self.silences,
            ejections=self.ejections,
            nodes={node: _node(calls, states.get(node, {})) for node, calls in self._nodes.items()},
        )

    def _both(self, key: Key) -> tuple[Calls, Calls]:
        return self._nodes.setdefault(key.node, Calls()), self._unreported.setdefault(key, Calls())


def _node(calls: Calls, states: Mapping[str, str]) -> NodeStatistics:
    return NodeStatistics(
        answered=calls.answered,
        failed=calls.failed,
        late=calls.late,
        within_p50=calls.within_p50,
        within_p95=calls.within_p95,
        within_p99=calls.within_p99,
        forecast_error=calls.abs_log_error / calls.answered if calls.answered else 0.0,
        states=dict(states),
    )
