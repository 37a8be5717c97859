"""Where Flower is installed, and what its processes are told of the world: little, and to send nothing home."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from nearmesh.errors import NotInstalled

SUPERLINK, SUPEREXEC = "flower-superlink", "flower-superexec"

# What Flower's processes, and with them every app that runs, get to see of the control plane's own environment. Its
# passwords and addresses of proxies are not among it.
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
# How often the SuperExec asks for work, seconds; Flower's own 1.0 would be a part of every run's start.
_ASKS_EVERY_S = 0.25


def script(name: str) -> str:
    """A console script of the environment that this process runs in. Raises NotInstalled."""
    path = Path(sys.executable).with_name(name)
    if not path.exists() or importlib.util.find_spec("flwr") is None:
        raise NotInstalled(
            "federated runs need Flower on the control plane's machine: pip install 'nearmesh-controlplane[rounds]'"
        )
    return str(path)


def environment(home: Path, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of Flower's processes; `home` is where they keep what they keep."""
    return {name: own[name] for name in _PASSED_ON if name in own} | {
        # Flower starts its other programs by their names.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)]),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(_ASKS_EVERY_S),
    }
