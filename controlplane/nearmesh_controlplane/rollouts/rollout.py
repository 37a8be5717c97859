"""A rollout: what it is to bring where and how, and how far it has come. Everything here is on disk at every moment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nearmesh.errors import InvalidInput
from nearmesh_controlplane.rollouts.scope import Scope

Strategy = Literal["all", "rolling", "canary"]
# "rolling back" ends as "aborted", where an operator asked for it, or as "failed".
State = Literal["running", "paused", "rolling back", "done", "aborted", "failed"]
# "loading": the nodes bring the version beside the one that they serve. "scouting": a part of the requests goes to it
# on one node, "steps": on all of them. "rolling": nodes change over.
Phase = Literal["loading", "scouting", "steps", "rolling"]

ENDED = ("done", "aborted", "failed")

# The first breach of a bad version meets few requests, and the last step is enough for the nodes to feel the load.
STEPS = (0.05, 0.25, 0.5)
MAX_STEPS = 20
# Of a canary's step, and of a rolling rollout's node.
STEP_S: Mapping[Strategy, float] = {"canary": 30.0, "rolling": 2.0, "all": 0.0}
MAX_STEP_S = 7 * 86400.0
MAX_REPLICAS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the new version may do before the rollout is taken back."""

    # By how much the part of its requests that fail may surely be larger than that of the standing version.
    error_rate: float = 0.005
    # How many times the standing version's 95th percentile of the service time it may take. Both share the node's cores
    # and are measured over few requests: less than twice is no finding.
    latency_factor: float = 2.0
    # And by how much it has to be above it: twice a millisecond is still nothing.
    latency_floor_ms: float = 10.0
    # Of its answers to mirrored requests, the part that has to agree; 0: answers are not compared.
    agreement: float = 0.0

    def __post_init__(self) -> None:
        _check("largest_error_rate", self.error_rate, 0.0, 1.0)
        _check("latency_factor", self.latency_factor, 1.0, 1000.0)
        _check("latency_floor_ms", self.latency_floor_ms, 0.0, 3_600_000.0)
        _check("smallest_agreement", self.agreement, 0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a rollout steps."""

    strategy: Strategy
    # Of a canary: parts of the requests.
    steps: tuple[float, ...] = ()
    # How long each step is watched, or each node that changed over.
    step_s: float = 0.0
    # Requests that a step waits for, up to three times its time.
    step_requests: int = 50
    # A node on which nothing moves for so long is left out.
    node_limit_s: float = 120.0
    mirror_share: float = 0.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if bool(self.steps) != (self.strategy == "canary"):
            raise InvalidInput("steps are a canary's, which has at least one")
        if len(self.steps) > MAX_STEPS:
            raise InvalidInput(f"{len(self.steps)} steps; at most {MAX_STEPS} are taken")
        if any(not 0 <= share < 1 for share in self.steps) or list(self.steps) != sorted(self.steps):
            listed = ", ".join(f"{share:g}" for share in self.steps)
            raise InvalidInput(f"steps {listed}: each is from 0 to below 1, and none is below the one before")
        _check("step_s", self.step_s, 0.0, MAX_STEP_S)
        _check("step_requests", self.step_requests, 0, 1e9)
        _check("node_limit_s", self.node_limit_s, 1.0, MAX_STEP_S)
        _check("mirror_share", self.mirror_share, 0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout. Times are seconds since the epoch."""

    id: int
    model: str
    version: str
    digest: str
    scope: Scope
    plan: Plan
    actor: str
    created_at_s: float
    state: State = "running"
    # Why it is rolled back, or what is to be known of its end.
    reason: str = ""
    # While it is rolled back: as what it will end.
    outcome: State = "failed"
    phase: Phase = "loading"
    # Which of the plan's steps it is at.
    step: int = 0
    # While it is scouting: the node.
    scout: str = ""
    # When the phase or the step began, or the latest node had changed over.
    since_s: float = 0.0
    ended_at_s: float = 0.0
    # Where the scope has a number of replicas: the nodes that were chosen.
    placed: tuple[str, ...] = ()
    # Nodes that were told to change over, and those that have: with the 95th percentile of the service time there that
    # the version before had, milliseconds, 0 where nobody knows.
    changing: tuple[str, ...] = ()
    changed: Mapping[str, float] = field(default_factory=dict)
    # Nodes that were left out, and why.
    left_out: Mapping[str, str] = field(default_factory=dict)
    # Grows with each change on disk: who changes it says which one it saw.
    revision: int = 0

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def share(self) -> float:
        """The part of the requests that the new version answers on nodes where it is on trial."""
        if self.plan.strategy != "canary" or self.phase == "loading" or self.state not in ("running", "paused"):
            return 0.0
        return self.plan.steps[min(self.step, len(self.plan.steps) - 1)]

    @property
    def asked_by(self) -> str:
        """Who asks nodes for its version, as the deployment will that it comes to."""
        return f"rollout {self.id}"

    def is_for(self, node: str, site: str, region: str) -> bool:
        """Whether the version is to come to that node."""
        return self.scope.covers(site, region) and (not self.scope.replicas or node in self.placed)

    def content(self) -> dict[str, Any]:
        """As JSON has it; without what has a column of its own."""
        found = dataclasses.asdict(self)
        return {key: value for key, value in found.items() if key not in ("id", "model", "state", "revision")}


def from_content(id: int, model: str, state: State, revision: int, content: Mapping[str, Any]) -> Rollout:
    """What `content` made."""
    values = dict(content)
    plan = dict(values.pop("plan"))
    limits = Limits(**plan.pop("limits"))
    where = values.pop("scope")
    for name in ("placed", "changing"):
        values[name] = tuple(values[name])
    return Rollout(
        id=id,
        model=model,
        state=state,
        revision=revision,
        scope=Scope(sites=tuple(where["sites"]), regions=tuple(where["regions"]), replicas=where["replicas"]),
        plan=Plan(**{**plan, "steps": tuple(plan["steps"]), "limits": limits}),
        **values,
    )


def _check(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise InvalidInput(f"{name} is {value:g}; expected {least:g} to {most:g}")
