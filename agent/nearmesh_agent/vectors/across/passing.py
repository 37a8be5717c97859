"""VectorPeerService on a node's mesh listener: which node asks, may it, and on to the process that has the vectors.

Rows go on as the bytes that came from there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from nearmesh.errors import NotReady
from nearmesh.rpc import caller
from nearmesh.transport.server import Server
from nearmesh.v1 import node_pb2
from nearmesh_agent.vectors.across import peer
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.channel import Message, VectorChannel
from nearmesh_agent.vectors.namespaces import ANY

SERVICE = "nearmesh.v1.VectorPeerService"


class Passing:
    """Of one node."""

    def __init__(
        self, nodes: Callable[[], Sequence[node_pb2.VectorNode]], channel: Callable[[], VectorChannel]
    ) -> None:
        """`nodes` are all that keep vectors, as the control plane said last; `channel` raises NotReady."""
        self._nodes = nodes
        self._channel = channel

    def add_to(self, server: Server) -> None:
        handlers: dict[str, Any] = {
            "Offered": grpc.unary_unary_rpc_method_handler(self._offered),
            "Changes": grpc.stream_stream_rpc_method_handler(self._changes),
        }
        same = {"request_deserializer": _same, "response_serializer": _same}
        server.add_registered_method_handlers(SERVICE, {name: one._replace(**same) for name, one in handlers.items()})

    async def _offered(self, message: Message, context: Any) -> bytes:
        told = peer.told(self._asking())
        left_s = context.time_remaining()
        return await self._channel().call(f"/{SERVICE}/Offered", message, reach=ANY, timeout_s=left_s, more=(told,))

    async def _changes(self, messages: AsyncIterator[Message], context: Any) -> AsyncIterator[bytes]:
        told = peer.told(self._asking())
        async for answer in self._channel().exchange(f"/{SERVICE}/Changes", messages, reach=ANY, more=(told,)):
            # A rule that was made meanwhile binds what is still to be sent.
            if peer.told(self._asking()) != told:
                raise NotReady("what may go to this node is ruled anew; ask again")
            yield answer

    def _asking(self) -> Here:
        """Raises PermissionDenied."""
        return peer.asking(caller().name, self._nodes())


def _same(message: Any) -> Any:
    return message
