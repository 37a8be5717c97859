"""Keeps a keeper's snapshot the newest there is: from the control plane while it is there, else from peers.

A peer is any node of the mesh; what it gives is believed for its signature, not for its sender.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import grpc

from nearmesh.backoff import Backoff
from nearmesh.errors import MeshError, SnapshotRefused
from nearmesh.rpc import from_rpc_error
from nearmesh.snapshot.keeper import OlderSnapshot, SnapshotKeeper
from nearmesh.snapshot.seal import MAX_SNAPSHOT_BYTES
from nearmesh.v1 import route_pb2, route_pb2_grpc

log = logging.getLogger(__name__)

# Of a message that carries the largest snapshot.
MAX_ANSWER_BYTES = MAX_SNAPSHOT_BYTES + 64 * 1024
_FIRST_RETRY_S, _MAX_RETRY_S = 0.5, 10.0
# The control plane has this long before a peer is asked.
CONTROL_PLANE_FIRST_S = 1.0
# Of one peer, for a message of some megabytes.
PEER_TIMEOUT_S = 10.0
# Peers have what the control plane said last, all of them the same; one that was away has less.
PEERS_AGAIN_S = 60.0
PEERS_AT_A_TIME = 4


@dataclass(frozen=True, slots=True)
class Peer:
    """Who may have a snapshot."""

    address: str
    # The name in its certificate; empty: the host in its address.
    server_name: str = ""


Connect = Callable[[Peer], AbstractAsyncContextManager[grpc.aio.Channel]]


class SnapshotFollower:
    """`run` follows. `with_control_plane` is set while the control plane tells us."""

    def __init__(
        self,
        keeper: SnapshotKeeper,
        *,
        region: str,
        control_plane: Callable[[], Peer],
        peers: Callable[[], Sequence[Peer]],
        connect: Connect,
        metadata: Callable[[], Sequence[tuple[str, str]]] = tuple,
        on_taken: Callable[[], None] = lambda: None,
        on_failed: Callable[[Peer], bool] = lambda peer: True,
    ) -> None:
        """`region` is that of a client; "" asks for all. `peers`, the best first, are asked for at each need.

        `control_plane` too: of several, the one to ask now; `on_failed` hears that it did not answer, and says whether
        none did.
        """
        self._keeper = keeper
        self._request = route_pb2.WatchSnapshotRequest(region=region)
        self._control_plane = control_plane
        self._peers = peers
        self._connect = connect
        self._metadata = metadata
        self._on_taken = on_taken
        self._on_failed = on_failed
        self.with_control_plane = asyncio.Event()
        self._alone = asyncio.Event()
        self._alone.set()

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_control_plane())
            tasks.create_task(self._follow_peers())

    async def _follow_control_plane(self) -> None:
        backoff = Backoff(_FIRST_RETRY_S, _MAX_RETRY_S)
        while True:
            control_plane = self._control_plane()
            try:
                async with self._connect(control_plane) as channel:
                    async for signed in self._watch(channel):
                        self._alone.clear()
                        self.with_control_plane.set()
                        backoff.reset()
                        await self._take(signed, control_plane)
            except (grpc.RpcError, MeshError) as error:
                _raise_if_cancelled()
                log.debug("no snapshot from the control plane at %s: %s", control_plane.address, _message(error))
            finally:
                self.with_control_plane.clear()
                self._alone.set()
            if self._on_failed(control_plane):
                await asyncio.sleep(backoff.next_s())

    async def _follow_peers(self) -> None:
        backoff = Backoff(_FIRST_RETRY_S, _MAX_RETRY_S)
        while True:
            await self._alone.wait()
            await asyncio.sleep(CONTROL_PLANE_FIRST_S)
            if not self._alone.is_set():
                continue
            if await self._ask_peers():
                backoff.reset()
                await asyncio.sleep(PEERS_AGAIN_S)
            else:
                await asyncio.sleep(backoff.next_s())

    async def _ask_peers(self) -> bool:
        """Whether one of them had a snapshot that holds."""
        peers = list(self._peers())
        # The nearest is asked first; the others by chance, so that one that has nothing is not asked for ever.
        rest = random.sample(peers[1:], k=len(peers) - 1) if peers else []
        for peer in [*peers[:1], *rest][:PEERS_AT_A_TIME]:
            try:
                async with self._connect(peer) as channel:
                    async for signed in self._watch(channel, timeout=PEER_TIMEOUT_S):
                        if await self._take(signed, peer):
                            return True
                        break
            except (grpc.RpcError, MeshError) as error:
                _raise_if_cancelled()
                log.debug("no snapshot from peer=%s: %s", peer.address, _message(error))
        return False

    def _watch(self, channel: grpc.aio.Channel, **more: Any) -> Any:
        stub = route_pb2_grpc.RouteServiceStub(channel)
        return stub.WatchSnapshot(self._request, metadata=tuple(self._metadata()), **more)

    async def _take(self, signed: route_pb2.SignedSnapshot, peer: Peer) -> bool:
        """Whether it holds, be it news or not."""
        try:
            news = self._keeper.take(signed)
        except OlderSnapshot as error:
            log.debug("no news from peer=%s: %s", peer.address, error)
            return False
        except SnapshotRefused as error:
            log.warning("refused a snapshot from peer=%s: %s", peer.address, error)
            return False
        if news:
            await asyncio.to_thread(self._keeper.save)
            self._on_taken()
        return True


def _raise_if_cancelled() -> None:
    """gRPC may report the end of this very task as a failed call."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


def _message(error: grpc.RpcError | MeshError) -> str:
    return error.message if isinstance(error, MeshError) else from_rpc_error(error).message
