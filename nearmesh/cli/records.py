"""The mesh's messages as plain values: exactly what `--json` prints, and what the tables are made of.

The names are a promise to programs: they are added to, never changed.
"""

from __future__ import annotations

import json
import math
from typing import Any

from nearmesh.v1 import admin_pb2, catalog_pb2, node_pb2, route_pb2

Record = dict[str, Any]

_REPLICA_STATES = {
    node_pb2.REPLICA_STATE_PULLING: "pulling",
    node_pb2.REPLICA_STATE_LOADING: "loading",
    node_pb2.REPLICA_STATE_READY: "ready",
    node_pb2.REPLICA_STATE_FAILED: "failed",
    node_pb2.REPLICA_STATE_UNLOADING: "unloading",
    node_pb2.REPLICA_STATE_UNLOADED: "unloaded",
}

READY, FAILED = node_pb2.REPLICA_STATE_READY, node_pb2.REPLICA_STATE_FAILED

_STRATEGIES = {
    catalog_pb2.ROLLOUT_STRATEGY_ALL: "all",
    catalog_pb2.ROLLOUT_STRATEGY_ROLLING: "rolling",
    catalog_pb2.ROLLOUT_STRATEGY_CANARY: "canary",
}
_ROLLOUT_STATES = {
    catalog_pb2.ROLLOUT_STATE_RUNNING: "running",
    catalog_pb2.ROLLOUT_STATE_PAUSED: "paused",
    catalog_pb2.ROLLOUT_STATE_ROLLING_BACK: "rolling back",
    catalog_pb2.ROLLOUT_STATE_DONE: "done",
    catalog_pb2.ROLLOUT_STATE_ABORTED: "aborted",
    catalog_pb2.ROLLOUT_STATE_FAILED: "failed",
}
_ROLLOUT_PHASES = {
    catalog_pb2.ROLLOUT_PHASE_LOADING: "loading",
    catalog_pb2.ROLLOUT_PHASE_SCOUTING: "scouting",
    catalog_pb2.ROLLOUT_PHASE_STEPS: "steps",
    catalog_pb2.ROLLOUT_PHASE_ROLLING: "rolling",
}


def node(message: admin_pb2.Node) -> Record:
    return {
        "node": message.id,
        "kind": "gateway" if message.kind == admin_pb2.NODE_KIND_GATEWAY else "node",
        "site": message.site,
        "region": message.region,
        "state": node_state(message),
        "live": message.live,
        "draining": message.draining,
        "cordoned": message.cordoned,
        "removed": message.removed,
        "ready_replicas": message.ready_replicas,
        "usd_per_hour": message.usd_per_hour,
        "price_source": message.price_source,
        "spot": message.spot,
        "hardware": message.hardware,
        "agent_version": message.agent_version,
        "public_address": message.public_address,
        "mesh_address": message.mesh_address,
        "metrics_address": message.metrics_address,
        "last_seen_s": message.last_seen_s,
        "notice": message.notice,
        "notice_s": message.notice_s,
        "in_flight": message.in_flight,
        "sequences": message.sequences,
        "drained": message.drained,
        "training": training(message.training) if message.HasField("training") else None,
        "vectors": vectors(message.vectors) if message.HasField("vectors") else None,
    }


def vectors(message: node_pb2.VectorStatus) -> Record:
    """What a node keeps of them."""
    return {
        "collections": message.collections,
        "rows": message.rows,
        "bytes": message.bytes,
        "detail": message.detail,
    }


def training(message: node_pb2.TrainingStatus) -> Record:
    """What a node has for federated rounds."""
    return {
        "models": list(message.models),
        "running": message.running,
        "paused": message.paused,
        "yielded_s": message.yielded_s,
        "cpu_share": message.cpu_share,
        "detail": message.detail,
    }


def node_state(message: admin_pb2.Node) -> str:
    """In one word, and what operators have set beside it."""
    if message.removed:
        return "removed"
    here = "live" if message.live else "gone"
    if message.live and message.notice:
        here = f"leaving in {message.notice_s:.0f} s: {message.notice}"
    drain = "drained" if message.drained else "draining"
    marks = [word for word, on in ((drain, message.draining), ("cordoned", message.cordoned)) if on]
    return ", ".join([here, *marks])


