"""The bootstrap file of a client: what a gRPC `xds:///` channel reads, and all that the SDK needs, in one JSON file.

gRPC's xDS client can send no bearer token of its own, so the token travels as node metadata; the control plane takes
it from there.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from nearmesh import addresses
from nearmesh.errors import ConfigError
from nearmesh.tls import write_private

# Name of the certificate provider that the mesh's xDS clusters ask for.
CERTIFICATE_PROVIDER = "mesh"

# How often gRPC looks at the CA file again.
_REFRESH_S = 60

ENVIRONMENT = "GRPC_XDS_BOOTSTRAP"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientBootstrap:
    """What a client holds: an address, a CA, a token, and where it is."""

    control_plane: str
    """host:port of the control plane's public listener; of several, all with commas between."""

    ca_path: Path
    token: str
    region: str
    site: str = ""
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    """Nodes to be asked when the control plane does not answer: host:port of their public listeners, the first to be
    asked first, and their ids, "" where the file does not say."""

    @property
    def ca_pem(self) -> bytes:
        """The mesh's CA. Raises ConfigError when the file cannot be read."""
        try:
            return self.ca_path.read_bytes()
        except OSError as error:
            raise ConfigError(f"the mesh's CA cannot be read: {error}") from None


def grpc_bootstrap(
    control_plane: str,
    ca_path: Path,
    token: str,
    region: str,
    site: str = "",
    *,
    fallbacks: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON for `GRPC_XDS_BOOTSTRAP`; `fallbacks` are further xDS servers, tried in order: nodes' ids by host:port.

    `control_plane` is host:port, of several all with commas between. gRPC knows a server by the host in its address
    alone, so a fallback's certificate has to hold for its IP.
    """
    ca = str(ca_path.resolve())
    interval = f"{_REFRESH_S}s"
    control_planes = addresses.several(control_plane)
    # The SDK must know which of the servers are no nodes.
    counted: dict[str, Any] = {"control_planes": len(control_planes)} if len(control_planes) > 1 else {}
    nodes = fallbacks or {}
    # And which nodes those are: one that the mesh removed is not to be asked any more.
    named = {"fallback_nodes": list(nodes.values())} if any(nodes.values()) else {}
    servers = [
        {
            "server_uri": address,
            "channel_creds": [{"type": "tls", "config": {"ca_certificate_file": ca, "refresh_interval": interval}}],
            "server_features": ["xds_v3"],
        }
        for address in (*control_planes, *nodes)
    ]
    provider = {
        "plugin_name": "file_watcher",
        "config": {"ca_certificate_file": ca, "refresh_interval": interval},
    }
    return {
        "xds_servers": servers,
        "node": {
            "id": f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
            "locality": {"region": region, "zone": site},
            "metadata": {"token": token, **counted, **named},
        },
        "certificate_providers": {CERTIFICATE_PROVIDER: provider},
    }


def write_bootstrap(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the file readable by its owner alone: it holds a token."""
    write_private(path, json.dumps(content, indent=2).encode() + b"\n")


def read_bootstrap(path: Path | None = None) -> ClientBootstrap:
    """What the SDK needs from a bootstrap file; by default the one that `GRPC_XDS_BOOTSTRAP` names.

    Raises ConfigError that says what is missing and which command writes the file.
    """
    if path is None:
        named = os.environ.get(ENVIRONMENT)
        if not named:
            raise ConfigError(f"no bootstrap file: set {ENVIRONMENT}, or write one with 'nearmesh client bootstrap'")
        path = Path(named)
    try:
        return _parse(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; 'nearmesh client bootstrap' writes one") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{path}: not a client bootstrap of this mesh: {error!r}") from None


def _parse(content: Mapping[str, Any]) -> ClientBootstrap:
    node = content["node"]
    provider = content["certificate_providers"][CERTIFICATE_PROVIDER]
    servers = [server["server_uri"] for server in content["xds_servers"]]
    count = int(node["metadata"].get("control_planes", 1))
    nodes = map(str, node["metadata"].get("fallback_nodes", ()))
    return ClientBootstrap(
        control_plane=",".join([servers[0], *servers[1:count]]),
        fallbacks=dict(zip_longest(servers[count:], islice(nodes, len(servers[count:])), fillvalue="")),
        ca_path=Path(provider["config"]["ca_certificate_file"]),
        token=node["metadata"]["token"],
        region=node["locality"]["region"],
        site=node["locality"].get("zone", ""),
    )
