"""A control plane with a node that keeps vectors, and packages on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from nearmesh.client.vectors import VectorClient
from nearmesh.ids import node_server_name
from tests.integration import text_packages
from tests.integration.mesh_processes import MESH, ControlPlane, Node, until

WITHIN_S = 40.0


class TextPlace:
    """Both are up."""

    def __init__(self, plane: ControlPlane, node: Node, folder: Path) -> None:
        """`folder` is for packages."""
        self.plane, self.node, self._folder = plane, node, folder

    def client(self, role: str = "data") -> VectorClient:
        token = self.plane.authority.issuer.access("app", role, now_s=time.time(), lifetime_s=3600)
        name = node_server_name(MESH, self.node.name)
        return VectorClient(self.node.public, self.plane.authority.ca_pem, token, server_name=name)

    async def deploy(self, *artifacts: text_packages.Artifact) -> None:
        """Publishes them, and waits until the node serves them."""
        async with self.plane.operator() as operator:
            for artifact in artifacts:
                await operator.publish(artifact)
        for artifact in artifacts:
            await self._serve(artifact.manifest.model, artifact.manifest.version)

    async def embedder(self, version: str, size: int) -> None:
        await self.deploy(text_packages.embedder(self._folder / f"embedder-{version}", version, size=size))

    async def use(self, version: str) -> None:
        """An embedder that was published before."""
        await self._serve("embedder", version)

    async def _serve(self, model: str, version: str) -> None:
        async with self.plane.operator() as operator:
            await operator.deploy(model, version)
        stub = self.node.stub()
        asked = service_pb2.ModelReadyRequest(name=model, version=version)

        async def ready() -> Any:
            try:
                return (await stub.ModelReady(asked, timeout=5)).ready
            except grpc.aio.AioRpcError:
                return False

        await until(ready, within_s=WITHIN_S, what=f"{model} {version} serves:\n{self.node.child.last_words(30)}")
