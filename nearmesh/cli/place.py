"""Which mesh a command speaks to: named on the command line, in the environment, or found as the nearest local mesh.

A local mesh is a folder that `nearmesh dev up` keeps: mesh.json with its addresses, ca.pem, and tokens beside it.
What stands on the command line wins over the environment, and both over the folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from nearmesh.devmesh.folder import MESH_FILE
from nearmesh.errors import ConfigError

LOCAL_MESH = Path(".nearmesh") / "dev"
CLIENT_TOKEN_FILE = "client.jwt"
# The strongest first: what a client may do, an operator may do as well.
TOKEN_FILES = ("operator.jwt", CLIENT_TOKEN_FILE)

# Every token is a JWT, and every JWT begins with an encoded '{"'.
_TOKEN_START = "eyJ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line and the environment say."""

    mesh: Path | None = None
    control_plane: str | None = None
    ca: Path | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A mesh that can be spoken to."""

    # host:port of the public listener.
    control_plane: str
    ca_path: Path
    token: str
    # Of a local mesh, and what its mesh.json says.
    folder: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def ca_pem(self) -> bytes:
        """Raises ConfigError."""
        pem = _read(self.ca_path, "the mesh's CA")
        if b"BEGIN CERTIFICATE" not in pem:
            raise ConfigError(f"{self.ca_path}: not a certificate in PEM")
        return pem

    @property
    def client_token(self) -> str | None:
        """The token that a local mesh keeps for apps."""
        path = self.folder / CLIENT_TOKEN_FILE if self.folder else None
        return _read_text(path, "the token") if path and path.is_file() else None

    @property
    def regions(self) -> list[str]:
        """The client regions of a local mesh."""
        return sorted(self.state.get("bootstrap") or self.state.get("gateways") or ())


def find(options: Options, start: Path) -> Place:
    """The mesh meant by `options`; without a word there, the nearest local mesh from `start` upwards.

    Raises click.UsageError when none is named or found, ConfigError for files that cannot be used.
    """
    complete = options.control_plane and options.ca and options.token
    folder = options.mesh or (None if complete else _nearest(start))
    state = _state(folder) if folder else {}
    control_plane = options.control_plane or state.get("control_plane", {}).get("grpc")
    ca = options.ca or (_local_ca(folder, state) if folder else None)
    token = _given_token(options.token) if options.token else _local_token(folder)
    if not (control_plane and ca and token):
        raise click.UsageError(_what_is_missing(control_plane, ca, token, folder))
    return Place(control_plane=control_plane, ca_path=ca, token=token, folder=folder, state=state)


def _nearest(start: Path) -> Path | None:
    folders = (folder / LOCAL_MESH for folder in (start, *start.parents))
    return next((folder for folder in folders if (folder / MESH_FILE).is_file()), None)


def _state(folder: Path) -> dict[str, Any]:
    path = folder / MESH_FILE
    if not path.is_file():
        raise click.UsageError(f"{folder} is no mesh: it has no {MESH_FILE}; `nearmesh dev up` makes one")
    try:
        state = json.loads(_read(path, "the mesh's state"))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if not isinstance(state, dict) or not isinstance(state.get("control_plane", {}), dict):
        raise ConfigError(f"{path}: not the state of a mesh; `nearmesh dev up` writes it")
    return state


def _local_ca(folder: Path, state: dict[str, Any]) -> Path:
    kept = folder / "ca.pem"
    return kept if kept.is_file() or not state.get("ca") else folder / state["ca"]


def _local_token(folder: Path | None) -> str | None:
    for name in TOKEN_FILES if folder else ():
        assert folder is not None
        if (folder / name).is_file():
            return _read_text(folder / name, "the token")
    return None


def _given_token(text: str) -> str:
    return text.strip() if text.startswith(_TOKEN_START) else _read_text(Path(text).expanduser(), "the token")


def _what_is_missing(control_plane: object, ca: object, token: object, folder: Path | None) -> str:
    if folder:
        return f"{folder / MESH_FILE} does not name the control plane, or {folder} has no CA or no token"
    given = {"--control-plane": control_plane, "--ca": ca, "--token": token}
    if not any(given.values()):
        return "no mesh: start one with `nearmesh dev up`, or give --mesh, or --control-plane, --ca and --token"
    return f"{' and '.join(name for name, value in given.items() if not value)} missing, and no local mesh is near"


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {what} cannot be read: {error.strerror}") from None


def _read_text(path: Path, what: str) -> str:
    try:
        return _read(path, what).decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: {what} is not text") from None
