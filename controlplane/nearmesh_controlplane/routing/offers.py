"""What every node offers every locality for one model: how likely it is in time there, at what cost, with what room.

Arrays over client regions and the nodes that serve the model. What depends on times alone is kept as long as the same
facts are given: a price changes no chance.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nearmesh.routing.costs import usd_per_1000
from nearmesh.routing.objectives import GRACE
from nearmesh.routing.times import LEVELS, Times, matrix, points, share_of_sum_within
from nearmesh_controlplane.routing.capacity import bounds, with_waiting
from nearmesh_controlplane.routing.columns import View, Which
from nearmesh_controlplane.routing.facts import LEAST_PER_S, Facts, ModelFacts, NodeFacts, ReplicaFacts

Array = npt.NDArray[np.float64]

# What is measured at a node counts instead of what is to be expected there, if it is so much worse in the middle:
# something else keeps it busy. Not in the tail: that is what a burst leaves, which is over before anyone has moved, and
# whoever moved for it would be a burst to the next node.
WORSE = 1.5
_P50, _P75 = LEVELS.index(0.5), LEVELS.index(0.75)


@dataclass(frozen=True, slots=True)
class Offers:
    """Of one model. Rows are client regions, columns the nodes in `nodes`."""

    model: ModelFacts
    nodes: tuple[NodeFacts, ...]
    # Round trip and time on the node, waiting included: quantiles, shapes (regions, nodes, L) and (nodes, L). The time
    # is that at the load which the node may come to have, and beside it what it is at present.
    network: Array
    service: Array
    present: Array
    # The chance to be in time, and to be so little late that nobody moves who is there.
    p_in_time: Array
    p_staying: Array
    # What one request per second takes of a node.
    load: Array
    utilization: Array
    # US dollars; the whole of it, shape (regions, nodes), and what of it the node itself costs.
    usd_per_1000: Array
    transfer_usd_per_1000: Array
    # Not in memory, shape (nodes,).
    cold: npt.NDArray[np.bool_]
    # Whether owners' rules let a region's requests go to a node.
    allowed: npt.NDArray[np.bool_]

    def network_times(self, region: int, node: int) -> Times:
        return Times(tuple(float(q) for q in self.network[region, node]))

    def service_times(self, node: int) -> Times:
        """At present."""
        return Times(tuple(float(q) for q in self.present[node]))

    def busy_times(self, node: int) -> Times:
        """At the load that the node may come to have."""
        return Times(tuple(float(q) for q in self.service[node]))


@dataclass(frozen=True, slots=True)
class _Timing:
    """What depends on times alone, and what it was worked out from."""

    replicas: tuple[ReplicaFacts, ...]
    network: tuple[Times, ...]
    deadline_ms: float
    pressure: tuple[float, ...]
    service: Array
    present: Array
    utilization: Array
    p_in_time: Array
    p_staying: Array
    network_ms: Array
    # Inferences per second; what a dollar an hour comes to for 1,000 of them, but for nodes whose speed is unknown.
    per_s: Array
    per_usd: Array
    unknown: npt.NDArray[np.bool_]
    cold: npt.NDArray[np.bool_]
    # Of the facts that it was last asked for by: the model, all nodes, and which of them serve it.
    model: ModelFacts | None = None
    ids: tuple[str, ...] = ()
    which: Which = b""


# Its arrays whose first axis, and whose second one, are the nodes.
_BY_NODE = ("service", "present", "utilization", "per_s", "per_usd", "unknown", "cold")
_BY_PAIR = ("p_in_time", "p_staying", "network_ms")


def pressures(facts: Facts) -> dict[str, float]:
    """By node, its utilization if all demand for what it serves came to it: 0 to 1, upwards to tenths.

    Nobody waits longer than that lets them, and where demand is small it keeps a node from being judged by a load that
    it will never see.
    """
    asked: dict[str, float] = {}
    for (_, model, _), per_s in facts.demand.items():
        asked[model] = asked.get(model, 0.0) + per_s
    found = dict.fromkeys((node.id for node in facts.nodes), 0.0)
    for served in facts.models:
        total_per_s = asked.get(served.name, 0.0)
        if not total_per_s:
            continue
        for node, replica in served.replicas.items():
            found[node] += total_per_s / max(replica.per_s, LEAST_PER_S)
    return {node: min(1.0, math.ceil(10 * load) / 10) for node, load in found.items()}


class OfferBook:
    """Makes offers; remembers each model's timing."""

    def __init__(self) -> None:
        self._timings: dict[str, _Timing] = {}
        self._view: View | None = None

    def offers(self, facts: Facts, model: ModelFacts, pressure: Mapping[str, float]) -> Offers | None:
        """None when no node serves the model. `pressure` is that of `pressures` for these facts."""
        if self._view is None or self._view.facts is not facts:
            self._view = View(facts, pressure, self._view)
        view = self._view
        if not any(node in model.replicas for node in view.ids):
            return None
        timing = self._timing(model, view)
        columns = view.columns(timing.which)
        transfer = view.transfer(model, columns)
        return Offers(
            model=model,
            nodes=columns.nodes,
            network=timing.network_ms,
            service=timing.service,
            present=timing.present,
            p_in_time=timing.p_in_time,
            p_staying=timing.p_staying,
            load=1 / (timing.per_s * timing.utilization),
            utilization=timing.utilization,
            usd_per_1000=np.where(timing.unknown, np.inf, columns.usd_per_hour * timing.per_usd)[None, :] + transfer,
            transfer_usd_per_1000=transfer,
            cold=timing.cold,
            allowed=view.allowed(model, columns),
        )

    def keep_only(self, names: Collection[str]) -> None:
        """Forgets models that are gone."""
        self._timings = {name: timing for name, timing in self._timings.items() if name in names}

    def _timing(self, model: ModelFacts, view: View) -> _Timing:
        known = self._timings.get(model.name)
        # The same facts about a model among the same nodes are about the same columns.
        if known is not None and known.model is model and known.ids is view.ids:
            which, replicas = known.which, known.replicas
        else:
            which = view.which(model)
            replicas = tuple(model.replicas[node.id] for node in view.columns(which).nodes)
        columns = view.columns(which)
        given = (replicas, columns.network, model.deadline_ms, columns.pressure)
        # Tuples of the same objects are equal at the speed of comparing addresses.
        if known is None or (known.replicas, known.network, known.deadline_ms, known.pressure) != given:
            alike = known is not None and (known.ids, known.which, known.deadline_ms) == (view.ids, which, given[2])
            known = _again(known, *given) if known and alike else _timed(*given)
        if known.model is not model or known.ids is not view.ids:
            known = replace(known, model=model, ids=view.ids, which=which)
        self._timings[model.name] = known
        return known


