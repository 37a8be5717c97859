"""The parts of a control plane that have to do with Flower, served on loopback, and real SuperNodes beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.config import RunsConfig
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.registry.rows import node_from_row
from nearmesh_controlplane.registry.training import Training
from nearmesh_controlplane.runs.child import Child
from nearmesh_controlplane.runs.engine import ENDED, EngineStatus
from nearmesh_controlplane.runs.flower import FlowerEngine
from nearmesh_controlplane.runs.superlink import SuperLink
from nearmesh_controlplane.web.fleet_api import FleetApi
from nearmesh_controlplane.web.peer import HttpsServer
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from nearmesh.devmesh.ports import free_ports
from nearmesh.flower_processes import environment, script
from nearmesh.ssh_keys import ssh_line
from nearmesh.tls import Credentials, new_key
from nearmesh.v1 import node_pb2

# No node has a session, which would be what a lease is for.
LEASE_S = 10.0


@dataclass(slots=True)
class Fleet:
    """A control plane's parts that have to do with Flower, served on loopback."""

    folder: Path
    authority: Authority
    registry: Registry
    training: Training
    superlink: SuperLink
    engine: FlowerEngine
    address: str

    async def nodes(self, *names: str) -> tuple[dict[str, ec.EllipticCurvePrivateKey], dict[str, int]]:
        """Nodes that join and may train: their keys, and the numbers that Flower knows them by."""
        keys = {name: new_key() for name in names}
        lines = {name: await self.joins(name, key) for name, key in keys.items()}
        return keys, await self.engine.register(lines)

    async def joins(self, node: str, key: ec.EllipticCurvePrivateKey) -> str:
        """The node is of the mesh, and says that it trains; its key's line."""
        row = {"id": node, "kind": "node", "site": node, "region": "r", "joined_at_s": 1.0}

        def insert(connection: sa.Connection) -> Node:
            connection.execute(sa.insert(tables.nodes).values(**row))
            return node_from_row(connection.execute(sa.select(tables.nodes).where(tables.nodes.c.id == node)).one())

        await self.registry.register(insert)
        line = ssh_line(key.public_key())
        self.training.heard(node, node_pb2.NodeStatus(training=node_pb2.TrainingStatus(public_key=line)), line)
        return line

    @asynccontextmanager
    async def supernode(
        self, name: str, key: ec.EllipticCurvePrivateKey, *more: str, passed: Mapping[str, str] = MappingProxyType({})
    ) -> AsyncIterator[Child]:
        """With `more` options, and more in its environment."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        (folder / "ca.pem").write_bytes(self.authority.ca_pem)
        (port,) = free_ports(1)
        child = Child(name, folder / "supernode.log")
        command = [
            *(script("flower-supernode", "nearmesh-agent"), "--superlink", self.address),
            *("--root-certificates", str(folder / "ca.pem"), "--auth-supernode-private-key", str(folder / "key")),
            *("--host", "127.0.0.1", "--port", str(port)),
            *more,
        ]
        await child.start(command, environment(folder / "flower") | passed)
        try:
            yield child
        finally:
            await child.stop()

    async def ended(self, run: str, within_s: float = 60.0) -> EngineStatus:
        """How a run has ended, when it has. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while (found := await self.engine.status(run)).state not in ENDED:  # noqa: ASYNC110  # Flower tells nobody
                # Each look is work for the SuperLink, which has other things to do.
                await asyncio.sleep(0.5)
        return found


@asynccontextmanager
async def fleet_in(folder: Path, around: Callable[[ASGIApp], ASGIApp] = lambda app: app) -> AsyncIterator[Fleet]:
    """`around` may put something between the nodes and the way to the SuperLink."""
    authority = Authority.open("test-mesh", folder / "authority")
    authority.server_credentials(["127.0.0.1"]).write(folder / "server")
    (port,) = free_ports(1)
    changes = Generation()
    with closing(Database.open(folder / "state.db")) as db:
        registry = Registry(db, changes, LEASE_S, time.monotonic)
        training = Training(registry, changes, time.monotonic)
        # Long ago.
        training._began_at = -1e9
        superlink = SuperLink(RunsConfig(), authority, folder / "flower")
        https = HttpsServer(
            around(FleetApi(PlainTextResponse(""), superlink, training)),
            address=f"127.0.0.1:{port}",
            certificate=folder / "server" / Credentials.CERTIFICATE,
            key=folder / "server" / Credentials.KEY,
            ca=folder / "server" / Credentials.CA,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(https.run_until_stopped()), tasks.create_task(superlink.run())]
            engine = FlowerEngine(superlink)
            await engine.prepare()
            yield Fleet(folder, authority, registry, training, superlink, engine, f"127.0.0.1:{port}")
            https.should_exit = True
            running[1].cancel()
