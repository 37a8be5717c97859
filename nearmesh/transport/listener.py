"""Sockets that listen, and TLS on them: certificates that are renewed while the server runs are shown from then on."""

from __future__ import annotations

import logging
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

from nearmesh.errors import ConfigError
from nearmesh.tls import Credentials

log = logging.getLogger(__name__)

# Connections that wait to be accepted.
BACKLOG = 1024


def bound(address: str) -> socket.socket:
    """A socket that listens at host:port; [::] is every address of both kinds. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"cannot listen on {address}: expected HOST:PORT, ports are 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, int(port)),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from None


def bound_unix(path: Path) -> socket.socket:
    """A socket that listens at `path`, for this user alone; one that is left over there goes. Raises ConfigError."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        found.bind(str(path))
        path.chmod(0o600)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        raise ConfigError(f"cannot listen on {path}: {error}") from None
    return found


def check_loopback(address: str) -> None:
    """Raises ConfigError for an address that others can reach."""
    host = address.rpartition(":")[0].strip("[]")
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"{address}: without TLS a server listens on loopback only (127.0.0.1)")


def shown(address: str, found: socket.socket) -> str:
    """The address with the port that the system gave."""
    return f"{address.rpartition(':')[0]}:{found.getsockname()[1]}"


def server_context(current: Callable[[], Credentials], *, mesh: bool) -> ssl.SSLContext:
    """TLS for a listener; `current` is asked at each handshake. With `mesh` a certificate of the mesh is demanded."""
    shown_now = current()
    context = _context(shown_now, mesh=mesh)
    latest = context

    def renew(connection: ssl.SSLObject, _name: str | None, _context_of: ssl.SSLContext) -> None:
        nonlocal shown_now, latest
        found = current()
        if found is not shown_now:
            shown_now, latest = found, _context(found, mesh=mesh)
        if latest is not context:
            connection.context = latest

    # Called at each handshake, whether the client names a server or not.
    context.sni_callback = renew
    return context


def _context(credentials: Credentials, *, mesh: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    # Python reads certificates from files alone.
    with tempfile.TemporaryDirectory(prefix="nearmesh-tls-") as folder:
        file = Path(folder) / "chain.pem"
        file.touch(mode=0o600)
        file.write_bytes(credentials.key_pem + b"\n" + credentials.certificate_pem)
        context.load_cert_chain(file)
    if mesh:
        # Nobody is let in on the word of an earlier connection.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=credentials.ca_pem.decode())
    return context