def control_plane(message: admin_pb2.ControlPlane) -> Record:
    return {
        "control_plane": message.id,
        "leader": message.leader,
        "term": message.term,
        "public_address": message.public_address,
        "mesh_address": message.mesh_address,
        "http_address": message.http_address,
        "seen_at_s": message.seen_at_s,
    }


def version(message: catalog_pb2.ModelVersion) -> Record:
    return {
        "model": message.model,
        "version": message.version,
        "digest": message.digest,
        "size_bytes": message.size_bytes,
        "created_at_s": message.created_at_s,
        "registry": message.registry,
        "report": json.loads(message.report_json) if message.report_json else None,
        "lineage": json.loads(message.lineage_json) if message.lineage_json else None,
    }


def deployment(message: catalog_pb2.Deployment) -> Record:
    return {
        "model": message.model,
        "version": message.version,
        "digest": message.digest,
        "sites": list(message.sites),
        "created_at_s": message.created_at_s,
        "actor": message.actor,
        "regions": list(message.regions),
        "replicas": message.replicas,
        "nodes": list(message.nodes),
        "rollout": message.rollout or None,
    }


def rollout(message: catalog_pb2.Rollout) -> Record:
    return {
        "rollout": message.id,
        "model": message.model,
        "version": message.version,
        "digest": message.digest,
        "sites": list(message.sites),
        "regions": list(message.regions),
        "replicas": message.replicas,
        "strategy": _STRATEGIES.get(message.strategy, "unknown"),
        "steps": list(message.steps),
        "state": rollout_state(message),
        "reason": message.reason,
        "phase": _ROLLOUT_PHASES.get(message.phase, "unknown"),
        "step": message.step,
        "share": message.share,
        "scout": message.scout or None,
        "actor": message.actor,
        "created_at_s": message.created_at_s,
        "since_s": message.since_s,
        "ended_at_s": message.ended_at_s,
        "nodes": [rollout_node(found) for found in message.nodes],
        "options": {
            "step_s": message.options.step_s,
            "step_requests": message.options.step_requests,
            "node_limit_s": message.options.node_limit_s,
            "mirror_share": message.options.mirror_share,
            "largest_error_rate": message.options.largest_error_rate,
            "latency_factor": message.options.latency_factor,
            "latency_floor_ms": message.options.latency_floor_ms,
            "smallest_agreement": message.options.smallest_agreement,
        },
    }


def rollout_state(message: catalog_pb2.Rollout) -> str:
    return _ROLLOUT_STATES.get(message.state, "unknown")


def rollout_node(message: catalog_pb2.RolloutNode) -> Record:
    return {
        "node": message.node,
        "site": message.site,
        "live": message.live,
        "standing_version": message.standing_version,
        "changed_over": message.changed_over,
        "state": state_of(message.state),
        "detail": message.detail,
        "left_out": message.left_out,
        "pull_bytes": message.pull_bytes,
        "pulled_bytes": message.pulled_bytes,
        "answered": message.answered,
        "failed": message.failed,
        "compared": message.compared,
        "agreed": message.agreed,
        "service_ms_p95": message.service_ms_p95,
        "standing_ms_p95": message.standing_ms_p95,
    }


def replica(message: catalog_pb2.Replica) -> Record:
    status = message.status
    return {
        "node": message.node,
        "version": message.version,
        "digest": status.digest,
        "state": replica_state(status),
        "live": message.live,
        "detail": status.detail,
        "variant": status.variant,
        "variant_why": status.variant_why,
        "service_ms_p50": status.service_ms_p50,
        "service_ms_p95": status.service_ms_p95,
        "inferences_per_second": status.inferences_per_second,
        "in_flight": status.in_flight,
        "on_trial": status.on_trial,
        "cold": status.cold,
        "load_ms": status.load_ms,
        "idle_s": status.idle_s,
        "pull_bytes": status.pull_bytes,
        "pulled_bytes": status.pulled_bytes,
    }


def replica_state(status: node_pb2.ReplicaStatus) -> str:
    return state_of(status.state)


def state_of(state: node_pb2.ReplicaState) -> str:
    return _REPLICA_STATES.get(state, "unknown")


