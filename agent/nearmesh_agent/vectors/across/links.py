"""An agent's links to other nodes that keep vectors: queries that travel, and rows that are for other sites too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nearmesh.tls import Credentials
from nearmesh.transport.server import Server
from nearmesh.v1 import node_pb2
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.across import peer
from nearmesh_agent.vectors.across.follower import ACROSS, Embed, Follower
from nearmesh_agent.vectors.across.mesh import MeshChannels
from nearmesh_agent.vectors.across.passing import Passing
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.across.reach import Reach, over
from nearmesh_agent.vectors.channel import VectorChannel
from nearmesh_agent.vectors.namespaces import ANY

# It is a look into two tables; what a query was answered elsewhere does not wait for longer.
_DELETED_WITHIN_S = 1.0

Nodes = Callable[[], Sequence[node_pb2.VectorNode]]


class Links:
    """Of one node."""

    def __init__(
        self,
        here: Here,
        nodes: Nodes,
        credentials: Callable[[], Credentials],
        channel: Callable[[], VectorChannel],
        *,
        max_message_bytes: int,
        embed: Embed | None = None,
    ) -> None:
        """`nodes` are all that keep vectors, as the control plane said last; `channel` leads to the process that has
        this node's, and raises NotReady while that is not there; `embed` makes vectors of rows whose embedder is of
        another version there than here.
        """
        self._nodes = nodes
        self._channels = MeshChannels(credentials, max_message_bytes=max_message_bytes)
        self._passing = Passing(nodes, channel)
        self._follower = Follower(here, nodes, self._channels, channel, embed)
        self._channel = channel
        self.reach = Reach(here, nodes, over(self._channels), self._deleted)

    def add_to(self, server: Server) -> None:
        self._passing.add_to(server)

    def asking(self, node: str) -> Here:
        """One that asks on behalf of a caller. Raises PermissionDenied."""
        return peer.asking(node, self._nodes())

    async def _deleted(self, identity: str, ids: Sequence[str]) -> Iterable[str]:
        request = pb.DeletedRequest(identity=identity, ids=ids).SerializeToString()
        answer = await self._channel().call(f"/{ACROSS}/Deleted", request, reach=ANY, timeout_s=_DELETED_WITHIN_S)
        return pb.DeletedResponse.FromString(answer).ids

    async def run(self) -> None:
        """For as long as the agent does."""
        try:
            await self._follower.run()
        finally:
            await self._channels.close()
