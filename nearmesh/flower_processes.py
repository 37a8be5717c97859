"""Flower's programs as processes of the mesh: where they are, what they see of the world, and that they end with us.

Flower starts some of its programs itself, by their names, and has them look now and then whether the one that started
them is still there; one that was killed and that nobody reaped is, to them. So a folder of ours comes first on their
PATH, where each such program has itself ended by the kernel when its starter is gone (`nearmesh.leash`). There another
program may stand under the name of one of Flower's.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from nearmesh import leash
from nearmesh.errors import NotInstalled

# What Flower's processes, and with them every app that runs, get to see of our own environment. Passwords and the
# addresses of proxies are not among it.
_PASSED_ON = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TMPDIR",
    "TZ",
)
# What Flower starts by itself.
_STARTED_BY_FLOWER = ("flower-superexec", "flwr-serverapp", "flwr-clientapp")
# How often a SuperExec asks for work, seconds; Flower's own 1.0 would be a part of every message's way.
_ASKS_EVERY_S = 0.25


def script(name: str, package: str) -> str:
    """A program of Flower's. Raises NotInstalled, which says with which of our packages it would be."""
    path = Path(sys.executable).with_name(name)
    if not path.exists() or importlib.util.find_spec("flwr") is None:
        raise NotInstalled(f"federated rounds need Flower on this machine: pip install '{package}[rounds]'")
    return str(path)


def environment(
    folder: Path,
    own: Mapping[str, str] = os.environ,
    *,
    instead: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, str]:
    """Of Flower's processes, which keep what they keep in `folder`; nothing that they do calls home.

    `instead`: commands that are started in the place of programs that Flower starts by itself.
    """
    programs = _programs(folder / "programs", instead)
    return {name: own[name] for name in _PASSED_ON if name in own} | {
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), own.get("PATH", os.defpath)]),
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(_ASKS_EVERY_S),
    }


def _programs(folder: Path, instead: Mapping[str, Sequence[str]]) -> Path:
    """Scripts under the names that Flower starts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _STARTED_BY_FLOWER:
        leashed = shlex.join((sys.executable, "-I", "-S", leash.__file__))
        program = shlex.join(instead.get(name, (str(Path(sys.executable).with_name(name)),)))
        put_script(folder / name, f'exec {leashed} "$PPID" {program} "$@"')
    return folder


def put_script(path: Path, line: str) -> None:
    """A program of one line of shell; whoever starts it meanwhile finds a whole one."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(f"#!/bin/sh\n{line}\n", "utf-8")
    draft.chmod(0o755)
    draft.replace(path)
