"""How a client finds its mesh: from a bootstrap file, or from four arguments.

The bootstrap file is gRPC's own xDS bootstrap (`nearmesh client bootstrap` writes it), so that one file serves both
`xds:///` channels and this SDK.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearmesh.errors import ConfigError

# A token file is looked at again after this long, so that a new token is used without a restart.
_TOKEN_CHECK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings:
    """What a client needs to know."""

    # host:port of the control plane's public listener.
    control_plane: str
    # The mesh's certificate authority, PEM.
    ca_pem: bytes
    # Where this client is, as the clouds name it.
    region: str
    site: str = ""
    # The bearer token, or the file that holds it; the file wins and may be replaced at any time.
    token: str = ""
    token_path: Path | None = None
    # Name to expect in the control plane's certificate; empty: the host of its address.
    control_plane_name: str = ""

    def __post_init__(self) -> None:
        if not self.control_plane or not self.region:
            raise ConfigError("a client needs the control plane's address (host:port) and its own region")
        if b"BEGIN CERTIFICATE" not in self.ca_pem:
            raise ConfigError("the CA is not a certificate in PEM")
        if not self.token and self.token_path is None:
            raise ConfigError("a client needs a bearer token; `nearmesh client bootstrap` writes one")


def from_arguments(
    *, control_plane: str, ca: Path | str | bytes, token: Path | str, region: str, site: str = ""
) -> ConnectSettings:
    """Settings from values. `ca` is a file or PEM bytes; `token` is a `Path` to a file or the token itself.

    Raises ConfigError.
    """
    by_path = isinstance(token, Path)
    return ConnectSettings(
        control_plane=control_plane,
        ca_pem=ca if isinstance(ca, bytes) else _read(Path(ca), "CA"),
        region=region,
        site=site,
        token="" if by_path else str(token).strip(),
        token_path=Path(token) if by_path else None,
    )


def from_bootstrap(path: Path) -> ConnectSettings:
    """Settings from a bootstrap file; relative paths in it are taken from its folder.

    Raises ConfigError that names the file and what it lacks.
    """
    try:
        data = json.loads(_read(path, "bootstrap file"))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    server = _first(_at(data, path, "xds_servers"), f"{path}: xds_servers")
    node = _at(data, path, "node")
    locality, metadata = _at(node, path, "locality"), _at(node, path, "metadata")
    token_file = metadata.get("token_file", "")
    if not token_file and not metadata.get("token"):
        raise ConfigError(f"{path}: node.metadata has neither `token_file` nor `token`")
    return ConnectSettings(
        control_plane=_at(server, path, "server_uri").removeprefix("dns:///"),
        ca_pem=_read(path.parent / _ca_file(data, server, path), "CA"),
        region=_at(locality, path, "region"),
        site=locality.get("zone") or locality.get("sub_zone") or "",
        token="" if token_file else metadata["token"],
        token_path=path.parent / token_file if token_file else None,
    )


class Token:
    """The bearer token in use; follows its file."""

    def __init__(self, settings: ConnectSettings) -> None:
        self._path = settings.token_path
        self._value = settings.token
        self._next_check_s = float("-inf")
        self._mtime_ns = -1

    def metadata(self, now_s: float) -> tuple[tuple[str, str], ...]:
        """The metadata of a call. A token file that has vanished leaves the last token in use.

        Raises ConfigError when the file could never be read.
        """
        if self._path and now_s >= self._next_check_s:
            self._next_check_s = now_s + _TOKEN_CHECK_S
            self._look(self._path)
        return (("authorization", f"Bearer {self._value}"),)

    def _look(self, path: Path) -> None:
        try:
            mtime_ns = path.stat().st_mtime_ns
            if mtime_ns != self._mtime_ns:
                self._value = path.read_text("ascii").strip() or self._value
                self._mtime_ns = mtime_ns
        except (OSError, UnicodeDecodeError) as error:
            if not self._value:
                raise ConfigError(f"{path}: the token cannot be read: {error}") from None


def _ca_file(data: Mapping[str, Any], server: Mapping[str, Any], path: Path) -> str:
    """The CA of the control plane's credentials; else that of the certificate provider for nodes: it is one CA."""
    places = [*server.get("channel_creds", ()), *data.get("certificate_providers", {}).values()]
    for place in places:
        found = place.get("config", {}).get("ca_certificate_file")
        if found:
            return str(found)
    raise ConfigError(f"{path}: no `ca_certificate_file` under channel_creds or certificate_providers")


def _at(data: Any, path: Path, key: str) -> Any:
    found = data.get(key) if isinstance(data, dict) else None
    if not found:
        raise ConfigError(f"{path}: `{key}` is missing; `nearmesh client bootstrap` writes a whole file")
    return found


def _first(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, list) or not isinstance(data[0], dict):
        raise ConfigError(f"{where} is not a list of servers")
    return data[0]


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the {what} cannot be read: {error.strerror}") from None
