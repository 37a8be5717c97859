"""What a SuperExec on this node finds under the names of Flower's programs: no more of them than the operator allowed.

An app is Python that runs with the agent's rights. Unless its operator lets apps of data teams' own run, a node runs
the mesh's ClientApp and nothing else, whatever it is sent: of the app that came, only the recipe of the package is
used. Flower's programs for agents, connectors and language models, which no round needs, are not there at all.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from nearmesh import leash
from nearmesh.flower_processes import put_script
from nearmesh_agent.training import nursery_call

CLIENT_APP, SUPEREXEC, SUPERNODE = "flwr-clientapp", "flower-superexec", "flower-supernode"
# By their names: to import either is to import Flower.
APP, NURSERY = "nearmesh_agent.training.app_process", "nearmesh_agent.training.nursery"
OWN_APPS = "--own-apps"
NEVER = ("flwr-agentapp", "flwr-connector", "flwr-model")


def put(folder: Path, *, own_apps: bool) -> Path:
    """Scripts into a folder, which is to come first on the SuperExec's PATH; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NEVER:
        put_script(folder / name, f"echo '{name} does not run on this node' >&2; exit 1")
    call = shlex.join([sys.executable, "-I", "-S", nursery_call.__file__])
    # Where there is no nursery, by itself; ended by the kernel with the SuperExec that starts it.
    leashed = shlex.join([sys.executable, "-I", "-S", leash.__file__])
    program = shlex.join([sys.executable, "-m", APP, *([OWN_APPS] if own_apps else [])])
    put_script(folder / CLIENT_APP, f'{call} "$@" || exec {leashed} "$PPID" {program} "$@"')
    return folder
