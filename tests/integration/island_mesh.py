"""A control plane, two nodes and a gateway as processes, and clients of every kind, for tests of the mesh without its
control plane."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import tritonclient.grpc.aio as stock
from google.protobuf.message import DecodeError
from tritonclient.utils import InferenceServerException

from nearmesh.client.bootstrap import grpc_bootstrap, write_bootstrap
from nearmesh.client.settings import from_bootstrap
from nearmesh.devmesh.children import script
from nearmesh.devmesh.ports import free_ports
from nearmesh.errors import MeshError
from nearmesh.packaging.build import Artifact
from nearmesh.snapshot import SnapshotRoutes, opened
from nearmesh.snapshot.keeper import SNAPSHOT_FILE
from nearmesh.v1 import route_pb2
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import REGION, ControlPlane, Daemon, Node, control_plane, node, question, until

HERE = Path(__file__).parent
MODEL = "adder"
# So long after the control plane is back, nodes send gateways back to it.
NODE_TIMES = {"nearmesh_agent.island.RETURN_AFTER_S": 2.0}


class GatewayProcess(Daemon):
    """`nearmesh gateway run` in a folder."""

    def __init__(self, plane: ControlPlane, folder: Path, name: str) -> None:
        super().__init__(name, "nearmesh", folder / "gateway.toml", {})
        folder.mkdir(parents=True, exist_ok=True)
        self.plane, self.name, self.data = plane, name, folder / "data"
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self._config, self._token = folder / "gateway.toml", folder / "join.jwt"
        settings = {"data": str(self.data), "listen": self.address, "plaintext": True, "envoy_threads": 1}
        self._config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        self.child._command = [
            *(script("nearmesh"), "gateway", "run", "--config", str(self._config)),
            *("--token-file", str(self._token)),
        ]

    async def start(self) -> None:
        if not self._token.exists():
            self._token.write_text(await self.plane.join_token(self.name, kind="gateway"))
        await self.child.start()


class IslandMesh:
    """Everything, and what is known of it on disk."""

    def __init__(self, folder: Path, plane: ControlPlane, nodes: Sequence[Node], gateway: GatewayProcess) -> None:
        self.folder, self.plane, self.gateway = folder, plane, gateway
        self.nodes = {node.name: node for node in nodes}
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(plane.authority.ca_pem)

    async def up(self) -> None:
        """Starts again whatever is not running, and waits until every machine holds the newest snapshot."""
        for daemon in (self.plane, *self.nodes.values(), self.gateway):
            if not daemon.child.pid:
                await daemon.start()
        for agent in self.nodes.values():
            await agent.live()
            await agent.certified()
            await agent.serves(MODEL, "1")
        async with self.plane.operator() as operator:

            async def both_routed() -> bool:
                route = await operator.explain(MODEL, REGION)
                return {c.node for c in route.candidates if c.ready} == set(self.nodes)

            await until(both_routed, what="both nodes in the routes")
        for data in (*(agent.data for agent in self.nodes.values()), self.gateway.data):
            await self.keeps(data / SNAPSHOT_FILE)

    async def keeps(self, path: Path, model: str = MODEL) -> None:
        """Until the file holds a snapshot by which both nodes serve the model."""

        async def current() -> bool:
            found = self.snapshot(path)
            try:
                return found is not None and len(found.route(model, REGION).candidates) == len(self.nodes)
            except MeshError:
                return False

        await until(current, what=f"a snapshot with both nodes in {path}")

    def snapshot(self, path: Path) -> SnapshotRoutes | None:
        try:
            signed = route_pb2.SignedSnapshot.FromString(path.read_bytes())
            return SnapshotRoutes(opened(signed, self.ca.read_bytes(), now_s=time.time(), expired_too=True))
        except (OSError, DecodeError, MeshError):
            return None

    async def deploy(self, artifact: Artifact) -> None:
        async with self.plane.operator() as operator:
            await operator.publish(artifact)
            await operator.deploy(artifact.manifest.model, artifact.manifest.version)

    def bootstrap(self, name: str, *, fallbacks: bool = True) -> Path:
        """A client's file; without `fallbacks` it names the control plane alone."""
        path = self.folder / f"{name}.json"
        nodes = {agent.public: name for name, agent in self.nodes.items()} if fallbacks else {}
        write_bootstrap(path, grpc_bootstrap(self.plane.public, self.ca, self.plane.token(), REGION, fallbacks=nodes))
        return path

    def state_file(self, state: Path) -> Path:
        """Where an SDK with that state folder keeps its snapshot."""
        found = from_bootstrap(self.bootstrap("any"), state).snapshot_path
        assert found
        return found


class LineClient:
    """A client process that answers a line of JSON with another."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    async def call(self, model: str = MODEL, **more: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"model": model, "x": [1.0], **more}).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        assert line, self.log
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def node(self, model: str = MODEL, **more: Any) -> str:
        """Who answered; an error fails the test."""
        answer = await self.call(model, **more)
        assert "node" in answer, answer
        return str(answer["node"])

    async def knows(self, model: str, within_s: float = 40.0) -> None:
        """Until the model is answered."""

        async def answered() -> bool:
            return "node" in await self.call(model, timeout_s=3)

        await until(answered, within_s=within_s, what=f"an answer of {model}")


@asynccontextmanager
async def line_client(folder: Path, program: str, *arguments: str, **environment: str) -> AsyncIterator[LineClient]:
    """A client program of this folder as a process."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    log = folder / "client.log"
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / program),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment},
        )
    try:
        yield LineClient(process, log)
    finally:
        process.kill()
        await process.wait()


def sdk_client(folder: Path, bootstrap: Path) -> Any:
    """The SDK, with its state in `folder`."""
    return line_client(folder, "sdk_client.py", str(bootstrap), str(folder / "state"))


def xds_client(folder: Path, bootstrap: Path) -> Any:
    """A plain gRPC `xds:///` client."""
    return line_client(folder, "xds_client.py", GRPC_XDS_BOOTSTRAP=str(bootstrap))


class StockClient:
    """tritonclient on a gateway."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def adds(self, model: str = MODEL) -> float:
        """What the model adds."""
        tensor = stock.InferInput("x", [2], "FP32")
        request = question(model)
        tensor._raw_content = request.raw_input_contents[0]
        answer = await self._client.infer(model, [tensor], client_timeout=10)
        return float(answer.as_numpy("y")[0]) - 1.0

    async def answers(self, model: str = MODEL, within_s: float = 40.0) -> None:
        """Until the model is answered."""

        async def answered() -> bool:
            try:
                return await self.adds(model) > 0
            except InferenceServerException:
                return False

        await until(answered, within_s=within_s, what=f"the gateway answers {model}")


@asynccontextmanager
async def stock_client(address: str) -> AsyncIterator[StockClient]:
    client = stock.InferenceServerClient(address)
    try:
        yield StockClient(client)
    finally:
        await client.close()


@asynccontextmanager
async def island_mesh(folder: Path) -> AsyncIterator[IslandMesh]:
    """Running, with one model on both nodes."""
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(control_plane(folder / "control-plane"))
        async with plane.operator() as operator:
            await operator.publish(adding(folder / MODEL, MODEL, "1", 1.0))
            await operator.deploy(MODEL, "1")
        made = [node(plane, folder / name, name, times=NODE_TIMES) for name in ("one", "two")]
        nodes = await asyncio.gather(*(stack.enter_async_context(one) for one in made))
        gateway = GatewayProcess(plane, folder / "gateway", "door")
        stack.push_async_callback(gateway.child.stop)
        mesh = IslandMesh(folder, plane, nodes, gateway)
        await mesh.up()
        yield mesh
