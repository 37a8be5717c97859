"""The one listener of an Envoy gateway: TLS and tokens, and how a request's body tells the model it is for."""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2  # noqa: F401  known by being imported
from envoy.extensions.filters.http.grpc_field_extraction.v3 import config_pb2  # noqa: F401  known by being imported
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2  # noqa: F401
from envoy.extensions.filters.http.lua.v3 import lua_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from google.protobuf import descriptor_pb2
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import model_config_pb2, service_pb2

from nearmesh.gateway.metadata import CALLS, CERTIFICATE_SECRET, GatewayMetadata, secret_source
from nearmesh.rpc import NODE_KEY
from nearmesh.tokens import LEEWAY_S, SUBJECT_HEADER
from nearmesh.xds.resources import packed, typed

LISTENER_NAME = ROUTES_NAME = "gateway"
MODEL_HEADER = "nearmesh-model"
SERVICE = "inference.GRPCInferenceService"
EXTRACTION_FILTER = "grpc-field-extraction"

# A request is kept whole until its answer begins, so that it can be sent again: 32 MiB and some framing. One that is
# larger is refused while its model is read from the body, and with the model in the header is sent once.
BUFFER_BYTES = 34 * 2**20
# Flow control must not cost round trips; and in Envoy a stream's window also bounds what a filter may keep of it.
STREAM_WINDOW_BYTES = BUFFER_BYTES
CONNECTION_WINDOW_BYTES = 2 * BUFFER_BYTES

# Which field of which method's request names the model.
NAMING_METHODS = {
    "ModelInfer": "model_name",
    "ModelStreamInfer": "model_name",
    "ModelMetadata": "name",
    "ModelConfig": "name",
    "ModelReady": "name",
    "ModelStatistics": "name",
}

# A client's own header stays: it is the faster way, and the node compares the body with what it serves anyway.
_NAME_TO_HEADER = f"""
function envoy_on_request(request)
  if request:headers():get("{MODEL_HEADER}") then return end
  local fields = request:streamInfo():dynamicMetadata():get("envoy.filters.http.grpc_field_extraction")
  if fields == nil then return end
  local found = fields["model_name"] or fields["name"]
  if found == nil or found[1] == nil or found[1] == "" then return end
  request:headers():add("{MODEL_HEADER}", found[1])
  request:clearRouteCache()
end
"""


# Of each call, what sums are made of: where it went is the cluster's name and the node's header.
_ACCESS_LOG = {
    "name": "calls",
    "typed_config": typed(
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        common_config={
            "log_name": "calls",
            "grpc_service": {"envoy_grpc": {"cluster_name": CALLS}},
            "transport_api_version": "V3",
            "buffer_flush_interval": "0.5s",
        },
        additional_response_headers_to_log=[NODE_KEY, "grpc-status"],
        additional_response_trailers_to_log=["grpc-status"],
    ),
}


@lru_cache(maxsize=64)
def gateway_listener(mesh: str, metadata: GatewayMetadata, jwks_json: str) -> bytes:
    """The listener at the gateway's address; it depends on nothing that changes with nodes, models or prices."""
    chains = [
        {
            "name": "tls",
            "filter_chain_match": {"transport_protocol": "tls"},
            "filters": [_manager(mesh, metadata, jwks_json, token_needed=True)],
            "transport_socket": {"name": "tls", "typed_config": _tls(metadata)},
        }
    ]
    if metadata.plaintext:
        chains.append(
            {
                "name": "plaintext",
                "filter_chain_match": {"transport_protocol": "raw_buffer"},
                "filters": [_manager(mesh, metadata, jwks_json, token_needed=False)],
            }
        )
    inspector = typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector")
    listener = {
        "name": LISTENER_NAME,
        "address": {"socket_address": {"address": metadata.host, "port_value": metadata.port}},
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "listener_filters": [{"name": "tls-inspector", "typed_config": inspector}],
        "filter_chains": chains,
    }
    return packed(ParseDict(listener, listener_pb2.Listener()))


def _tls(metadata: GatewayMetadata) -> dict[str, Any]:
    return typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [secret_source(CERTIFICATE_SECRET, metadata.certificate_sds)],
        },
    )


def _manager(mesh: str, metadata: GatewayMetadata, jwks_json: str, *, token_needed: bool) -> dict[str, Any]:
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=LISTENER_NAME,
        access_log=[_ACCESS_LOG] if metadata.calls else [],
        codec_type="HTTP2",
        # Nodes refuse more than 16 KiB, in which each of up to 100 headers counts for 32 bytes more (RFC 9113).
        max_request_headers_kb=12,
        rds={"route_config_name": ROUTES_NAME, "config_source": {"ads": {}, "resource_api_version": "V3"}},
        http2_protocol_options={
            "initial_stream_window_size": STREAM_WINDOW_BYTES,
            "initial_connection_window_size": CONNECTION_WINDOW_BYTES,
        },
        http_filters=[
            _tokens(mesh, jwks_json, token_needed),
            _extraction(),
            {
                "name": "model-header",
                "typed_config": typed(
                    "envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _NAME_TO_HEADER}
                ),
            },
            # Without suppression a client could switch off retries by x-envoy headers of its own.
            {
                "name": "router",
                "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
            },
        ],
    )
    return {"name": "http", "typed_config": manager}


def _tokens(mesh: str, jwks_json: str, token_needed: bool) -> dict[str, Any]:
    """Bearer tokens as `nearmesh.tokens` writes them; without TLS a token may be missing, but not be wrong."""
    provider = {
        "issuer": mesh,
        "audiences": ["nearmesh"],
        "local_jwks": {"inline_string": jwks_json},
        "clock_skew_seconds": LEEWAY_S,
        # Nodes keep callers' sequences apart by it. What a client says there itself is taken away first.
        "claim_to_headers": [{"header_name": SUBJECT_HEADER, "claim_name": "sub"}],
    }
    need: dict[str, Any] = {"provider_name": "mesh"}
    if not token_needed:
        need = {"requires_any": {"requirements": [need, {"allow_missing": {}}]}}
    config = typed(
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        providers={"mesh": provider},
        rules=[{"match": {"prefix": "/"}, "requires": need}],
    )
    return {"name": "tokens", "typed_config": config}


def _extraction() -> dict[str, Any]:
    config = typed(
        "envoy.extensions.filters.http.grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(_inference_descriptors()).decode()},
        extractions_by_method={
            f"{SERVICE}.{method}": {"request_field_extractions": {field: {}}}
            for method, field in NAMING_METHODS.items()
        },
    )
    return {"name": EXTRACTION_FILTER, "typed_config": config}


def _inference_descriptors() -> bytes:
    """The Open Inference Protocol as tritonclient carries it, imports before importers."""
    found = descriptor_pb2.FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(found.file.add())
    return found.SerializeToString(deterministic=True)
