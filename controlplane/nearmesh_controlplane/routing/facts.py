"""What a plan is made from: nodes, what they serve and how fast, who asks for how much, and the rules of owners.

Plain data, gathered by the router from the registry, the catalog and the books of measurements, or by a replay from its
world. Who gathers keeps an object as long as what it says has not changed by much: what was worked out from the same
objects is not worked out again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nearmesh.routing.objectives import Objective
from nearmesh.routing.times import Times

# "live": its session is open. "suspect": it just broke; asked after all that are live. "gone": longer ago; asked when
# nobody else serves the model.
Standing = Literal["live", "suspect", "gone"]

# One inference in a quarter of an hour. Slower nodes, and those whose speed nobody knows, have no more room than this.
LEAST_PER_S = 1e-3

# A client's region, a model, and an objective.
Key = tuple[str, str, Objective]


# Compared by identity: sets of nodes are keys of what is remembered within a plan.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeFacts:
    """A node, whatever it serves."""

    id: str
    site: str
    region: str
    usd_per_hour: float
    spot: bool = False
    standing: Standing = "live"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """A version that one node can serve now."""

    # On the node, without waiting for others.
    service: Times
    # Inferences per second when it is never idle; 0 when unknown.
    per_s: float
    # Waiting as it is at present, where that was measured.
    queue: Times | None = None
    # How long the first request waits, because the version is not in memory; 0 when it is.
    load_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model, and who serves it."""

    name: str
    objective: Objective
    deadline_ms: float
    # By node.
    replicas: Mapping[str, ReplicaFacts]
    # The regions that may serve it; empty: any.
    regions: frozenset[str] = frozenset()
    # Of nodes that do not serve it: why not.
    absent: Mapping[str, str] = field(default_factory=dict)
    # Of a request and its answer together, for what moving them costs; and of it the answer's, which go the other way.
    transfer_bytes: float = 0.0
    answer_bytes: float = 0.0


def _no_rule(_region: str) -> frozenset[str] | None:
    return None


def _free(_from: str, _to: str) -> float:
    return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything, at one moment."""

    nodes: tuple[NodeFacts, ...]
    models: tuple[ModelFacts, ...]
    # Where clients are.
    regions: tuple[str, ...]
    # Round trips by client region and node; every pair is there.
    network: Mapping[tuple[str, str], Times]
    # Requests per second.
    demand: Mapping[Key, float] = field(default_factory=dict)
    # Since when each replica has been ready, by node and model, seconds ago; who is not in it has long been.
    ready_for_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    # The regions that may answer a client region's requests; None: any.
    residency: Callable[[str], frozenset[str] | None] = _no_rule
    # What a GB costs that leaves the first region for the second, US dollars.
    transfer_usd_per_gb: Callable[[str, str], float] = _free
