"""The clusters and routes of Envoy gateways. What changes with the mesh is here; the listener stays as it is.

Envoy drains every connection of a listener that changes, so routes travel apart from it (RDS).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2  # noqa: F401  known by being imported
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from google.protobuf.json_format import ParseDict

from nearmesh.gateway.metadata import CA_SECRET, CERTIFICATE_SECRET, GatewayMetadata, secret_source
from nearmesh.routing import OBJECTIVE_HEADER, OBJECTIVES
from nearmesh.routing.table import ModelRoutes, RouteTable
from nearmesh.xds.endpoints import assignment
from nearmesh.xds.envoy_listener import (
    BUFFER_BYTES,
    CONNECTION_WINDOW_BYTES,
    EXTRACTION_FILTER,
    LISTENER_NAME,
    MODEL_HEADER,
    NAMING_METHODS,
    ROUTES_NAME,
    SERVICE,
    STREAM_WINDOW_BYTES,
    gateway_listener,
)
from nearmesh.xds.resources import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    ROUTES,
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

# No model can be called so: an underscore is no part of a label.
NEAREST = "_nearest"

# Enough to go once round a large mesh; how far a retry gets is bounded by the call's deadline.
_RETRIES = 6
_RETRY = {
    # Overloaded nodes answer RESOURCE_EXHAUSTED; another node may have room.
    "retry_on": "unavailable,cancelled,resource-exhausted,connect-failure,reset,refused-stream",
    "num_retries": _RETRIES,
    "retry_back_off": {"base_interval": "0.010s", "max_interval": "0.1s"},
    "retry_priority": {
        "name": "previous-priorities",
        "typed_config": typed(
            "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=1
        ),
    },
    "retry_host_predicate": [
        {
            "name": "previous-hosts",
            "typed_config": typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
        }
    ],
    "host_selection_retry_max_attempts": 3,
}

# UNIMPLEMENTED and INTERNAL would count among the 5xx, and they say something about a request, not about a node.
_OUTLIERS = {
    "interval": "0.5s",
    # Longer than the control plane takes to see that a node is silent (ADR 5): whoever comes back by time alone is met
    # by a call that waits for its handshake. A node that joins anew is another one to Envoy, and is asked at once.
    "base_ejection_time": "10s",
    "max_ejection_time": "10s",
    "max_ejection_percent": 100,
    "split_external_local_origin_errors": True,
    "consecutive_gateway_failure": 5,
    "enforcing_consecutive_gateway_failure": 100,
    # A connection that broke off or did not come about: of a node that froze the next call would wait for a handshake,
    # and where few calls go there are not more of them to learn from.
    "consecutive_local_origin_failure": 1,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_consecutive_5xx": 0,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
}

# 0 would turn it off.
_PANIC_PERCENT = 1.0

# The defaults (1,024 requests, 3 retries at once) would fail calls just when a node dies under load.
_NO_BREAKER = 1_000_000

# A frozen node's kernel still acknowledges: only unanswered HTTP/2 pings show it. Any byte that arrives counts as an
# answer, so a long upload over a slow line is not mistaken for a frozen node. With the interval's jitter (15 %) such a
# node is left after 1.4 s; one that stalls for less than a second stays.
_KEEPALIVE = {"interval": "0.25s", "timeout": "1.1s", "connection_idle_interval": "5s"}

_NAMELESS = tuple(f"/{SERVICE}/{method}" for method in ("ServerLive", "ServerReady", "ServerMetadata"))
_NAMELESS += (f"/{SERVICE}/RepositoryIndex", f"/{SERVICE}/ModelStatistics")
_NAMELESS_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
_REPOSITORY = tuple(f"/{SERVICE}/{method}" for method in ("RepositoryModelLoad", "RepositoryModelUnload"))

_GRPC = {"INVALID_ARGUMENT": "3", "NOT_FOUND": "5", "PERMISSION_DENIED": "7", "UNIMPLEMENTED": "12"}


def gateway_model(model: str, routes: ModelRoutes | None) -> Resources:
    """The part of a model that all gateways of a region share."""
    clusters = model_clusters(model, routes) if routes else ()
    return {ENDPOINTS: {name: assignment(name, members) for name, members in clusters}}


class GatewayResources:
    """Everything that one gateway asks for; what belongs to it alone is made once."""

    def __init__(self, mesh: str, metadata: GatewayMetadata) -> None:
        self._mesh = mesh
        self._metadata = metadata
        self._clusters: dict[str, bytes] = {}

    def of(self, table: RouteTable, models: Resources, jwks_json: str) -> Resources:
        """`models` is what `gateway_model` gives for all models of the table."""
        nearest = assignment(NEAREST, table.nearest)
        endpoints = {NEAREST: nearest, **models.get(ENDPOINTS, {})}
        self._clusters = {name: self._cluster(name) for name in endpoints}
        shape = tuple(sorted((model, tuple(sorted(r.by_objective))) for model, r in table.models.items()))
        return {
            CLUSTER: self._clusters,
            ENDPOINTS: endpoints,
            LISTENER: {LISTENER_NAME: gateway_listener(self._mesh, self._metadata, jwks_json)},
            ROUTES: {ROUTES_NAME: gateway_routes(shape)},
        }

    def _cluster(self, name: str) -> bytes:
        return self._clusters.get(name) or _cluster(name, self._mesh, self._metadata)


def _cluster(name: str, mesh: str, metadata: GatewayMetadata) -> bytes:
    """The same for any set of endpoints: Envoy would warm up a changed cluster anew.

    Panic routing starts when no endpoint of any priority is fit, and then any is tried: better than an error for
    everybody after one client's bad luck. At its default of 50 % a site with two of three nodes frozen would be sent
    requests to all of them.
    """
    limits = {"max_connections": _NO_BREAKER, "max_pending_requests": _NO_BREAKER}
    limits |= {"max_requests": _NO_BREAKER, "max_retries": _NO_BREAKER}
    cluster = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        "lb_policy": "RING_HASH" if keeps_sequences(name) else "ROUND_ROBIN",
        "common_lb_config": {"healthy_panic_threshold": {"value": _PANIC_PERCENT}},
        # TCP and TLS handshakes half way round the earth take about 0.6 s.
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [limits]},
        "outlier_detection": _OUTLIERS,
        "ignore_health_on_host_removal": True,
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 10, "keepalive_interval": 5}},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _http2()},
        "transport_socket": {"name": "tls", "typed_config": _tls(mesh, metadata)},
    }
    return packed(ParseDict(cluster, cluster_pb2.Cluster()))


def _http2() -> dict[str, Any]:
    options = {
        "initial_stream_window_size": STREAM_WINDOW_BYTES,
        "initial_connection_window_size": CONNECTION_WINDOW_BYTES,
        "connection_keepalive": _KEEPALIVE,
    }
    return typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http2_protocol_options": options},
    )


def _tls(mesh: str, metadata: GatewayMetadata) -> dict[str, Any]:
    validation = {
        "default_validation_context": {
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": node_identities(mesh)}]
        },
        "validation_context_sds_secret_config": secret_source(CA_SECRET, metadata.ca_sds),
    }
    return typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [secret_source(CERTIFICATE_SECRET, metadata.certificate_sds)],
            "combined_validation_context": validation,
        },
    )


@lru_cache(maxsize=64)
def gateway_routes(models: tuple[tuple[str, tuple[str, ...]], ...]) -> bytes:
    """The route table for (model, objectives) pairs, first match wins.

    A request is matched twice: on arrival, and again once the model's name was read from its body into a header.
    """
    routes = [_refusal({"path": path}, "PERMISSION_DENIED", 403, _NO_REPOSITORY) for path in _REPOSITORY]
    routes += [_unknown_objective()]
    for model, objectives in models:
        routes += _model_routes(model, objectives)
    any_model = [{"name": MODEL_HEADER, "present_match": True}]
    routes += [_refusal({"prefix": "/", "headers": any_model}, "NOT_FOUND", 404, _NO_MODEL)]
    routes += [_forward({"path": path}, NEAREST) for path in _NAMELESS]
    routes += [_forward({"prefix": prefix}, NEAREST) for prefix in _NAMELESS_SERVICES]
    naming = [path for method in NAMING_METHODS if (path := f"/{SERVICE}/{method}") not in _NAMELESS]
    routes += [_refusal({"path": path}, "INVALID_ARGUMENT", 400, _NO_NAME) for path in naming]
    routes += [_refusal({"prefix": "/"}, "UNIMPLEMENTED", 404, _NO_METHOD)]
    host = {"name": ROUTES_NAME, "domains": ["*"], "routes": routes, "include_request_attempt_count": True}
    return packed(ParseDict({"name": ROUTES_NAME, "virtual_hosts": [host]}, route_pb2.RouteConfiguration()))


_NO_REPOSITORY = "models are loaded by 'nearmesh model deploy', not through a gateway"
_NO_MODEL = f"model '%REQ({MODEL_HEADER})%' is not served by this mesh; 'nearmesh model list' shows what is"
_NO_NAME = "the request names no model"
_NO_METHOD = "the gateway offers no method %REQ(:path)%"


def _model_routes(model: str, objectives: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    sequence = [_exactly(MODEL_HEADER, model), {"name": SEQUENCE_HEADER, "present_match": True}]
    for match in ({"path": STREAM_INFER_PATH}, {"prefix": "/"}):
        yield _forward({**match, "headers": sequence}, sequence_cluster(model), named=True)
    for objective in (*objectives, None):
        headers = [_exactly(MODEL_HEADER, model), *([_exactly(OBJECTIVE_HEADER, objective)] if objective else [])]
        cluster = cluster_name(model, objective)
        yield _forward({"path": STREAM_INFER_PATH, "headers": headers}, cluster, named=True)
        yield _forward({"prefix": "/", "headers": headers}, cluster, named=True)


def _exactly(header: str, value: str) -> dict[str, Any]:
    return {"name": header, "string_match": {"exact": value}}


def _forward(match: dict[str, Any], cluster: str, *, named: bool = False) -> dict[str, Any]:
    """To a cluster, until the caller's own deadline; `named`: the header is there, so the body need not be read.

    The deadline is kept by the stream's duration, not by the route's timeout: that one counts as the node's failure,
    and a client with hopeless deadlines would have nodes ejected for all others.
    """
    action: dict[str, Any] = {"cluster": cluster, "timeout": "0s"}
    action["max_stream_duration"] = {"grpc_timeout_header_max": "0s"}
    if keeps_sequences(cluster):
        action["hash_policy"] = [{"header": {"header_name": SEQUENCE_HEADER}}]
    if match.get("path") == STREAM_INFER_PATH:
        action["idle_timeout"] = "0s"
    else:
        action["retry_policy"] = _RETRY
    route = {"match": match, "route": action, "request_body_buffer_limit": BUFFER_BYTES}
    if named:
        off = typed("envoy.config.route.v3.FilterConfig", disabled=True)
        route["typed_per_filter_config"] = {EXTRACTION_FILTER: off}
    return route


def _unknown_objective() -> dict[str, Any]:
    # Of the mesh, not of its models: without any model the pattern would be empty, which Envoy refuses with the whole
    # table.
    known = sorted(OBJECTIVES)
    unknown = {"name": OBJECTIVE_HEADER, "string_match": {"safe_regex": {"regex": "|".join(known)}}}
    headers = [{"name": OBJECTIVE_HEADER, "present_match": True}, unknown | {"invert_match": True}]
    message = f"{OBJECTIVE_HEADER} '%REQ({OBJECTIVE_HEADER})%' is not one of {', '.join(known)}"
    return _refusal({"prefix": "/", "headers": headers}, "INVALID_ARGUMENT", 400, message)


def _refusal(match: dict[str, Any], status: str, http_status: int, message: str) -> dict[str, Any]:
    """An answer of the gateway's own; Envoy's translation of HTTP into gRPC statuses is corrected by a header."""
    headers = {"grpc-status": _GRPC[status], "grpc-message": message}
    added = [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]
    # Without a body, since Envoy would make that the message, and a body knows no placeholders.
    return {"match": match, "direct_response": {"status": http_status}, "response_headers_to_add": added}