def model(message: catalog_pb2.Model) -> Record:
    return {
        "model": message.name,
        "objective": message.objective,
        "deadline_ms": message.deadline_ms,
        "regions": list(message.regions),
        "versions": [version(found) for found in message.versions],
        "deployments": [deployment(found) for found in message.deployments],
        "replicas": [replica(found) for found in message.replicas],
        "idle": idle(message.idle),
        "asleep": message.asleep,
        "asleep_since_s": message.asleep_since_s,
        "kept": list(message.kept),
    }


def idle(message: catalog_pb2.IdlePolicy) -> Record:
    return {
        "unload_after_s": message.unload_after_s,
        "scale_to_zero_after_s": message.scale_to_zero_after_s,
        "keep": message.keep,
    }


def policy(message: admin_pb2.Policy) -> Record:
    return {
        "model": message.model,
        "objective": message.objective,
        "deadline_ms": message.deadline_ms,
        "regions": list(message.regions),
    }


def residency(message: admin_pb2.Residency) -> Record:
    return {"client_region": message.client_region, "regions": list(message.regions)}


def prices(message: admin_pb2.ListPricesResponse) -> Record:
    return {
        "nodes": [node_price(found) for found in message.nodes],
        "transfers": [transfer_price(found) for found in message.transfers],
        "feed": {
            "source": message.feed.source,
            "read_at_s": message.feed.read_at_s,
            "prices": message.feed.prices,
            "error": message.feed.error,
        },
    }


def node_price(message: admin_pb2.NodePrice) -> Record:
    return {
        "node": message.node,
        "region": message.region,
        "machine_type": message.machine_type,
        "usd_per_hour": message.usd_per_hour,
        "spot": message.spot,
        "source": message.source,
        "amount": message.amount,
        "currency": message.currency,
        "valid_until_s": message.valid_until_s,
        "note": message.note,
    }


def transfer_price(message: admin_pb2.TransferPrice) -> Record:
    return {
        "from_region": message.from_region,
        "to_region": message.to_region,
        "usd_per_gb": message.usd_per_gb,
        "source": message.source,
    }


def route(message: route_pb2.Route) -> Record:
    return {
        "model": message.model,
        "version": message.version,
        "digest": message.digest,
        "client_region": message.region,
        "objective": message.objective,
        "deadline_ms": message.deadline_ms,
        "generation": message.generation,
        "demand_per_s": message.demand_per_s,
        "expires_at_s": message.expires_at_s,
        "note": message.note,
        "candidates": [candidate(found) for found in message.candidates],
    }


def candidate(message: route_pb2.Candidate) -> Record:
    # Of a node that does not serve the model there is nothing to be expected.
    served = bool(message.service_ms_quantiles)
    return {
        "node": message.node,
        "site": message.site,
        "region": message.region,
        "address": message.address,
        "ready": message.ready,
        "network_ms_p50": message.network_ms_p50,
        "network_ms_p95": message.network_ms_p95,
        "network_measured": message.network_measured,
        "service_ms_p50": message.service_ms_p50,
        "service_ms_p95": message.service_ms_p95,
        "total_ms_p50": message.total_ms_p50 if served else math.inf,
        "total_ms_p95": message.total_ms_p95 if served else math.inf,
        "total_ms_p99": message.total_ms_p99 if served else math.inf,
        "network_ms_quantiles": list(message.network_ms_quantiles),
        "service_ms_quantiles": list(message.service_ms_quantiles),
        "usd_per_hour": message.usd_per_hour,
        "usd_per_1000": message.usd_per_1000,
        "transfer_usd_per_1000": message.transfer_usd_per_1000,
        "spot": message.spot,
        "share": message.share,
        "utilization": message.utilization,
        "p_in_time": message.p_in_time,
        "in_time": message.in_time,
        "why": message.why,
    }


def accuracy(message: route_pb2.Accuracy) -> Record:
    return {
        "client_region": message.region,
        "model": message.model,
        "objective": message.objective,
        "reporter": message.reporter,
        "answered": message.answered,
        "failed": message.failed,
        "compared": message.compared,
        "late": message.late,
        "within_p50": message.within_p50,
        "within_p95": message.within_p95,
        "within_p99": message.within_p99,
        "actual_over_predicted": message.actual_over_predicted,
    }


def audit_entry(message: admin_pb2.AuditEntry) -> Record:
    return {
        "at_s": message.at_s,
        "actor": message.actor,
        "action": message.action,
        "subject": message.subject,
        "detail": message.detail,
    }
