"""The xDS resources of gRPC `xds:///MODEL` clients.

A listener for each model with its routes inside, a cluster for each objective. A model that the mesh does not know
gets a listener too, which answers NOT_FOUND at once: for a listener that is merely absent, gRPC waits 15 s.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401  known to ParseDict by being imported
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from google.protobuf.json_format import ParseDict

from nearmesh.routing import OBJECTIVE_HEADER
from nearmesh.routing.table import ModelRoutes
from nearmesh.xds.endpoints import assignment
from nearmesh.xds.resources import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    SEQUENCE_HEADER,
    STREAM_INFER_PATH,
    Resources,
    cluster_name,
    keeps_sequences,
    model_clusters,
    node_identities,
    packed,
    sequence_cluster,
    typed,
)

# The cluster, empty, that the NOT_FOUND listener's route must name although no call gets there.
NOWHERE = "nowhere"

# The certificate provider in the client's bootstrap that holds the mesh's CA.
CERTIFICATE_PROVIDER = "mesh"

# gRPC makes at most five attempts whatever is asked for. CANCELLED is what calls end with that a stopping server cut
# off; a client that cancels by itself is gone before a retry. RESOURCE_EXHAUSTED comes of an overloaded node, before it
# has done anything: another one that shares the region's requests may have room.
_RETRY = {
    "retry_on": "unavailable,cancelled,resource-exhausted",
    "num_retries": 4,
    "retry_back_off": {"base_interval": "0.015s", "max_interval": "0.1s"},
}

# Finds nodes that hang or fail every call. Any status but OK counts as a failure, so one good answer in an interval
# clears a node: else a few bad requests of the app itself would take every node from it. Ejections are short for the
# same reason, but longer than the control plane takes to see that a node is silent (ADR 5).
_OUTLIERS = {
    "interval": "1s",
    "base_ejection_time": "5s",
    "max_ejection_time": "5s",
    "max_ejection_percent": 100,
    "failure_percentage_threshold": 99,
    "enforcing_failure_percentage": 100,
    "failure_percentage_minimum_hosts": 1,
    "failure_percentage_request_volume": 3,
    "enforcing_success_rate": 0,
}

_ROUTER = {"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router")}
_GRPC_NOT_FOUND = 5
_NOT_FOUND = {
    "name": "unknown-model",
    "typed_config": typed(
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
        abort={"grpc_status": _GRPC_NOT_FOUND, "percentage": {"numerator": 100}},
    ),
}


def client_model(mesh: str, model: str, routes: ModelRoutes | None) -> Resources:
    """What a client that asks for `model` may be told."""
    if routes is None:
        return _unknown(mesh, model)
    clusters, endpoints = {}, {}
    for name, members in model_clusters(model, routes):
        clusters[name] = _cluster(name, mesh, len(members) > 1)
        endpoints[name] = assignment(name, members)
    return {
        LISTENER: {model: model_listener(model, tuple(sorted(routes.by_objective)))},
        CLUSTER: clusters,
        ENDPOINTS: endpoints,
    }


def _unknown(mesh: str, model: str) -> Resources:
    nowhere = assignment(NOWHERE, ())
    return {
        LISTENER: {model: unknown_listener(model)},
        CLUSTER: {NOWHERE: _cluster(NOWHERE, mesh, False)},
        ENDPOINTS: {NOWHERE: nowhere},
    }


@lru_cache(maxsize=1024)
def _cluster(name: str, mesh: str, several: bool) -> bytes:
    cluster = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        "lb_policy": "RING_HASH" if keeps_sequences(name) else "ROUND_ROBIN",
        "transport_socket": {"name": "tls", "typed_config": _tls(mesh)},
    }
    # Ejecting the only node would turn slow answers into none.
    if several:
        cluster["outlier_detection"] = _OUTLIERS
    # Whoever serves the cluster also hears how many calls it got; gRPC reports by itself.
    if name != NOWHERE:
        cluster["lrs_server"] = {"self": {}}
    return packed(ParseDict(cluster, cluster_pb2.Cluster()))


def _tls(mesh: str) -> dict[str, Any]:
    validation = {
        "ca_certificate_provider_instance": {"instance_name": CERTIFICATE_PROVIDER},
        "match_subject_alt_names": [node_identities(mesh)],
    }
    return typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={"validation_context": validation},
    )


@lru_cache(maxsize=1024)
def model_listener(model: str, objectives: tuple[str, ...]) -> bytes:
    """Routes by the sequence, else by the objective; a stream is pinned to one node, so it alone is never retried."""
    sequences = {"cluster": sequence_cluster(model), "hash_policy": [{"header": {"header_name": SEQUENCE_HEADER}}]}
    named = {"headers": [{"name": SEQUENCE_HEADER, "present_match": True}]}
    routes: list[dict[str, Any]] = [
        {"match": {"path": STREAM_INFER_PATH, **named}, "route": sequences},
        {"match": {"prefix": "", **named}, "route": sequences | {"retry_policy": _RETRY}},
    ]
    for objective in (*objectives, None):
        headers = [{"name": OBJECTIVE_HEADER, "string_match": {"exact": objective}}] if objective else []
        action = {"cluster": cluster_name(model, objective)}
        routes.append({"match": {"path": STREAM_INFER_PATH, "headers": headers}, "route": action})
        routes.append({"match": {"prefix": "", "headers": headers}, "route": action | {"retry_policy": _RETRY}})
    return _listener(model, routes, [_ROUTER])


@lru_cache(maxsize=1024)
def unknown_listener(model: str) -> bytes:
    """Answers every call NOT_FOUND, until the model appears and its real listener takes this one's place."""
    return _listener(model, [{"match": {"prefix": ""}, "route": {"cluster": NOWHERE}}], [_NOT_FOUND, _ROUTER])


def _listener(name: str, routes: list[dict[str, Any]], filters: list[dict[str, Any]]) -> bytes:
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        http_filters=filters,
        route_config={"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
    )
    return packed(ParseDict({"name": name, "api_listener": {"api_listener": manager}}, listener_pb2.Listener()))
