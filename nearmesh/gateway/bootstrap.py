"""The small file that Envoy starts from: who it is and where the control plane is; all else comes by ADS."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearmesh import addresses
from nearmesh.gateway.metadata import CA_SECRET, CALLS, CERTIFICATE_SECRET, GatewayMetadata, secret_source
from nearmesh.ids import MachineId
from nearmesh.tls import Credentials, write_private

_TYPES = "type.googleapis.com/"
_TLS = "envoy.extensions.transport_sockets.tls.v3"

CONTROL_PLANE = "control-plane"
# Below the usual limit of open files, so that a flood of connections is refused and not fatal.
MAX_CONNECTIONS = 10_000
BOOTSTRAP_FILE = "envoy.json"
CERTIFICATE_FILE, CA_FILE, CONFIGURES_FILE = "sds-certificate.json", "sds-ca.json", "sds-control-plane.json"
# The secret that says who may configure this gateway.
CONFIGURES = "control-plane"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayIdentity:
    """Which gateway of which mesh this is, and who configures it."""

    id: str
    mesh: str
    region: str
    site: str
    control_plane: Sequence[str]
    """host:port of mesh listeners that serve ADS, the preferred one first: the control plane, then nodes."""

    control_plane_names: Sequence[str]
    """DNS names or IP addresses, one of which is in a control plane's certificate."""

    configures_sds: str
    """The file that `write_configures` wrote."""

    calls: Path | None = None
    """The socket on which the gateway's own process takes the access log."""


def write_secrets(data: Path, credentials: Path) -> tuple[Path, Path]:
    """Writes the two files by which Envoy finds certificate and CA in `credentials`; gives their paths.

    Envoy watches the folder: a renewed certificate that is moved into it is in use from then on.
    """
    watched = {"path": str(credentials.resolve())}
    pair = {
        "certificate_chain": _file(credentials / Credentials.CERTIFICATE),
        "private_key": _file(credentials / Credentials.KEY),
        "watched_directory": watched,
    }
    trusted = {"trusted_ca": _file(credentials / Credentials.CA), "watched_directory": watched}
    paths = data / CERTIFICATE_FILE, data / CA_FILE
    _write(paths[0], _secret(CERTIFICATE_SECRET, {"tls_certificate": pair}))
    _write(paths[1], _secret(CA_SECRET, {"validation_context": trusted}))
    return paths


def write_configures(data: Path, credentials: Path, mesh: str, names: Iterable[str], nodes: Iterable[str]) -> Path:
    """Writes the file that says who may configure this gateway: control planes by those names, and those nodes.

    Apart from the bootstrap, which Envoy reads once: a node that the mesh removed is not believed from then on, though
    its address stands there. (A stream that is open to it stays open.)
    """
    names = dict.fromkeys(names)
    accepted = [{"san_type": "IP_ADDRESS" if _is_ip(name) else "DNS", "matcher": {"exact": name}} for name in names]
    identities = [MachineId(mesh, "node", node).spiffe for node in nodes]
    accepted += [{"san_type": "URI", "matcher": {"exact": identity}} for identity in identities]
    context = {
        "trusted_ca": _file(credentials / Credentials.CA),
        "watched_directory": {"path": str(credentials.resolve())},
        "match_typed_subject_alt_names": accepted,
    }
    path = data / CONFIGURES_FILE
    _write(path, _secret(CONFIGURES, {"validation_context": context}))
    return path


def write_bootstrap(data: Path, who: GatewayIdentity, metadata: GatewayMetadata, admin_port: int = 0) -> Path:
    """Writes Envoy's bootstrap into `data` and gives its path."""
    path = data / BOOTSTRAP_FILE
    _write(path, envoy_bootstrap(who, metadata, admin_port))
    return path


def envoy_bootstrap(who: GatewayIdentity, metadata: GatewayMetadata, admin_port: int = 0) -> dict[str, Any]:
    """The bootstrap as JSON."""
    ads = {"ads": {}, "resource_api_version": "V3"}
    service = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL_PLANE}}],
    }
    bootstrap: dict[str, Any] = {
        "node": {
            "id": who.id,
            "cluster": who.mesh,
            "locality": {"region": who.region, "zone": who.site},
            "metadata": metadata.to_struct(),
        },
        "dynamic_resources": {"ads_config": service, "cds_config": ads, "lds_config": ads},
        "static_resources": {"clusters": [_control_plane(who, metadata), *([_calls(who.calls)] if who.calls else [])]},
        "overload_manager": {"resource_monitors": [_connection_limit()]},
    }
    if admin_port:
        bootstrap["admin"] = {"address": _socket("127.0.0.1", admin_port)}
    return bootstrap


def _connection_limit() -> dict[str, Any]:
    monitor = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    config = {"@type": _TYPES + monitor, "max_active_downstream_connections": MAX_CONNECTIONS}
    return {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": config}


def _control_plane(who: GatewayIdentity, metadata: GatewayMetadata) -> dict[str, Any]:
    """Who configures, in order: the next one is used while those before it do not answer."""
    keepalive = {"interval": "5s", "timeout": "5s"}
    http2 = {
        "@type": _TYPES + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {"connection_keepalive": keepalive}},
    }
    localities = [
        {"priority": priority, "lb_endpoints": [{"endpoint": {"address": _socket(*addresses.split(address))}}]}
        for priority, address in enumerate(who.control_plane)
    ]
    return {
        "name": CONTROL_PLANE,
        "type": "STRICT_DNS",
        # A name may have addresses of both families and a server on one of them only.
        "dns_lookup_family": "ALL",
        "connect_timeout": "3s",
        # A connection that fails takes that control plane out of the choice, so that the next one is tried.
        "outlier_detection": {"interval": "1s", "base_ejection_time": "5s", "consecutive_5xx": 2}
        | {"max_ejection_percent": 100},
        "load_assignment": {"cluster_name": CONTROL_PLANE, "endpoints": localities},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "transport_socket": {"name": "tls", "typed_config": _tls(who, metadata)},
    }


def _calls(socket: Path) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    http2 = {
        "@type": _TYPES + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "name": CALLS,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": CALLS, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
    }


def _tls(who: GatewayIdentity, metadata: GatewayMetadata) -> dict[str, Any]:
    names = who.control_plane_names
    return {
        "@type": f"{_TYPES}{_TLS}.UpstreamTlsContext",
        # TLS has no place for an IP address in its server name, and our servers do not look at it.
        "sni": next((name for name in names if not _is_ip(name)), ""),
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [secret_source(CERTIFICATE_SECRET, metadata.certificate_sds)],
            "validation_context_sds_secret_config": secret_source(CONFIGURES, who.configures_sds),
        },
    }


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _secret(name: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"resources": [{"@type": f"{_TYPES}{_TLS}.Secret", "name": name} | content]}


def _file(path: Path) -> dict[str, str]:
    return {"filename": str(path.resolve())}


def _socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_private(path, json.dumps(content, indent=2).encode())
