"""A node that keeps vectors beside the models that make them, in this process but for the vectors' own; on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.server import POLICY, add_servicers, engines_of
from nearmesh_agent.serving.node import ServingNode
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.responses import Place
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.namespaces import ANY
from nearmesh_agent.vectors.part import Vectors
from nearmesh_agent.vectors.text.embedders import NodeEmbedders
from nearmesh_agent.vectors.text.step import NodeRetriever

from nearmesh.client.vectors import VectorClient
from nearmesh.packaging.build import build
from nearmesh.packaging.layout import lay_out
from nearmesh.packaging.sources import default_cache
from nearmesh.rpc import Gatekeeper
from nearmesh.transport.server import Server
from nearmesh.v1 import vector_pb2_grpc

OPENED_WITHIN_S = 60.0


class PlainClient(VectorClient):
    """Without TLS, to a node on loopback that takes any caller."""

    def __init__(self, address: str) -> None:
        super().__init__(address, b"", "")
        self._metadata = ()

    async def __aenter__(self) -> PlainClient:
        self._channel = grpc.aio.insecure_channel(self._address, self._options)
        self.stub = vector_pb2_grpc.VectorServiceStub(self._channel)
        return self


@dataclass(slots=True)
class VectorNode:
    """One that is up."""

    node: ServingNode
    vectors: Vectors
    address: str
    client: VectorClient
    # By digest, the folder of each version that can be had.
    versions: dict[str, Path]
    # Set when the vectors' process comes or goes.
    changed: asyncio.Event

    async def serve(self, folder: Path) -> str:
        """The package's version serves from now on, and the one before is gone; its digest."""
        scratch = self.versions[""]
        artifact = await asyncio.to_thread(build, folder, default_cache(), draft=True, workshop=False)
        target = scratch / artifact.digest.replace(":", "-")
        if not target.exists():
            target.mkdir(parents=True)
            files = {file.title: artifact.blobs[file.digest] for file in artifact.manifest.files}
            await asyncio.to_thread(_lay_out, files, target)
        self.versions[artifact.digest] = target
        before = self.node.table.put(await self.node.load(target, artifact.digest))
        if before:
            self.node.table.remove(before.digest)
            await before.close()
        return artifact.digest

    async def opened(self) -> None:
        """The vectors answer."""
        async with asyncio.timeout(OPENED_WITHIN_S):
            while self.vectors.channel is None or self.vectors.detail:
                self.changed.clear()
                await self.changed.wait()


def _lay_out(files: Mapping[str, Path | bytes], target: Path) -> None:
    for name, content in files.items():
        if isinstance(content, bytes):
            (target / name).write_bytes(content)
    lay_out({name: content for name, content in files.items() if isinstance(content, Path)}, target)


@asynccontextmanager
async def vector_node(folder: Path, packages: tuple[Path, ...] = ()) -> AsyncIterator[VectorNode]:
    """Everything is ended afterwards; what was written stays in `folder`."""
    config = NodeConfig(data=folder, vectors=VectorsConfig(enabled=True))
    retriever = NodeRetriever(enabled=True)
    place = Place(node="node-a", site="site-a", region="europe-west1")
    node = ServingNode(config, place, engines_of(config, retriever))
    versions = {"": folder / "versions"}

    async def bring(model: str, digest: str) -> Replica:
        return await node.load(versions[digest], digest)

    embedders = NodeEmbedders(node.table, bring, folder / "vectors" / "pinned.json")
    at = Here(node=place.node, site=place.site, region=place.region)
    changed = asyncio.Event()
    vectors = Vectors(
        config.vectors,
        folder / "vectors",
        at,
        max_message_bytes=config.max_message_bytes,
        embedder=embedders,
        on_change=changed.set,
    )
    server = Server(Gatekeeper(mesh="alone", verifier=None, policy=POLICY, open_door=True), config.max_message_bytes)
    add_servicers(server, node.servicer, node.health)
    vectors.add_to(server)
    address = server.listen_plain("127.0.0.1:0")
    await server.start()
    retriever.open(partial(vectors.front.retrieve, reach=ANY))
    tasks = [asyncio.create_task(node.run()), asyncio.create_task(vectors.run())]
    try:
        async with PlainClient(address) as client:
            found = VectorNode(node, vectors, address, client, versions, changed)
            for package in packages:
                await found.serve(package)
            await found.opened()
            yield found
    finally:
        await vectors.front.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop(None)
        await embedders.close()
        await asyncio.gather(*(replica.close() for replica in node.table))
        await node.close()
