"""The user and password for a registry, from where `docker login` and its like keep them."""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearmesh.errors import ConfigError

# A helper asks a keyring; it may ask a person to unlock it.
HELPER_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Login:
    """Shown to one registry; never printed."""

    user: str
    password: str

    @property
    def header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def __repr__(self) -> str:
        return f"Login({self.user!r})"


def config_file() -> Path:
    """Docker's configuration; DOCKER_CONFIG names another folder than ~/.docker."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def find(host: str, path: Path | None = None) -> Login | None:
    """The login for a registry, None where there is none. Raises ConfigError."""
    path = path or config_file()
    try:
        config = json.loads(path.read_bytes())
        helper = config.get("credHelpers", {}).get(host) or config.get("credsStore")
        kept = config.get("auths", {})
        names = (host, f"https://{host}", f"https://{host}/v2/", f"https://{host}/v1/")
        found = [(name, auth) for name in names if (auth := kept.get(name, {}).get("auth"))]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a configuration of Docker: {error}") from None
    if found:
        name, auth = found[0]
        return _decoded(auth, f"{path}: {name}")
    return _asked(helper, host) if helper else None


def _decoded(auth: Any, where: str) -> Login:
    try:
        user, _, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, ValueError, TypeError):
        raise ConfigError(f"{where}: `auth` is not a user and password in Base64; log in again") from None
    return Login(user, password)


def _asked(helper: str, host: str) -> Login | None:
    """What a credential helper says; None where it knows of no login."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=host, capture_output=True, text=True, timeout=HELPER_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{program}, which Docker's configuration names, did not answer: {error}") from None
    if done.returncode:
        return None
    try:
        found = json.loads(done.stdout)
        return Login(found["Username"], found["Secret"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{program} answered with something that is no login") from None
