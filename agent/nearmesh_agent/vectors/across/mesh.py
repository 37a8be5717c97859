"""Channels to other nodes' mesh listeners, kept as long as they are used and the node's certificate is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from nearmesh.addresses import is_address
from nearmesh.errors import Unreachable
from nearmesh.membership import KEEPALIVE
from nearmesh.tls import Credentials
from nearmesh.v1.node_pb2 import VectorNode

# A node that comes back is looked for as often as this; gRPC would wait up to two minutes.
_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 2_000)]
# What is under way on a channel whose certificate is no longer the node's.
_GRACE_S = 30.0


class MeshChannels:
    """Belongs to one event loop."""

    def __init__(self, credentials: Callable[[], Credentials], *, max_message_bytes: int = 64 * 1024 * 1024) -> None:
        self._credentials = credentials
        self._shown: Credentials | None = None
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._options = [
            *KEEPALIVE,
            *_RECONNECT,
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
        ]

    def to(self, node: VectorNode) -> grpc.aio.Channel:
        """Raises Unreachable for one whose address is none."""
        if not is_address(node.address):
            raise Unreachable(f"the address of node {node.node}, {node.address!r}, is none")
        shown = self._credentials()
        if shown is not self._shown:
            self._shown = shown
            self._let_go()
        key = (node.address, node.server_name)
        if key not in self._channels:
            options = [*self._options, ("grpc.ssl_target_name_override", node.server_name)]
            self._channels[key] = grpc.aio.secure_channel(node.address, shown.channel_credentials(), options=options)
        return self._channels[key]

    def _let_go(self) -> None:
        for channel in self._channels.values():
            task = asyncio.create_task(channel.close(_GRACE_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._channels.clear()

    async def close(self) -> None:
        """Safe to repeat."""
        channels = list(self._channels.values())
        self._channels.clear()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*(channel.close() for channel in channels), *self._closing, return_exceptions=True)
