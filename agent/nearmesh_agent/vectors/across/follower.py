"""Follows other nodes: what they have for this site comes over, as it is written there, for as long as both are there.

It goes from node to node, without the control plane. A node that cannot be reached is tried again and again; what was
written meanwhile comes then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from nearmesh.backoff import Backoff
from nearmesh.errors import InvalidInput, MeshError, Superseded, Unreachable, Unsupported
from nearmesh.rpc import from_rpc_error
from nearmesh.v1 import node_pb2, vector_pb2_grpc
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.across.mesh import MeshChannels
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.channel import VectorChannel
from nearmesh_agent.vectors.namespaces import ANY

log = logging.getLogger(__name__)

ACROSS = "nearmesh.v1.VectorAcrossService"
# How often a node is asked what it offers. What is written to a collection that is followed comes at once.
OFFERS_EVERY_S = 5.0
# Who keeps vectors is looked at again.
LOOK_EVERY_S = 1.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_ANSWER_WITHIN_S = 10.0
# Small, since the agent's event loop, which serves, has each of them in hand for a moment.
_MOST_BYTES = 512 * 1024
# Texts that are embedded at a time, behind all else.
_TEXTS = 32

# A vector for each text, by a model in the version of that digest. Raises MeshError.
Embed = Callable[[str, str, Sequence[str]], Awaitable[NDArray[np.float32]]]


class Follower:
    """Of one node; `run` for as long as the agent does."""

    def __init__(
        self,
        here: Here,
        nodes: Callable[[], Sequence[node_pb2.VectorNode]],
        channels: MeshChannels,
        channel: Callable[[], VectorChannel],
        embed: Embed | None = None,
    ) -> None:
        """`channel` leads to the process that keeps the vectors; it raises NotReady while that is not there."""
        self._embed_texts = embed
        self._here = here
        self._nodes = nodes
        self._channels = channels
        self._channel = channel
        # What each node offered and this one does not take, as it is told at the next turn; and by node and identity,
        # why what is followed could not be taken.
        self._refused: dict[str, list[pb.OfferedRequest.Refusal]] = {}
        self._failed: dict[tuple[str, str], str] = {}

    async def run(self) -> None:
        """For ever."""
        followed: dict[str, tuple[bytes, asyncio.Task[None]]] = {}
        try:
            while True:
                wanted = {node.node: node for node in self._nodes() if node.node != self._here.node}
                for name, (key, task) in list(followed.items()):
                    if name not in wanted or wanted[name].SerializeToString() != key or task.done():
                        await _end([task])
                        del followed[name]
                for name, node in wanted.items():
                    if name not in followed:
                        task = asyncio.create_task(self._follow(node), name=f"follow {name}")
                        followed[name] = node.SerializeToString(), task
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            await _end([task for _, task in followed.values()])

    async def _follow(self, node: node_pb2.VectorNode) -> None:
        """One node, for ever."""
        backoff, said = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S), ""
        while True:
            try:
                await self._once(node, backoff)
            except MeshError as error:
                if error.message != said:
                    log.info("not following node=%s: %s", node.node, error.message)
                    said = error.message
            await asyncio.sleep(backoff.next_s())

    async def _once(self, node: node_pb2.VectorNode, backoff: Backoff) -> None:
        """Until something goes wrong. Raises MeshError."""
        stub = vector_pb2_grpc.VectorPeerServiceStub(self._channels.to(node))
        streams: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                offers = await self._offers(stub, node)
                answer = await self._adopt(node, offers)
                self._refused[node.node] = list(answer.refused)
                followed = {one.identity: one for one in answer.followed}
                for key in [key for key in self._failed if key[0] == node.node and key[1] not in followed]:
                    del self._failed[key]
                await self._streams(streams, stub, node, followed)
                backoff.reset()
                await asyncio.sleep(OFFERS_EVERY_S)
        finally:
            await _end(list(streams.values()))

    async def _offers(self, stub: Any, node: node_pb2.VectorNode) -> pb.OfferedResponse:
        request = pb.OfferedRequest(site=self._here.site, refused=self._refused.get(node.node, ()))
        for (name, identity), why in self._failed.items():
            if name == node.node:
                request.refused.add(identity=identity, why=why)
        try:
            found: pb.OfferedResponse = await stub.Offered(request, timeout=_ANSWER_WITHIN_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return found

    async def _adopt(self, node: node_pb2.VectorNode, found: pb.OfferedResponse) -> pb.AdoptResponse:
        request = pb.AdoptRequest(node=node.node, site=node.site, region=node.region, offers=found.offers)
        return pb.AdoptResponse.FromString(await self._ask("Adopt", request.SerializeToString()))

    async def _ask(self, method: str, message: bytes) -> bytes:
        found = self._channel().call(f"/{ACROSS}/{method}", message, reach=ANY, timeout_s=3 * _ANSWER_WITHIN_S)
        return await found

    async def _streams(
        self,
        streams: dict[str, asyncio.Task[None]],
        stub: Any,
        node: node_pb2.VectorNode,
        wanted: dict[str, pb.AdoptResponse.Followed],
    ) -> None:
        """One for each collection that is followed there; those that broke begin anew."""
        for identity, task in list(streams.items()):
            if identity not in wanted or task.done():
                await _end([streams.pop(identity)])
        for identity, one in wanted.items():
            if identity not in streams:
                name = f"follow {one.collection.name} of {node.node}"
                streams[identity] = asyncio.create_task(self._changes(stub, node, one), name=name)

    async def _changes(self, stub: Any, node: node_pb2.VectorNode, one: pb.AdoptResponse.Followed) -> None:
        """Takes what comes, and says so, until it breaks."""
        asked: asyncio.Queue[pb.ChangesRequest] = asyncio.Queue()
        request = pb.ChangesRequest(
            collection=one.collection,
            identity=one.identity,
            acknowledged=one.acknowledged,
            log=one.log,
            most_bytes=_MOST_BYTES,
        )
        asked.put_nowait(request)
        call = stub.Changes(_each(asked))
        try:
            async for changes in call:
                if changes.embedder_digest != one.embedder_digest:
                    await self._embed(one, changes)
                taken = await self._take(node, one, changes)
                self._failed.pop((node.node, one.identity), None)
                asked.put_nowait(pb.ChangesRequest(acknowledged=taken))
        except grpc.aio.AioRpcError as error:
            _say(node, one, from_rpc_error(error))
        except MeshError as error:
            self._failed[node.node, one.identity] = f"node {self._here.node}: {error.message}"
            _say(node, one, error)
        finally:
            call.cancel()

    async def _embed(self, one: pb.AdoptResponse.Followed, changes: pb.ChangesResponse) -> None:
        """Vectors as this site has them, where the other one has another version of the embedder. Raises MeshError."""
        rows = [change.row for change in changes.changes if change.HasField("row")]
        if without := next((row.id for row in rows if not row.text), ""):
            raise InvalidInput(
                f"row {without[:64]!r} has no text, and its vector is of another version of the embedder"
            )
        if rows and (self._embed_texts is None or not one.embedder):
            raise Unsupported("the vectors are of another version of the embedder, and this node has none")
        for start in range(0, len(rows), _TEXTS):
            part = rows[start : start + _TEXTS]
            assert self._embed_texts
            vectors = await self._embed_texts(one.embedder, one.embedder_digest, [row.text for row in part])
            for row, vector in zip(part, vectors, strict=True):
                row.vector = np.asarray(vector, "<f4").tobytes()
        changes.embedder_digest = one.embedder_digest

    async def _take(
        self, node: node_pb2.VectorNode, one: pb.AdoptResponse.Followed, changes: pb.ChangesResponse
    ) -> int:
        request = pb.TakeRequest(
            node=node.node, site=node.site, collection=one.collection, identity=one.identity, changes=changes
        )
        answer = await self._ask("Take", request.SerializeToString())
        return pb.TakeResponse.FromString(answer).acknowledged


async def _each(asked: asyncio.Queue[pb.ChangesRequest]) -> AsyncIterator[pb.ChangesRequest]:
    while True:
        yield await asked.get()


def _say(node: node_pb2.VectorNode, one: pb.AdoptResponse.Followed, error: MeshError) -> None:
    level = logging.INFO if isinstance(error, Unreachable | Superseded) else logging.WARNING
    log.log(level, "collection=%s of node=%s is not followed: %s", one.collection.name, node.node, error.message)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task, found in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(found, Exception):
            log.error("bug in %s; it begins anew", task.get_name(), exc_info=found)
