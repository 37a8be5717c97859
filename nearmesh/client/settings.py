"""How a client finds its mesh: from a bootstrap file, or from four arguments; and the token that it shows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nearmesh.client.bootstrap import read_bootstrap
from nearmesh.errors import ConfigError

# A file with a token is looked at again after this long, so that a new token is used without a restart.
_TOKEN_CHECK_S = 1.0
# Of the CA's digest, enough to tell one mesh from another.
_MESH_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings:
    """What a client needs to know."""

    # host:port of the control plane's public listener; of several, all with commas between.
    control_plane: str
    # The mesh's certificate authority, PEM.
    ca_pem: bytes
    # Where this client is, as the clouds name it.
    region: str
    site: str = ""
    # The bearer token, or where to find it: the first of these that is given. Files may be replaced at any time.
    bootstrap_path: Path | None = None
    token_path: Path | None = None
    token: str = ""
    # Nodes that know the mesh's routes too: host:port, and their ids where those are known.
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    # Where the last snapshot of the routes is kept, for a start without the control plane. None: nowhere.
    state: Path | None = None

    def __post_init__(self) -> None:
        if not self.control_plane or not self.region:
            raise ConfigError("a client needs the control plane's address (host:port) and its own region")
        if b"BEGIN CERTIFICATE" not in self.ca_pem:
            raise ConfigError("the CA is not a certificate in PEM")
        if not (self.token or self.token_path or self.bootstrap_path):
            raise ConfigError("a client needs a bearer token; `nearmesh client bootstrap` writes one")

    @property
    def snapshot_path(self) -> Path | None:
        """The file for this mesh and region."""
        if self.state is None:
            return None
        mesh = hashlib.sha256(self.ca_pem).hexdigest()[:_MESH_DIGITS]
        return self.state / mesh / f"{self.region}.pb"


def state_folder() -> Path | None:
    """Where programs keep what may be lost, as the XDG base directory specification has it; None without a home."""
    named = os.environ.get("XDG_STATE_HOME", "")
    # One that is not absolute counts as none.
    if named.startswith("/"):
        return Path(named) / "nearmesh"
    try:
        return Path.home() / ".local" / "state" / "nearmesh"
    except RuntimeError:
        # A container may run as a user that the system does not know.
        return None


def from_arguments(
    *,
    control_plane: str,
    ca: Path | str | bytes,
    token: Path | str,
    region: str,
    site: str = "",
    state: Path | None = None,
) -> ConnectSettings:
    """Settings from values. `ca` is a file or PEM bytes; `token` is a `Path` to a file or the token itself.

    Raises ConfigError.
    """
    return ConnectSettings(
        control_plane=control_plane,
        ca_pem=ca if isinstance(ca, bytes) else _read_ca(Path(ca)),
        region=region,
        site=site,
        token_path=token if isinstance(token, Path) else None,
        token="" if isinstance(token, Path) else token.strip(),
        state=state,
    )


def from_bootstrap(path: Path, state: Path | None = None) -> ConnectSettings:
    """Settings from the file that `nearmesh client bootstrap` writes. Raises ConfigError."""
    found = read_bootstrap(path)
    return ConnectSettings(
        control_plane=found.control_plane,
        ca_pem=found.ca_pem,
        region=found.region,
        site=found.site,
        bootstrap_path=path,
        fallbacks=found.fallbacks,
        state=state,
    )


class Token:
    """The bearer token in use; follows its file."""

    def __init__(self, settings: ConnectSettings) -> None:
        self._settings = settings
        self._path = settings.bootstrap_path or settings.token_path
        self._value = settings.token
        self._next_check_s = float("-inf")
        self._mtime_ns = -1

    def metadata(self, now_s: float) -> tuple[tuple[str, str], ...]:
        """The metadata of a call. A file that has vanished, or is half-written, leaves the last token in use.

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
                self._value = self._read(path) or self._value
                self._mtime_ns = mtime_ns
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            if not self._value:
                raise ConfigError(f"{path}: the token cannot be read: {error}") from None

    def _read(self, path: Path) -> str:
        if path is self._settings.bootstrap_path:
            return read_bootstrap(path).token
        return path.read_text("ascii").strip()


def _read_ca(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the CA cannot be read: {error.strerror}") from None
