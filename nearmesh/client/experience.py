"""What this client has found out about each node by itself: times, load, and who fails it.

Pure: `now_s` is any clock that never goes back. A node that failed (no connection, no answer in time) is out until a
probe reaches it; a node that merely refused a model (not ready, draining, full) is out for that model for a while; a
node that errs or is far slower than forecast is out for that model until copies of calls prove it well (`health`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from nearmesh.client.budget import Budget
from nearmesh.client.health import Health, Why
from nearmesh.client.load import PeakTime
from nearmesh.client.tally import Statistics, Tally
from nearmesh.routing.times import Times
from nearmesh.sketch import Sketch

# Below this many samples the control plane's estimate is the better one.
MIN_SAMPLES = 5
# What the weight of a network time halves in; after some twice as long without one, the estimate is better again.
HALF_LIFE_S = 30.0
_LEAST_TRUST = 0.5
# A node that failed is out this long, and twice as long each time it fails again, up to the maximum.
FIRST_OUT_S = 0.5
MAX_OUT_S = 10.0
# Samples kept for the next report; a busy client need not send thousands.
MAX_REPORTED = 100
# A node that lost this many races without one answer, for as long as a call would wait for it, is out until a probe
# reaches it: hedges end each call before that one could tell that the node is frozen.
LOST_IN_A_ROW = 3
# An error counts as slow, never as fast: it weighs as much as this many forecast 95th percentiles.
ERROR_AS_P95S = 4.0


@dataclass(slots=True)
class _Out:
    """How often in a row something failed, and until when it is out."""

    until_s: float
    failures: int


@dataclass(slots=True)
class _Model:
    """What a node did for one model."""

    health: Health = field(default_factory=Health)
    load: PeakTime = field(default_factory=PeakTime)


@dataclass(slots=True)
class _Node:
    network: Sketch = field(default_factory=lambda: Sketch(half_life_s=HALF_LIFE_S))
    unreported: list[float] = field(default_factory=list)
    failed: _Out | None = None
    refused: dict[str, _Out] = field(default_factory=dict)
    models: dict[str, _Model] = field(default_factory=dict)
    # Calls under way.
    outstanding: int = 0
    # Races lost since the last answer, and when the first of them began.
    lost: int = 0
    silent_since_s: float = 0.0


class Experience:
    """By node id. `on_failed` is told of each node that goes out, so that it can be probed in time."""

    def __init__(self, on_failed: Callable[[str], None] = lambda node: None, *, budget: Budget | None = None) -> None:
        self._nodes: dict[str, _Node] = {}
        # Nodes that may be out for something: few, so that a call need not look at all of them.
        self._doubtful: set[str] = set()
        self._on_failed = on_failed
        # What copies of calls are paid from, and what all calls came to.
        self.budget = budget or Budget()
        self.tally = Tally()

    def sample(self, node: str, network_ms: float, *, now_s: float) -> None:
        """A round trip without the node's own time, milliseconds."""
        found = self._node(node)
        found.network.add(network_ms, now_s=now_s)
        if len(found.unreported) < MAX_REPORTED:
            found.unreported.append(network_ms)

    def measured(self, *, now_s: float) -> dict[str, Times]:
        """The network time to every node with enough samples."""
        found: dict[str, Times] = {}
        for name, node in self._nodes.items():
            if round(node.network.samples) >= MIN_SAMPLES and node.network.trust(now_s) >= _LEAST_TRUST:
                times = node.network.times()
                if times:
                    found[name] = times
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
        self._doubtful.add(node)
        self._on_failed(node)

    def refused(self, node: str, model: str, *, now_s: float, retry_after_ms: int | None = None) -> None:
        """The node is alive and does not serve this model just now."""
        refused = self._node(node).refused
        refused[model] = _longer(refused.get(model), now_s)
        self._doubtful.add(node)
        if retry_after_ms is not None:
            refused[model].until_s = now_s + min(retry_after_ms / 1000, MAX_OUT_S)

    def answered(self, node: str, model: str = "") -> None:
        """The node answered a probe, or served `model`."""
        found = self._node(node)
        found.failed = None
        found.lost = 0
        found.refused.pop(model, None)
        if not found.refused and not any(known.health.is_ejected for known in found.models.values()):
            self._doubtful.discard(node)

    def began(self, node: str) -> None:
        """A call is under way to it."""
        self._node(node).outstanding += 1

    def ended(self, node: str) -> None:
        """A call that `began` is over, however."""
        found = self._node(node)
        found.outstanding = max(0, found.outstanding - 1)

    def took(self, node: str, model: str, ms: float, forecast: Times, *, now_s: float) -> None:
        """How long an answer took, on a connection that was warm, and what was forecast."""
        found = self._model(node, model)
        found.load.add(ms, now_s=now_s)
        peers = self._peers(node, model, now_s)
        self._count(node, found.health.answered(ms, forecast.p50_ms, forecast.p95_ms, now_s=now_s, peers=peers))

    def erred(self, node: str, model: str, forecast: Times, *, now_s: float) -> None:
        """The node answered with an error of its own making, or with what makes no sense."""
        found = self._model(node, model)
        found.load.add(ERROR_AS_P95S * forecast.p95_ms, now_s=now_s)
        self._count(node, found.health.erred(now_s=now_s))

    def lost_race(self, node: str, model: str, ms: float, *, now_s: float, patience_s: float = math.inf) -> None:
        """The node was asked first, was silent for `ms`, more than forecast, and another's answer came first.

        After `patience_s` of silence, in however many calls, it is taken for frozen.
        """
        found = self._model(node, model)
        found.load.add(ms, now_s=now_s)
        self._count(node, found.health.lost_race(now_s=now_s, peers=self._peers(node, model, now_s)))
        known = self._node(node)
        known.silent_since_s = known.silent_since_s if known.lost else now_s - ms / 1000
        known.lost += 1
        if known.lost >= LOST_IN_A_ROW and now_s - known.silent_since_s >= patience_s:
            self.failed(node, now_s=now_s)

    def correction(self, node: str, model: str, *, now_s: float) -> float:
        """By what a forecast for this node is to be multiplied, as its answers have shown."""
        return self._model(node, model).health.correction(now_s)

    def cost(self, node: str, model: str, forecast_ms: float, *, now_s: float) -> float:
        """How long one more call would keep it busy: calls under way and this one, times what one takes."""
        found = self._model(node, model)
        expected_ms = found.load.expected_ms(forecast_ms, now_s=now_s)
        return (self._node(node).outstanding + 1) * expected_ms

    def take_trial(self, node: str, model: str, *, now_s: float) -> bool:
        """Whether a copy of a call may be sent to it, to see if it does well again."""
        known = self._nodes.get(node)
        found = known.models.get(model) if known and not known.failed else None
        return found is not None and found.health.take_trial(now_s)

    def out(self, model: str, *, now_s: float) -> set[str]:
        """The nodes that a call for `model` should rather not try."""
        found = set[str]()
        for name in self._doubtful:
            node = self._nodes[name]
            ejected = node.models[model].health.ejected_for(now_s) if model in node.models else None
            if node.failed or _is_out(node.refused.get(model), now_s) or ejected is Why.ERRORS:
                found.add(name)
        return found

    def slow(self, model: str, *, now_s: float) -> dict[str, float]:
        """The nodes that take far longer than forecast, and how long in the middle, milliseconds."""
        doubtful = ((name, self._nodes[name].models.get(model)) for name in self._doubtful)
        found = ((name, known.health.slow_ms(now_s)) for name, known in doubtful if known)
        return {name: ms for name, ms in found if ms is not None}

    def statistics(self, *, now_s: float) -> Statistics:
        """What the calls came to, and what is thought of each node."""
        return self.tally.statistics(
            {
                name: {model: str(found.health.state(now_s)) for model, found in node.models.items()}
                for name, node in self._nodes.items()
            }
        )

    def probe_due_s(self, node: str) -> float | None:
        """When a node that failed should be probed; None when it did not fail."""
        failed = self._node(node).failed
        return failed.until_s if failed else None

    def forget(self, node: str) -> None:
        """The node is in no route any more."""
        self._nodes.pop(node, None)
        self._doubtful.discard(node)
        self.tally.forget(node)

    def _node(self, name: str) -> _Node:
        found = self._nodes.get(name)
        if found is None:
            found = self._nodes[name] = _Node()
        return found

    def _model(self, node: str, model: str) -> _Model:
        models = self._node(node).models
        found = models.get(model)
        if found is None:
            found = models[model] = _Model()
        return found

    def _peers(self, node: str, model: str, now_s: float) -> Callable[[], float]:
        """How far the model's other nodes are from their forecasts, in the middle; 1 when none has answered enough."""

        def find() -> float:
            others = (n.models[model].health for name, n in self._nodes.items() if name != node and model in n.models)
            known = sorted(off for health in others if (off := health.off_forecast(now_s)) is not None)
            return known[(len(known) - 1) // 2] if known else 1.0

        return find

    def _count(self, node: str, ejected: bool) -> None:
        if ejected:
            self.tally.ejections += 1
            self._doubtful.add(node)


def _longer(before: _Out | None, now_s: float) -> _Out:
    """Failures that come while the node is out (calls that were under way) count as one."""
    if before and now_s < before.until_s:
        return before
    failures = before.failures + 1 if before else 1
    return _Out(now_s + min(MAX_OUT_S, FIRST_OUT_S * 2.0 ** min(failures - 1, 16)), failures)


def _is_out(refused: _Out | None, now_s: float) -> bool:
    return refused is not None and now_s < refused.until_s
