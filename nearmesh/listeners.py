"""The two gRPC listeners of the control plane's server: public (TLS, bearer token) and mesh (a certificate is asked).

A Python gRPC server either demands client certificates or never asks, hence two. Both are ports of one server and
lead to the same servicers; what a caller may do follows from who it is (`nearmesh.rpc`). Renewed certificates are
taken over at the next handshake. An agent has a server of its own, with the same two (`nearmesh.transport`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from nearmesh.errors import ConfigError
from nearmesh.rpc import Gatekeeper, GuardedServer
from nearmesh.tls import Credentials

# A whole request may be on its way at once: with gRPC's small first window, one of several megabytes would need many
# round trips.
STREAM_WINDOW_BYTES = 32 * 1024 * 1024
# Calls at a time on one connection; more wait, or come on another. Without a limit, one caller could take all memory.
MAX_STREAMS = 1000


def server_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Channel arguments of the control plane's server."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # Two processes on one port would share its connections by chance.
        ("grpc.so_reuseport", 0),
        # Clients probe idle connections to notice a dead path early; that is no abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", 1000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def new_server(gatekeeper: Gatekeeper, max_message_bytes: int) -> GuardedServer:
    """A server whose every call passes the gatekeeper."""
    return GuardedServer(gatekeeper, server_options(max_message_bytes))


def listen(server: GuardedServer, address: str, current: Callable[[], Credentials], *, mesh: bool) -> str:
    """Adds a listener and returns its host:port. `current` is asked at each handshake. Raises ConfigError."""
    served = current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        found = current()
        if found is served:
            return None
        served = found
        return _configuration(found, mesh=mesh)

    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(served, mesh=mesh),
        fetch,  # type: ignore[arg-type]  # None means unchanged, which the type stubs do not know
        require_client_authentication=mesh,
    )
    return _bound(address, lambda: server.add_secure_port(address, credentials))


def check_loopback(address: str) -> None:
    """Raises ConfigError for an address that others can reach."""
    host = address.rpartition(":")[0].strip("[]")
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"{address}: without TLS a server listens on loopback only (127.0.0.1)")


def _configuration(credentials: Credentials, *, mesh: bool) -> grpc.ServerCertificateConfiguration:
    pair = [(credentials.key_pem, credentials.certificate_pem)]
    return grpc.ssl_server_certificate_configuration(pair, root_certificates=credentials.ca_pem if mesh else None)


def _bound(address: str, bind: Callable[[], int]) -> str:
    try:
        port = bind()
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from None
    return f"{address.rpartition(':')[0]}:{port}"
