"""How nodes and gateways follow snapshots: over mesh listeners, with their certificates, from each other if need be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc

from nearmesh.ids import node_server_name
from nearmesh.membership import KEEPALIVE, Membership, Renewal
from nearmesh.routing.table import Endpoint
from nearmesh.snapshot.follower import MAX_ANSWER_BYTES, Peer, SnapshotFollower
from nearmesh.snapshot.keeper import SnapshotKeeper


def machine_follower(
    keeper: SnapshotKeeper,
    membership: Membership,
    renewal: Renewal,
    *,
    region: str = "",
    on_taken: Callable[[], None] = lambda: None,
) -> SnapshotFollower:
    """Follows the whole snapshot, or what machines of one region need."""

    def connect(peer: Peer) -> grpc.aio.Channel:
        options = [*KEEPALIVE, ("grpc.max_receive_message_length", MAX_ANSWER_BYTES)]
        if peer.server_name:
            options.append(("grpc.ssl_target_name_override", peer.server_name))
        return grpc.aio.secure_channel(peer.address, renewal.current.channel_credentials(), options=options)

    return SnapshotFollower(
        keeper,
        region=region,
        control_plane=lambda: Peer(renewal.control_planes.current),
        peers=lambda: mesh_peers(keeper, membership),
        connect=connect,
        on_taken=on_taken,
        on_failed=lambda peer: renewal.control_planes.failed(peer.address),
    )


def mesh_peers(keeper: SnapshotKeeper, membership: Membership) -> Sequence[Peer]:
    """The other nodes that the snapshot names, the nearest first, as a machine reaches them."""
    return [
        Peer(endpoint.address, node_server_name(membership.mesh, endpoint.node))
        for endpoint in nearest_nodes(keeper, membership)
    ]


def nearest_nodes(keeper: SnapshotKeeper, membership: Membership) -> Sequence[Endpoint]:
    """The same, with their ids."""
    known = keeper.known
    nearest = known.table(membership.region, "mesh").nearest if known else ()
    return [endpoint for endpoint in nearest if endpoint.node != membership.id]
