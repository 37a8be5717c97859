"""Small worlds for the planner: nodes on a line, and facts about them in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearmesh_controlplane.routing.facts import Facts, Key, ModelFacts, NodeFacts, ReplicaFacts

from nearmesh.routing import Objective, Times

IN_TIME: Objective = "cheapest-in-time"
MODEL = "m"
DEADLINE_MS = 200.0


def node(name: str, usd: float = 1.0, *, site: str = "", region: str = "", **more: Any) -> NodeFacts:
    return NodeFacts(id=name, site=site or f"site-{name}", region=region or f"region-{name}", usd_per_hour=usd, **more)


def serves(ms: float = 10.0, per_s: float = 100.0, *, p95_ms: float = 0.0, **more: Any) -> ReplicaFacts:
    return ReplicaFacts(service=Times.spread(ms, p95_ms or ms), per_s=per_s, **more)


def world(
    nodes: tuple[NodeFacts, ...],
    ways: Mapping[str, Mapping[str, float]],
    *,
    replicas: Mapping[str, ReplicaFacts] | None = None,
    demand: Mapping[Key, float] | None = None,
    objective: Objective = IN_TIME,
    deadline_ms: float = DEADLINE_MS,
    regions: frozenset[str] = frozenset(),
    transfer_bytes: float = 0.0,
    answer_bytes: float = 0.0,
    **more: Any,
) -> Facts:
    """`ways`: round trips in ms by client region and node; every node serves the model unless `replicas` says who."""
    model = ModelFacts(
        name=MODEL,
        objective=objective,
        deadline_ms=deadline_ms,
        replicas=replicas if replicas is not None else {found.id: serves() for found in nodes},
        regions=regions,
        transfer_bytes=transfer_bytes,
        answer_bytes=answer_bytes,
    )
    network = {(region, to): Times.spread(ms, 1.02 * ms) for region, there in ways.items() for to, ms in there.items()}
    return Facts(nodes=nodes, models=(model,), regions=tuple(ways), network=network, demand=dict(demand or {}), **more)


def asked(**per_s: float) -> dict[Key, float]:
    """Requests per second for the model under its own objective, by client region."""
    return {(region, MODEL, IN_TIME): value for region, value in per_s.items()}
