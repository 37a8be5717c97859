"""Flower's `flwr-clientapp` on a node: `python -m nearmesh_agent.training.app_process`, with the same arguments.

Flower imports whatever module of the app that came is named as its ClientApp. Unless apps of data teams' own may run
here (`--own-apps` first), that is refused for all but the mesh's, and of the app's folder nothing is imported: its
modules come last on the path, after all that is installed.
"""

from __future__ import annotations

import sys

from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import LoadClientAppError
from flwr.common.config import get_project_config, get_project_dir
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from nearmesh_agent.training.programs import OWN_APPS

MESH_APP = "nearmesh_agent.training.client_app:app"
# What Flower's program calls for the function that loads an app.
_LOADER = "get_load_client_app_fn"


def load(fab_id: str, fab_version: str, fab_hash: str) -> ClientApp:
    """The mesh's ClientApp, with the recipe of the app that came. Raises LoadClientAppError for another app."""
    folder = get_project_dir(fab_id, fab_version, fab_hash)
    said = get_project_config(folder)["tool"]["flwr"]["app"]["components"].get("clientapp")
    if said != MESH_APP:
        raise LoadClientAppError(f"this node runs no app but the mesh's, and not {said!r}; [training] own_apps lets it")
    sys.path.append(str(folder))
    from nearmesh_agent.training.client_app import app

    return app


def main(*, own_apps: bool) -> None:
    """As Flower's program, but for what it loads."""
    if not own_apps:
        if not hasattr(run_clientapp, _LOADER):
            # Better no app than any.
            sys.exit(f"this version of Flower loads apps by no {_LOADER}; take one that nearmesh-agent[rounds] names")
        setattr(run_clientapp, _LOADER, lambda **_: load)
    flwr_clientapp()


if __name__ == "__main__":
    ours = OWN_APPS in sys.argv[1:2]
    if ours:
        del sys.argv[1]
    main(own_apps=ours)
