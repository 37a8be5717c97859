"""What a rollout has a node serve. Pure: a function of the rollout and of what the node would have without it."""

from __future__ import annotations

from dataclasses import dataclass

from nearmesh_controlplane.rollouts.rollout import Rollout


@dataclass(frozen=True, slots=True)
class OnTrial:
    """A version beside the standing one."""

    digest: str
    share: float
    mirror_share: float


@dataclass(frozen=True, slots=True)
class Want:
    """Of one model on one node."""

    # Digest; empty: no version is the standing one.
    standing: str
    trial: OnTrial | None = None


def want(rollout: Rollout, node: str, standing: str) -> Want:
    """For a node that the rollout is for; `standing` is what it would have without it, empty for nothing."""
    if rollout.state not in ("running", "paused"):
        return Want(standing)
    if node in rollout.changed or node in rollout.changing or standing == rollout.digest:
        return Want(rollout.digest)
    if on_trial(rollout, node, standing):
        if rollout.phase == "loading" or (rollout.phase == "scouting" and node != rollout.scout):
            return Want(standing, OnTrial(rollout.digest, 0.0, 0.0))
        return Want(standing, OnTrial(rollout.digest, rollout.share, rollout.plan.mirror_share))
    return Want(standing)


def on_trial(rollout: Rollout, node: str, standing: str) -> bool:
    """Whether the node serves the new version beside its standing one."""
    if rollout.plan.strategy != "canary" or standing in ("", rollout.digest):
        return False
    return not (node in rollout.changed or node in rollout.changing or node in rollout.left_out)
