"""The agent's part in retrieval with its real process, behind a listener of its own without TLS."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.front import POLICY
from nearmesh_agent.vectors.part import Vectors

from nearmesh.rpc import Gatekeeper
from nearmesh.transport.server import Server
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1 import vector_pb2_grpc
from tests.integration.mesh_processes import until
from tests.signals import send

DIMENSION = 16
# A process that is loaded by nothing else answers in a second.
WITHIN_S = 60.0


class VectorNode:
    """One of them; `stub` is of its VectorService."""

    def __init__(self, folder: Path, config: VectorsConfig) -> None:
        at = Here(node="node-a", site="site-a", region="europe-west1")
        self.part = Vectors(config, folder, at, max_message_bytes=64 * 1024 * 1024)
        self.stub: Any

    async def ready(self) -> None:
        """Until the process answers."""

        async def answers() -> bool:
            return self.part.channel is not None

        await until(answers, within_s=WITHIN_S, what="the process answers")

    async def kill(self) -> None:
        """kill -9 of the process, and until another one answers."""
        ended = self.part.ended
        send(self.part.pid, signal.SIGKILL)

        async def noticed() -> bool:
            return self.part.ended > ended

        await until(noticed, within_s=WITHIN_S, what="the kill is noticed")
        await self.ready()

    async def ids(self, filter: str = "") -> list[str]:
        found: list[str] = []
        request = pb.QueryRequest(collection=DOCS, filter=filter, page_size=1000)
        while True:
            page = await self.stub.Query(request, timeout=30)
            found += [row.id for row in page.rows]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


DOCS = pb.CollectionRef(name="docs")


@asynccontextmanager
async def vector_node(folder: Path, **config: Any) -> AsyncIterator[VectorNode]:
    """Answering, until the end."""
    node = VectorNode(folder, VectorsConfig(enabled=True, **config))
    server = Server(Gatekeeper(mesh="alone", verifier=None, policy=POLICY, open_door=True), 64 * 1024 * 1024)
    node.part.add_to(server)
    address = server.listen_plain("127.0.0.1:0")
    await server.start()
    running = asyncio.create_task(node.part.run())
    try:
        await node.ready()
        async with grpc.aio.insecure_channel(address) as channel:
            node.stub = vector_pb2_grpc.VectorServiceStub(channel)
            yield node
    finally:
        running.cancel()
        await asyncio.wait({running})
        await server.stop(0)


async def create(node: VectorNode) -> None:
    fields = [pb.Field(name="year", type=pb.FIELD_TYPE_INT)]
    await node.stub.CreateCollection(
        pb.CreateCollectionRequest(collection=DOCS, dimension=DIMENSION, fields=fields), timeout=WITHIN_S
    )


def rows(first: int, count: int, *, year: int = 2020, text: str = "passage") -> list[pb.Row]:
    """Each with a vector of its own, the same at each call."""
    found = []
    for number in range(first, first + count):
        row = pb.Row(id=f"{number:06}", vector=vector(number), text=f"{text} number {number}")
        row.fields["year"].int = year
        found.append(row)
    return found


def vector(number: int) -> bytes:
    return np.random.default_rng(number).normal(size=DIMENSION).astype("<f4").tobytes()
