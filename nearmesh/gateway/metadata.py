"""What a gateway tells the control plane about itself in its xDS node, so that its listener can be made for it.

Written by the gateway into its bootstrap, read by the control plane from the first discovery request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nearmesh.errors import InvalidInput

# Secrets by these names stand in the files that the metadata points to.
CERTIFICATE_SECRET, CA_SECRET = "certificate", "ca"
# The cluster, in the gateway's bootstrap, of its own process.
CALLS = "calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayMetadata:
    """Where a gateway listens and where it keeps its secrets; the paths are on the gateway's own machine."""

    host: str
    port: int
    # Plain text beside TLS, for stock clients on the same machine.
    plaintext: bool
    certificate_sds: str
    ca_sds: str
    # Its bootstrap has the cluster CALLS, which takes the access log.
    calls: bool = False

    def to_struct(self) -> dict[str, str | bool]:
        """The metadata as JSON; the port travels as text, since a protobuf Struct knows no integers."""
        return {
            "host": self.host,
            "port": str(self.port),
            "plaintext": self.plaintext,
            "certificate_sds": self.certificate_sds,
            "ca_sds": self.ca_sds,
            "calls": self.calls,
        }

    @classmethod
    def parse(cls, struct: Mapping[str, object]) -> GatewayMetadata:
        """Reads what `to_struct` wrote. Raises InvalidInput that names the bad key."""
        port = _text(struct, "port")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidInput(f"gateway metadata: port {port!r} is not 1 to 65535")
        return cls(
            host=_text(struct, "host"),
            port=int(port),
            plaintext=struct.get("plaintext") is True,
            certificate_sds=_text(struct, "certificate_sds"),
            ca_sds=_text(struct, "ca_sds"),
            calls=struct.get("calls") is True,
        )


def secret_source(name: str, path: str) -> dict[str, Any]:
    """A secret that Envoy reads from a file of its own machine, and again when the file's folder changes."""
    return {"name": name, "sds_config": {"path_config_source": {"path": path}, "resource_api_version": "V3"}}


def _text(struct: Mapping[str, object], key: str) -> str:
    value = struct.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"gateway metadata: {key!r} must be a non-empty text, got {value!r}")
    return value
