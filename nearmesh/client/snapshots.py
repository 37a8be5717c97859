"""How the SDK follows snapshots: from the control plane on the connection that is there, else from nodes.

Nodes are those that the last snapshot names, and those of the bootstrap file for a client that never had one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import grpc

from nearmesh.client.channels import CHANNEL_OPTIONS
from nearmesh.client.control import ControlPlanes
from nearmesh.client.settings import ConnectSettings
from nearmesh.ids import node_server_name
from nearmesh.snapshot import SnapshotKeeper
from nearmesh.snapshot.follower import Peer, SnapshotFollower


def client_follower(
    keeper: SnapshotKeeper,
    settings: ConnectSettings,
    control_planes: ControlPlanes,
    metadata: Callable[[], Sequence[tuple[str, str]]],
    on_peers: Callable[[], None],
) -> SnapshotFollower:
    """Follows what clients of the settings' region need.

    `on_peers` is told of news that did not come from a control plane.
    """
    credentials = grpc.ssl_channel_credentials(settings.ca_pem)

    def connect(peer: Peer) -> AbstractAsyncContextManager[grpc.aio.Channel]:
        if peer.address in control_planes.addresses:
            return nullcontext(control_planes.channel(peer.address))
        name = [("grpc.ssl_target_name_override", peer.server_name)] if peer.server_name else []
        return grpc.aio.secure_channel(peer.address, credentials, (*CHANNEL_OPTIONS, *name))

    def taken() -> None:
        if not follower.with_control_plane.is_set():
            on_peers()

    follower = SnapshotFollower(
        keeper,
        region=settings.region,
        control_plane=lambda: Peer(control_planes.address),
        peers=lambda: snapshot_peers(keeper, settings),
        connect=connect,
        metadata=metadata,
        on_taken=taken,
        on_failed=lambda peer: control_planes.failed(peer.address),
    )
    return follower


def snapshot_peers(keeper: SnapshotKeeper, settings: ConnectSettings) -> Sequence[Peer]:
    """Who may have a snapshot, best first."""
    known = keeper.known
    if known is None:
        return [Peer(address) for address in settings.fallbacks]
    # The file is as old as it is; the token is shown to nobody who was removed since.
    named = [Peer(address) for address, node in settings.fallbacks.items() if node not in known.removed]
    nearest = known.table(settings.region, "public").nearest
    found = [Peer(endpoint.address, node_server_name(known.mesh, endpoint.node)) for endpoint in nearest]
    told = {peer.address for peer in found}
    return [*found, *(peer for peer in named if peer.address not in told)]
