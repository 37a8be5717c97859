"""What a control plane that is alone decided last, on its disk: where the next start goes on.

Else a restart would place everybody anew before it is known who asks for how much, and move most of the traffic twice.
Several control planes have it from each other.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from nearmesh.errors import MeshError
from nearmesh.snapshot.keeper import SNAPSHOT_FILE, SnapshotKeeper
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.routing.router import Router
from nearmesh_controlplane.routing.snapshots import Snapshots

log = logging.getLogger(__name__)


class KeptRoutes:
    """One snapshot in `folder`."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._keeper = SnapshotKeeper(authority.ca_pem, folder / SNAPSHOT_FILE, mesh=authority.mesh)

    def resume(self, router: Router) -> None:
        """Has the router go on from there, however old it is: what is to be elsewhere now moves by the ramp."""
        if self._keeper.known:
            router.resume(self._keeper.known)

    async def run(self, snapshots: Snapshots) -> None:
        """For ever: keeps each new one."""
        async for signed in snapshots.watch(""):
            try:
                self._keeper.take(signed)
            except MeshError as error:
                # The machine's clock was put back: the next start goes on from the one before.
                log.warning("the newest routes are not kept for the next start: %s", error.message)
            else:
                await asyncio.to_thread(self._keeper.save)
