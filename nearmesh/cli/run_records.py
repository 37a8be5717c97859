"""Federated runs as plain values: exactly what `--json` prints, and what the tables and the plot are made of.

The names are a promise to programs: they are added to, never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearmesh.cli.records import Record
from nearmesh.v1 import run_pb2

_STATES = {
    run_pb2.RUN_STATE_WAITING: "waiting",
    run_pb2.RUN_STATE_TRAINING: "training",
    run_pb2.RUN_STATE_TRAINED: "trained",
    run_pb2.RUN_STATE_CHECKING: "checking",
    run_pb2.RUN_STATE_PUBLISHING: "publishing",
    run_pb2.RUN_STATE_ROLLING_OUT: "rolling out",
    run_pb2.RUN_STATE_SERVED: "served",
    run_pb2.RUN_STATE_REFUSED: "refused",
    run_pb2.RUN_STATE_ROLLED_BACK: "rolled back",
    run_pb2.RUN_STATE_STOPPED: "stopped",
    run_pb2.RUN_STATE_FAILED: "failed",
}
_ANSWERS = {
    run_pb2.SITE_ANSWER_COUNTED: "counted",
    run_pb2.SITE_ANSWER_MISSING: "missing",
    run_pb2.SITE_ANSWER_FAILED: "failed",
    run_pb2.SITE_ANSWER_REFUSED: "refused",
}
COUNTED = run_pb2.SITE_ANSWER_COUNTED


def state(message: run_pb2.Run) -> str:
    return _STATES.get(message.state, "unknown")


def answer(message: run_pb2.SiteRound) -> str:
    return _ANSWERS.get(message.answer, "unknown")


def run(message: run_pb2.Run) -> Record:
    return {
        "run": message.id,
        "model": message.model,
        "state": state(message),
        "reason": message.reason,
        "metric": message.metric,
        "parent_version": message.parent_version,
        "parent_digest": message.parent_digest,
        "version": message.version or None,
        "digest": message.digest or None,
        "rollout": message.rollout or None,
        "actor": message.actor,
        "created_at_s": message.created_at_s,
        "ended_at_s": message.ended_at_s,
        "resumed": message.resumed,
        "own_app": message.own_app,
        "epsilon": message.epsilon,
        "delta": message.delta,
        "asked": _asked(message.asked),
        "progress": _progress(message.progress) if message.HasField("progress") else None,
        "rounds": [_round(found) for found in message.rounds],
        "gate": _gate(message.gate) if message.HasField("gate") else None,
    }


def _asked(message: run_pb2.StartRunRequest) -> Record:
    return {
        "version": message.version or None,
        "rounds": message.rounds,
        "min_sites": message.min_sites,
        "strategy": message.strategy,
        "strategy_options": _sorted(message.strategy_options),
        "round_timeout_s": message.round_timeout_s,
        "settings": _sorted(message.settings),
        "sites": list(message.sites),
        "largest_norm": message.largest_norm,
        "privacy": _privacy(message.privacy) if message.HasField("privacy") else None,
        "schedule": _schedule(message.schedule) if message.HasField("schedule") else None,
        "auto_promote": message.auto_promote,
        "idempotency_key": message.idempotency_key,
    }


def _privacy(message: run_pb2.Privacy) -> Record:
    return {
        "noise_multiplier": message.noise_multiplier,
        "clipping_norm": message.clipping_norm,
        "delta": message.delta,
    }


def _schedule(message: run_pb2.Schedule) -> Record:
    return {
        "window": message.window,
        "idle_below": message.idle_below,
        "usd_per_hour_below": message.usd_per_hour_below,
    }


def _progress(message: run_pb2.RoundProgress) -> Record:
    return {
        "round": message.number,
        "phase": message.phase,
        "began_at_s": message.began_at_s,
        "answered": list(message.answered),
        "missing": list(message.missing),
    }


def _round(message: run_pb2.Round) -> Record:
    return {
        "round": message.number,
        "began_at_s": message.began_at_s,
        "ended_at_s": message.ended_at_s,
        "metrics": _sorted(message.metrics),
        "train_metrics": _sorted(message.train_metrics),
        "late": message.late,
        "sites": [_site(found) for found in message.sites],
    }


def _site(message: run_pb2.SiteRound) -> Record:
    return {
        "node": message.node,
        "site": message.site,
        "answer": answer(message),
        "detail": message.detail,
        "examples": message.examples,
        "metrics": _sorted(message.metrics),
        "train_metrics": _sorted(message.train_metrics),
        "update_norm": message.update_norm,
        "clipped": message.clipped,
        "train_s": message.train_s,
        "yielded_s": message.yielded_s,
        "suspect": message.suspect,
    }


def _gate(message: run_pb2.GateResult) -> Record:
    checks = [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in message.checks]
    return {"passed": message.passed, "checks": checks}


def _sorted(values: Mapping[str, Any]) -> Record:
    return {name: values[name] for name in sorted(values)}
