"""A control plane and a node for each site of a study, as processes on this machine: no gateways, no emulated WAN."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.federated.study import Study
from nearmesh.client.admin import AdminClient
from nearmesh.devmesh.children import Child, script
from nearmesh.devmesh.ports import free_ports
from nearmesh.errors import MeshError
from nearmesh.packaging.release import release
from nearmesh.packaging.sources import default_cache
from nearmesh.v1 import node_pb2

REGION = "europe-west1"
READY_WITHIN_S = 180.0
LOOK_EVERY_S = 0.5
# Of the machine that all nodes share.
CPU_SHARE = 0.5
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
async def local(study: Study, data: Path, folder: Path) -> AsyncIterator[Local]:
    """In an empty folder. Returns when every site serves the package's first version.

    Raises MeshError, TimeoutError.
    """
    listen = dict(zip(("public", "mesh", "http"), map(_address, free_ports(3)), strict=True))
    mesh = Local(folder, listen["public"])
    config = folder / "mesh.toml"
    config.write_text(
        tomli_w.dumps({"mesh": "federated", "data": str(folder / "control-plane"), "listen": listen}), "utf-8"
    )
    async with AsyncExitStack() as stack:
        await _started(stack, "control-plane", "nearmesh-controlplane", config)
        await asyncio.to_thread(_tokens, mesh, config)
        admin = await stack.enter_async_context(mesh.admin())
        await _until_answered(admin)
        asked = study.write_sites(data, folder / "sites")
        for site in study.sites:
            token = await admin.join_token(f"node-{site}", site, REGION)
            config = _node(study, folder, site, token.token, asked[site])
            await _started(stack, f"node-{site}", "nearmesh-agent", config)
        package = await asyncio.to_thread(study.make_package, data, folder / "package")
        artifact = await asyncio.to_thread(release, package, default_cache())
        await admin.publish(artifact)
        await admin.deploy(artifact.manifest.model, artifact.manifest.version)
        async with asyncio.timeout(READY_WITHIN_S):
            while not await _all_serve(admin, study):  # noqa: ASYNC110  # what others do sets no event
                await asyncio.sleep(LOOK_EVERY_S)
        yield mesh


async def _started(stack: AsyncExitStack, name: str, program: str, config: Path) -> None:
    child = Child(name, [script(program), "--config", str(config)], config.with_suffix(".log"))
    await child.start()
    stack.push_async_callback(child.stop)


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


def _node(study: Study, folder: Path, site: str, token: str, data: Mapping[str, Any]) -> Path:
    """A node's configuration, with its site's data."""
    own = folder / f"node-{site}"
    own.mkdir()
    (own / "join.jwt").write_text(token, "utf-8")
    listen = dict(zip(("public", "mesh", "metrics"), map(_address, free_ports(3)), strict=True))
    content = {
        "data": str(own / "data"),
        "join_token_file": str(own / "join.jwt"),
        "usd_per_hour": 0.1,
        "threads": 1,
        "listen": listen,
        "training": {"allowed": True, "cpu_share": CPU_SHARE, "data": {study.name: dict(data)}},
    }
    config = own / "node.toml"
    config.write_text(tomli_w.dumps(content), "utf-8")
    return config


async def _all_serve(admin: AdminClient, study: Study) -> bool:
    model = await admin.model(study.name)
    ready = {r.node for r in model.replicas if r.live and r.status.state == node_pb2.REPLICA_STATE_READY}
    return {f"node-{site}" for site in study.sites} <= ready


def _address(port: int) -> str:
    return f"{LOOPBACK}:{port}"
