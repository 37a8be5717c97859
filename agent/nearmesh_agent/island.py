"""What a node does in the control plane's place: it keeps the newest snapshot and answers from it, read-only.

Discovery for `xds:///` clients and gateways, routes for SDKs. All of it is there at any time, as second choice: clients
ask a node only when the control plane does not answer, and are sent back to it when it does.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from envoy.service.discovery.v3 import ads_pb2_grpc

from nearmesh.errors import Draining, MeshError, Unreachable
from nearmesh.membership import Membership, Renewal
from nearmesh.rpc import Gatekeeper
from nearmesh.snapshot import SnapshotKeeper
from nearmesh.snapshot.keeper import SNAPSHOT_FILE
from nearmesh.snapshot.machine import machine_follower
from nearmesh.snapshot.servicer import SnapshotRouteServicer
from nearmesh.tokens import TokenVerifier
from nearmesh.transport.server import Server
from nearmesh.v1 import route_pb2_grpc
from nearmesh.xds.ads import AggregatedDiscovery

log = logging.getLogger(__name__)

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
# A discovery stream is ended when the control plane has been there for so long: Envoy stays where it is otherwise. Who
# cannot reach the control plane comes back here, having lost nothing.
RETURN_AFTER_S = 15.0


class Island:
    """The snapshot of one node, and the services that answer from it."""

    def __init__(self, membership: Membership, renewal: Renewal, verifier: TokenVerifier, data: Path) -> None:
        self._membership = membership
        self._verifier = verifier
        self._keeper = SnapshotKeeper(renewal.current.ca_pem, data / SNAPSHOT_FILE, mesh=membership.mesh)
        self._leaving = asyncio.Event()
        self._follower = machine_follower(self._keeper, membership, renewal, on_taken=self._taken)
        self._taken()

    def add_to(self, server: Server, gatekeeper: Gatekeeper) -> None:
        """The services that the node offers beside its own."""
        discovery = AggregatedDiscovery(
            source=self._keeper,
            mesh=self._membership.mesh,
            verifier=self._verifier,
            jwks_json=self._jwks_json,
            check=lambda who: gatekeeper.check(who, ADS),
            dismissal=self._dismissal,
        )
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(discovery, server)
        routes = SnapshotRouteServicer(self._keeper, self._leaving)
        route_pb2_grpc.add_RouteServiceServicer_to_server(routes, server)

    async def run(self) -> None:
        """Follows the snapshots of the control plane, for ever."""
        await self._follower.run()

    def leave(self) -> None:
        """Ends every open stream, each with word that another node may answer."""
        self._leaving.set()

    def removed(self) -> frozenset[str]:
        """Machines that the mesh removed, as the snapshot has it."""
        known = self._keeper.known
        return known.removed if known else frozenset()

    def _jwks_json(self) -> str:
        known = self._keeper.known
        return (known and known.jwks_json) or self._membership.jwks_json

    def _taken(self) -> None:
        if known := self._keeper.known:
            log.debug("snapshot generation=%s regions=%s until=%.0f", known.generation, len(known), known.expires_at_s)
            self._verifier.update(self._jwks_json())

    async def _dismissal(self) -> MeshError:
        left, back = asyncio.ensure_future(self._leaving.wait()), asyncio.ensure_future(self._control_plane_is_back())
        try:
            await asyncio.wait((left, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            back.cancel()
        if self._leaving.is_set():
            return Draining("the node leaves; ask another one, or the control plane")
        return Unreachable("the control plane is back; ask it first")

    async def _control_plane_is_back(self) -> None:
        while True:
            await self._follower.with_control_plane.wait()
            await asyncio.sleep(RETURN_AFTER_S)
            if self._follower.with_control_plane.is_set():
                return
