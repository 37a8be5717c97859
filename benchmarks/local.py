"""A control plane as a process on this machine, and nodes beside it: no gateways, no emulated WAN."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from nearmesh.client.admin import AdminClient
from nearmesh.devmesh.children import Child, script
from nearmesh.devmesh.ports import free_ports
from nearmesh.errors import MeshError
from nearmesh.packaging.build import Artifact
from nearmesh.v1 import node_pb2

REGION = "europe-west1"
READY_WITHIN_S = 180.0
LOOK_EVERY_S = 0.5
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Local:
    """Where the mesh is, and by what it lets in."""

    folder: Path
    control_plane: str

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def operator(self) -> Path:
        return self.folder / "operator.jwt"

    @property
    def environment(self) -> dict[str, str]:
        """For the command line."""
        return {
            "NEARMESH_CONTROL_PLANE": self.control_plane,
            "NEARMESH_CA": str(self.ca),
            "NEARMESH_TOKEN": str(self.operator),
        }

    def admin(self) -> AdminClient:
        return AdminClient(self.control_plane, self.ca.read_bytes(), self.operator.read_text("utf-8"))


@asynccontextmanager
async def control_plane(folder: Path, mesh: str) -> AsyncIterator[Local]:
    """In an empty folder; it answers. Raises MeshError, TimeoutError."""
    listen = addresses("public", "mesh", "http")
    found = Local(folder, listen["public"])
    config = folder / "mesh.toml"
    config.write_text(tomli_w.dumps({"mesh": mesh, "data": str(folder / "control-plane"), "listen": listen}), "utf-8")
    child = _child("control-plane", "nearmesh-controlplane", config)
    await child.start()
    try:
        await asyncio.to_thread(_tokens, found, config)
        async with found.admin() as admin:
            await _until_answered(admin)
        yield found
    finally:
        await child.stop()


@dataclass(frozen=True, slots=True)
class Node:
    """An agent, which may be started again and again."""

    name: str
    child: Child
    # Of its public listener.
    address: str


async def joined(mesh: Local, name: str, site: str, settings: Mapping[str, Any]) -> Node:
    """A node that may join and has not been started; `settings` go into its node.toml. Raises MeshError."""
    async with mesh.admin() as admin:
        token = await admin.join_token(name, site, REGION)
    own = mesh.folder / name
    own.mkdir()
    (own / "join.jwt").write_text(token.token, "utf-8")
    listen = addresses("public", "mesh", "metrics")
    content = {
        "data": str(own / "data"),
        "join_token_file": str(own / "join.jwt"),
        "usd_per_hour": 0.1,
        "threads": 1,
        "listen": listen,
        **settings,
    }
    config = own / "node.toml"
    config.write_text(tomli_w.dumps(content), "utf-8")
    return Node(name, _child(name, "nearmesh-agent", config), listen["public"])


async def serve(mesh: Local, artifact: Artifact, nodes: set[str]) -> None:
    """Publishes a version, and waits until all of these nodes serve it. Raises MeshError, TimeoutError."""
    model = artifact.manifest.model
    async with mesh.admin() as admin:
        await admin.publish(artifact)
        await admin.deploy(model, artifact.manifest.version)
        async with asyncio.timeout(READY_WITHIN_S):
            while not nodes <= await _ready(admin, model):  # noqa: ASYNC110  # what others do sets no event
                await asyncio.sleep(LOOK_EVERY_S)


def addresses(*names: str) -> dict[str, str]:
    """One on loopback for each, all different."""
    return {name: f"{LOOPBACK}:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}


def _child(name: str, program: str, config: Path) -> Child:
    return Child(name, [script(program), "--config", str(config)], config.with_suffix(".log"))


def _tokens(mesh: Local, config: Path) -> None:
    command = [script("nearmesh-controlplane"), "--config", str(config)]
    token = ["token", "--subject", "benchmark", "--role", "operator"]
    mesh.operator.write_bytes(subprocess.check_output([*command, *token]).strip())
    mesh.ca.write_bytes(subprocess.check_output([*command, "ca"]))


async def _until_answered(admin: AdminClient) -> None:
    async with asyncio.timeout(READY_WITHIN_S):
        while True:
            try:
                await admin.nodes()
                return
            except MeshError:
                await asyncio.sleep(LOOK_EVERY_S)


async def _ready(admin: AdminClient, model: str) -> set[str]:
    found = await admin.model(model)
    return {r.node for r in found.replicas if r.live and r.status.state == node_pb2.REPLICA_STATE_READY}
