"""Rollouts as the contract has them, and what a request asks for, checked."""

from __future__ import annotations

from collections.abc import Sequence

from nearmesh.errors import InvalidInput
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh_controlplane.rollouts.evidence import NodeEvidence
from nearmesh_controlplane.rollouts.rollout import (
    MAX_REPLICAS,
    STEP_S,
    STEPS,
    Limits,
    Phase,
    Plan,
    Rollout,
    State,
    Strategy,
)
from nearmesh_controlplane.rollouts.scope import Scope

_STRATEGIES: dict[int, Strategy] = {
    pb.ROLLOUT_STRATEGY_ALL: "all",
    pb.ROLLOUT_STRATEGY_ROLLING: "rolling",
    pb.ROLLOUT_STRATEGY_CANARY: "canary",
}
_STRATEGY_MESSAGES: dict[Strategy, pb.RolloutStrategy] = {
    "all": pb.ROLLOUT_STRATEGY_ALL,
    "rolling": pb.ROLLOUT_STRATEGY_ROLLING,
    "canary": pb.ROLLOUT_STRATEGY_CANARY,
}
_STATES: dict[State, pb.RolloutState] = {
    "running": pb.ROLLOUT_STATE_RUNNING,
    "paused": pb.ROLLOUT_STATE_PAUSED,
    "rolling back": pb.ROLLOUT_STATE_ROLLING_BACK,
    "done": pb.ROLLOUT_STATE_DONE,
    "aborted": pb.ROLLOUT_STATE_ABORTED,
    "failed": pb.ROLLOUT_STATE_FAILED,
}
_PHASES: dict[Phase, pb.RolloutPhase] = {
    "loading": pb.ROLLOUT_PHASE_LOADING,
    "scouting": pb.ROLLOUT_PHASE_SCOUTING,
    "steps": pb.ROLLOUT_PHASE_STEPS,
    "rolling": pb.ROLLOUT_PHASE_ROLLING,
}

MIRROR_SHARE = 0.25


def scope_of(request: pb.DeployRequest) -> Scope:
    """Raises InvalidInput."""
    if request.replicas > MAX_REPLICAS:
        raise InvalidInput(f"{request.replicas} replicas; at most {MAX_REPLICAS} are placed")
    return Scope(
        sites=tuple(sorted(set(request.sites))),
        regions=tuple(sorted(set(request.regions))),
        replicas=request.replicas,
    )


def plan_of(request: pb.DeployRequest, agreement: float) -> Plan | None:
    """None where no strategy is named. `agreement` is the package's own; 0 where it has no online check.

    Raises InvalidInput.
    """
    if request.strategy == pb.ROLLOUT_STRATEGY_UNSPECIFIED:
        if request.steps or request.HasField("options"):
            raise InvalidInput("steps and options are a rollout's; name its strategy")
        return None
    strategy = _STRATEGIES.get(request.strategy)
    if strategy is None:
        raise InvalidInput(f"no strategy {request.strategy}; there are all (1), rolling (2) and canary (3)")
    options, canary = request.options, strategy == "canary"
    usual = Plan(strategy=strategy, steps=STEPS if canary else ())
    if options.smallest_agreement and not agreement:
        raise InvalidInput("the package has no [online_check], so nobody knows when answers agree")
    agreement = options.smallest_agreement or agreement
    return Plan(
        strategy=strategy,
        steps=tuple(request.steps) or usual.steps,
        step_s=options.step_s or STEP_S[strategy],
        step_requests=options.step_requests or usual.step_requests,
        node_limit_s=options.node_limit_s or usual.node_limit_s,
        mirror_share=(options.mirror_share or MIRROR_SHARE) if canary and agreement else 0.0,
        limits=Limits(
            error_rate=options.largest_error_rate or usual.limits.error_rate,
            latency_factor=options.latency_factor or usual.limits.latency_factor,
            latency_floor_ms=options.latency_floor_ms or usual.limits.latency_floor_ms,
            agreement=agreement,
        ),
    )


def rollout_message(rollout: Rollout, nodes: Sequence[pb.RolloutNode] = ()) -> pb.Rollout:
    plan, limits = rollout.plan, rollout.plan.limits
    return pb.Rollout(
        id=rollout.id,
        model=rollout.model,
        version=rollout.version,
        digest=rollout.digest,
        sites=rollout.scope.sites,
        regions=rollout.scope.regions,
        replicas=rollout.scope.replicas,
        strategy=_STRATEGY_MESSAGES[plan.strategy],
        steps=plan.steps,
        options=pb.RolloutOptions(
            step_s=plan.step_s,
            step_requests=plan.step_requests,
            node_limit_s=plan.node_limit_s,
            mirror_share=plan.mirror_share,
            largest_error_rate=limits.error_rate,
            latency_factor=limits.latency_factor,
            latency_floor_ms=limits.latency_floor_ms,
            smallest_agreement=limits.agreement,
        ),
        state=_STATES[rollout.state],
        reason=rollout.reason,
        phase=_PHASES[rollout.phase],
        step=rollout.step,
        share=rollout.share,
        actor=rollout.actor,
        created_at_s=rollout.created_at_s,
        ended_at_s=rollout.ended_at_s,
        since_s=rollout.since_s,
        nodes=nodes,
        scout=rollout.scout,
    )


def node_message(rollout: Rollout, evidence: NodeEvidence, standing_version: str) -> pb.RolloutNode:
    view, new = evidence.view, evidence.view.new
    return pb.RolloutNode(
        node=view.node,
        site=view.site,
        standing_version=standing_version,
        changed_over=view.node in rollout.changed or (view.standing == rollout.digest and view.serves_new),
        state=new.state,
        detail=new.detail,
        left_out=rollout.left_out.get(view.node, ""),
        pull_bytes=new.pull_bytes,
        pulled_bytes=new.pulled_bytes,
        answered=evidence.new.answered,
        failed=evidence.new.failed,
        compared=evidence.new.compared,
        agreed=evidence.new.agreed,
        service_ms_p95=new.service_ms_p95,
        standing_ms_p95=rollout.changed.get(view.node, 0.0) or view.standing_ms,
        live=view.live,
    )
