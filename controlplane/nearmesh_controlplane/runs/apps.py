"""The Flower app of a run: the mesh's own, made for a recipe, or the data team's, checked before anything starts."""

from __future__ import annotations

import io
import json
import shutil
import tomllib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nearmesh.errors import InvalidInput
from nearmesh.round_messages import SETTING

# Flower's own limit for a FAB; packed, and what becomes of it.
MAX_FAB_BYTES = 10 * 1024 * 1024
MAX_UNPACKED_BYTES = 200 * 1024 * 1024
MAX_FILES = 5_000
# Of its pyproject.toml, which is read here.
MAX_PROJECT_BYTES = 1024 * 1024

SERVER_APP = "nearmesh_controlplane.rounds.server_app:app"
CLIENT_APP = "nearmesh_agent.training.client_app:app"

PROJECT = "pyproject.toml"

# By which a stock app says how many rounds it makes.
ROUNDS = "num-server-rounds"

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "nearmesh-run"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "nearmesh"

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
{config}
"""


def write_app(
    folder: Path,
    *,
    recipe: bytes,
    model: str,
    metric: str,
    inputs: Sequence[str],
    settings: Mapping[str, Any],
    run_folder: Path,
) -> None:
    """The mesh's app into `folder`: both of its halves are installed where they run, so only the recipe travels."""
    config: dict[str, Any] = {
        "run-folder": str(run_folder.absolute()),
        "model": model,
        "metric": metric,
        "inputs": ",".join(inputs),
    }
    config |= {f"{SETTING}{name}": value for name, value in settings.items()}
    text = _PYPROJECT.format(
        server=SERVER_APP,
        client=CLIENT_APP,
        config="\n".join(f"{json.dumps(name)} = {_toml(value)}" for name, value in config.items()),
    )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(text, "utf-8")
    (folder / "recipe.py").write_bytes(recipe)


def _toml(value: Any) -> str:
    """As TOML has it."""
    if isinstance(value, str):
        # Like JSON, but for one character that it may not hold as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def check_fab(content: bytes) -> dict[str, Any]:
    """The run config that an app has by default, its names joined with dots. Raises InvalidInput."""
    if len(content) > MAX_FAB_BYTES:
        raise InvalidInput(f"the app has {len(content)} bytes; Flower takes at most {MAX_FAB_BYTES}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_files(archive)
            project = tomllib.loads(archive.read(PROJECT).decode("utf-8"))
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError, OSError, RuntimeError, zlib.error) as error:
        raise InvalidInput(f"the app is no Flower App Bundle, as `flwr build` makes one: {error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"the app's pyproject.toml cannot be read: {error}") from None
    return _config_of(project)


def _check_files(archive: zipfile.ZipFile) -> None:
    files = archive.infolist()
    unpacked = sum(file.file_size for file in files)
    if len(files) > MAX_FILES or unpacked > MAX_UNPACKED_BYTES:
        raise InvalidInput(
            f"the app has {len(files)} files of {unpacked} bytes; at most {MAX_FILES} of {MAX_UNPACKED_BYTES} are taken"
        )
    if any(file.filename == PROJECT and file.file_size > MAX_PROJECT_BYTES for file in files):
        raise InvalidInput(f"the app's {PROJECT} is above the limit of {MAX_PROJECT_BYTES // 1024**2} MiB")
    names = {file.filename for file in files}
    for name in names:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
            raise InvalidInput(f"the app has a file {name[:100]!r}, which would lie outside of it")
    for name in (PROJECT, ".info/CONTENT"):
        if name not in names:
            raise InvalidInput(f"the app has no {name}; `flwr build` makes a bundle of an app's folder")


def _config_of(project: Mapping[str, Any]) -> dict[str, Any]:
    app = _table(_table(_table(project, "tool"), "flwr"), "app")
    components = _table(app, "components")
    for name in ("serverapp", "clientapp"):
        if not isinstance(components.get(name), str):
            raise InvalidInput(f"the app's pyproject.toml names no {name} in [tool.flwr.app.components]")
    return _flat(app.get("config") or {})


def _table(within: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = within.get(name)
    if not isinstance(found, dict):
        raise InvalidInput(f"the app's pyproject.toml has no [tool.flwr.app]: there is no table {name!r}")
    return found


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found
