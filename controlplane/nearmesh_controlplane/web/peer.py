"""An HTTPS server that tells the application whose certificate the peer showed, which plain uvicorn does not."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from nearmesh import addresses
from nearmesh.errors import ConfigError

# Key in the ASGI scope: the URIs in the peer's verified certificate; absent without one.
PEER_URIS = "nearmesh.peer_uris"


class PeerAwareProtocol(H11Protocol):
    """One connection; adds the peer's identity to the scope of every request on it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        certificate = transport.get_extra_info("peercert") or {}
        uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        if uris:
            self.app = _with_peer(self.app, uris)


def _with_peer(app: Any, uris: list[str]) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, PEER_URIS: uris}, receive, send)

    return call


class HttpsServer(uvicorn.Server):
    """uvicorn inside our event loop: signals and the reaction to a taken port are the process's, not its."""

    def __init__(self, app: ASGIApp, *, address: str, certificate: Path, key: Path, ca: Path) -> None:
        self._socket = _bound(address)
        super().__init__(
            uvicorn.Config(
                app,
                http=PeerAwareProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                ssl_certfile=certificate,
                ssl_keyfile=key,
                ssl_ca_certs=str(ca),
                ssl_cert_reqs=ssl.CERT_OPTIONAL,
                timeout_graceful_shutdown=2,
            )
        )
        self._certificate, self._key = certificate, key

    async def run_until_stopped(self) -> None:
        """Serves until `should_exit` is set."""
        await self.serve(sockets=[self._socket])

    def reload_certificate(self) -> None:
        """Takes over renewed files for new connections."""
        if self.config.ssl:
            self.config.ssl.load_cert_chain(self._certificate, self._key)

    def capture_signals(self) -> Any:
        return _Nothing()


def _bound(address: str) -> socket.socket:
    host, port = addresses.split(address)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from None


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_exc: object) -> None:
        pass