def _timed(
    replicas: tuple[ReplicaFacts, ...],
    network: tuple[Times, ...],
    deadline_ms: float,
    pressure: tuple[float, ...],
) -> _Timing:
    regions = len(network) // len(replicas)
    network_ms = matrix(network).reshape(regions, len(replicas), len(LEVELS))
    alone = matrix([replica.service for replica in replicas]) + np.array([[r.load_ms] for r in replicas])
    per_s = np.array([max(replica.per_s, LEAST_PER_S) for replica in replicas])
    slack_ms = deadline_ms - network_ms[:, :, _P75].T
    utilization = bounds(alone, per_s, slack_ms, np.ones(regions))
    present = alone + matrix([replica.queue or Times.certain(0.0) for replica in replicas])
    expected = with_waiting(alone, per_s, np.minimum(utilization, pressure))
    worse = present[:, _P50] > WORSE * expected[:, _P50]
    service = np.where(worse[:, None], present, expected)
    return _Timing(
        replicas=replicas,
        network=network,
        deadline_ms=deadline_ms,
        pressure=pressure,
        service=service,
        present=present,
        utilization=utilization,
        p_in_time=_chances(network_ms, service, deadline_ms),
        p_staying=_chances(network_ms, service, deadline_ms * (1 + GRACE)),
        network_ms=network_ms,
        per_s=per_s,
        per_usd=np.array([usd_per_1000(1.0, r.per_s) if r.per_s > 0 else 0.0 for r in replicas]),
        unknown=np.array([r.per_s <= 0 for r in replicas]),
        cold=np.array([r.load_ms > 0 for r in replicas]),
    )


def _again(
    known: _Timing,
    replicas: tuple[ReplicaFacts, ...],
    network: tuple[Times, ...],
    deadline_ms: float,
    pressure: tuple[float, ...],
) -> _Timing:
    """The same as `_timed`, of what is known of the same nodes: each of them is worked out by itself, and most have not
    changed."""
    count = len(replicas)
    if len(network) != len(known.network):
        return _timed(replicas, network, deadline_ms, pressure)
    changed = {at for at in range(count) if replicas[at] != known.replicas[at] or pressure[at] != known.pressure[at]}
    if network is not known.network:
        changed |= {at % count for at, (new, old) in enumerate(zip(network, known.network, strict=True)) if new != old}
    if 2 * len(changed) > count:
        return _timed(replicas, network, deadline_ms, pressure)
    at = sorted(changed)
    ways = tuple(network[first + column] for first in range(0, len(network), count) for column in at)
    part = _timed(tuple(replicas[n] for n in at), ways, deadline_ms, tuple(pressure[n] for n in at))
    patched: dict[str, Any] = {name: _patched(getattr(known, name), at, getattr(part, name), 0) for name in _BY_NODE}
    patched |= {name: _patched(getattr(known, name), at, getattr(part, name), 1) for name in _BY_PAIR}
    return replace(known, replicas=replicas, network=network, pressure=pressure, **patched)


def _patched(known: Array, at: list[int], part: Array, axis: int) -> Array:
    found = known.copy()
    found[(slice(None),) * axis + (at,)] = part
    return found


def _chances(network: Array, service: Array, deadline_ms: float) -> Array:
    """The chance to be in time, shape (regions, nodes); worked out only where it is not plain to see."""
    ways, served = points(network), points(service[None])
    found = np.where(ways[..., 0] + served[..., 0] > deadline_ms, 0.0, 1.0)
    open_ = (found > 0) & (ways[..., -1] + 3 * served[..., -1] > deadline_ms)
    at = np.nonzero(open_)
    if len(at[0]):
        found[at] = share_of_sum_within(network[at], service[at[1]], np.asarray(deadline_ms))
    return found
