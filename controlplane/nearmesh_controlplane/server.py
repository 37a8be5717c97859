"""The control plane's one process: serves until told to stop."""

from __future__ import annotations

import asyncio
import logging
import time

from nearmesh.process import only_one, rare_collections
from nearmesh.whole import settled
from nearmesh_controlplane.config import MeshConfig
from nearmesh_controlplane.listeners import grpc_server, https_server
from nearmesh_controlplane.plane import ControlPlane
from nearmesh_controlplane.registry.server_certificate import ServerCertificate
from nearmesh_controlplane.web.peer import HttpsServer

log = logging.getLogger(__name__)

# How often leases, drifting measurements and the server's certificate are looked at.
TICK_S = 0.5
# Calls in progress get this long when the process is told to stop.
GRACE_S = 2.0


async def serve(config: MeshConfig, stop: asyncio.Event) -> None:
    """Runs the control plane until `stop` is set. Raises ConfigError, AlreadyRunning."""
    with only_one(config.data, "a control plane"):
        plane = await ControlPlane.open(config)
        certificate = ServerCertificate(plane.authority, config.data / "server", config.host)
        server = grpc_server(plane, certificate)
        https = https_server(plane, certificate)
        rare_collections()
        await server.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                web = tasks.create_task(https.run_until_stopped())
                background = [
                    tasks.create_task(_tick(plane, certificate, https)),
                    tasks.create_task(plane.snapshots.run()),
                    tasks.create_task(plane.measurements.run()),
                    tasks.create_task(plane.role.run()),
                    tasks.create_task(plane.mirror.run()),
                    tasks.create_task(plane.rollouts.run()),
                    tasks.create_task(plane.scaler.run()),
                    tasks.create_task(plane.superlink.run()),
                    tasks.create_task(plane.run_driver.run()),
                ]
                if plane.feed:
                    background.append(tasks.create_task(plane.feed.run(plane.take_prices)))
                if plane.kept:
                    background.append(tasks.create_task(plane.kept.run(plane.snapshots)))
                log.info(
                    "serving mesh=%s public=%s mesh_listener=%s http=%s",
                    config.mesh,
                    config.listen.public,
                    config.listen.mesh,
                    config.listen.http,
                )
                await stop.wait()
                log.info("stopping")
                for task in background:
                    task.cancel()
                https.should_exit = True
                await server.stop(GRACE_S)
                await web
        finally:
            await server.stop(0)
            await settled()
            plane.db.close()


async def _tick(plane: ControlPlane, certificate: ServerCertificate, https: HttpsServer) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        plane.registry.expire()
        plane.registry.end_prices(time.time())
        if plane.measurements.tick(plane.reach):
            plane.changes.drift()
        plane.router.tick()
        certificate.keep_young(https.reload_certificate)
