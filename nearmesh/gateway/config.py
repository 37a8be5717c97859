"""How a gateway is configured: `gateway.toml`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nearmesh import addresses
from nearmesh.errors import ConfigError

LogLevel = Literal["trace", "debug", "info", "warning", "error", "critical", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """One gateway in one client region."""

    data: Path
    """Folder of the identity and of the files that Envoy reads; the gateway owns it."""

    listen: str = "127.0.0.1:8001"
    """IP:port for clients; port 0 asks the system for a free one."""

    plaintext: bool = False
    """Also takes calls in plain text and without a token, for stock clients on this machine; on loopback only."""

    admin_port: int = 0
    """Envoy's own administration page, on loopback; 0 leaves it off, as anybody on the machine may use it."""

    envoy_log_level: LogLevel = "warning"

    envoy_threads: int = 0
    """Worker threads; 0 is one for each processor. Each keeps its own connections to every node."""

    def __post_init__(self) -> None:
        host, _ = addresses.split_ip(self.listen)
        if self.plaintext and not ipaddress.ip_address(host).is_loopback:
            raise ConfigError(f"plaintext needs a loopback address, listen is {self.listen!r}; use 127.0.0.1 or TLS")
        if not 0 <= self.admin_port < 65536:
            raise ConfigError(f"admin_port {self.admin_port} is not 0 to 65535")
        if self.envoy_threads < 0:
            raise ConfigError(f"envoy_threads {self.envoy_threads} is below 0")
