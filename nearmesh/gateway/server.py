"""A gateway's process: joins, keeps Envoy running with a young certificate, and measures the way to every node."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc

from nearmesh import addresses
from nearmesh.addresses import free_port
from nearmesh.gateway.access_log import AccessLog, listening, socket_path
from nearmesh.gateway.bootstrap import (
    BOOTSTRAP_FILE,
    GatewayIdentity,
    write_bootstrap,
    write_configures,
    write_secrets,
)
from nearmesh.gateway.calls import CallTally
from nearmesh.gateway.config import GatewayConfig
from nearmesh.gateway.envoy import Envoy, envoy_binary, envoy_command
from nearmesh.gateway.metadata import GatewayMetadata
from nearmesh.gateway.predictions import Predictions
from nearmesh.membership import Membership, Renewal, member
from nearmesh.probe import Probe, ServerLiveEcho, Target
from nearmesh.process import only_one
from nearmesh.rpc import from_rpc_error
from nearmesh.snapshot import SnapshotKeeper
from nearmesh.snapshot.keeper import SNAPSHOT_FILE
from nearmesh.snapshot.machine import machine_follower, nearest_nodes
from nearmesh.tls import Credentials
from nearmesh.turns import Turns
from nearmesh.v1 import route_pb2, route_pb2_grpc

log = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 2.0
# Nodes that Envoy tries in turn when it starts while the control plane is away.
FALLBACK_NODES = 4
CALLS_EVERY_S = 1.0


async def serve(config: GatewayConfig, token: str | None, stop: asyncio.Event) -> None:
    """Joins if need be, then runs the gateway until `stop` is set. Raises MeshError."""
    with only_one(config.data, "a gateway"), socket_path(config.data) as socket:
        membership = await member(config.data, "gateway", token)
        # Envoy watches the folder and takes renewed files over by itself.
        renewal = Renewal(membership, config.data)
        keeper = SnapshotKeeper(
            renewal.current.ca_pem, config.data / SNAPSHOT_FILE, mesh=membership.mesh, region=membership.region
        )
        start = EnvoyStart(config, membership, keeper, socket)
        envoy = Envoy(start.command(), start.address)
        follower = machine_follower(keeper, membership, renewal, region=membership.region, on_taken=start.renew)
        times = NetworkTimes(membership, renewal)
        async with listening(times.access_log(), socket), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(envoy.run())
            background = [
                tasks.create_task(renewal.run()),
                tasks.create_task(follower.run()),
                tasks.create_task(times.run()),
            ]
            log.info("gateway=%s region=%s listen=%s", membership.id, membership.region, config.listen)
            await stop.wait()
            envoy.stop()
            for task in background:
                task.cancel()
            await running


class EnvoyStart:
    """What Envoy starts from. `write` puts it on disk again once the snapshot names other nodes.

    Envoy that runs needs no other nodes: it goes on with what it was told. One that starts while the control plane is
    away is told by a node. One that the mesh removed is not believed any more, also by an Envoy that runs.
    """

    def __init__(self, config: GatewayConfig, membership: Membership, keeper: SnapshotKeeper, calls: Path) -> None:
        """`calls` is the socket of the access log."""
        self._config = config
        self._membership = membership
        self._keeper = keeper
        self._calls = calls
        host, port = addresses.split_ip(config.listen)
        self.address = host, port or free_port(host)
        # Every node that was in one of the bootstraps: an Envoy that runs has read an earlier one.
        self._named: dict[str, None] = {}
        self._written: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self.write()

    def command(self) -> list[str]:
        """Envoy's command line."""
        return envoy_command(envoy_binary(), self._config.data / BOOTSTRAP_FILE, self._config)

    def write(self) -> None:
        """The bootstrap and the files of the secrets, if they are not there as they should be."""
        config, membership = self._config, self._membership
        nodes = nearest_nodes(self._keeper, membership)[:FALLBACK_NODES]
        self._named |= dict.fromkeys(node.node for node in nodes)
        known = self._keeper.known
        believed = tuple(node for node in self._named if known and node not in known.removed)
        control_planes = addresses.several(membership.control_plane_mesh)
        wanted = (*control_planes, *(node.address for node in nodes))
        if (wanted, believed) == self._written:
            return
        names = [addresses.split(address)[0] for address in control_planes]
        configures_sds = write_configures(config.data, config.data, membership.mesh, names, believed)
        certificate_sds, ca_sds = write_secrets(config.data, config.data)
        metadata = GatewayMetadata(
            host=self.address[0],
            port=self.address[1],
            plaintext=config.plaintext,
            certificate_sds=str(certificate_sds.resolve()),
            ca_sds=str(ca_sds.resolve()),
            calls=True,
        )
        who = GatewayIdentity(
            id=membership.id,
            mesh=membership.mesh,
            region=membership.region,
            site=membership.site,
            control_plane=wanted,
            control_plane_names=names,
            configures_sds=str(configures_sds.resolve()),
            calls=self._calls,
        )
        write_bootstrap(config.data, who, metadata, config.admin_port)
        self._written = wanted, believed

    def renew(self) -> None:
        """As `write`, while Envoy runs: a full disk is no reason to stop."""
        try:
            self.write()
        except OSError as error:
            log.warning("Envoy's bootstrap was not brought up to date: %s", error)


class NetworkTimes:
    """Probes every node from this gateway's region, sums up its calls, and reports both to the control plane."""

    def __init__(self, membership: Membership, renewal: Renewal) -> None:
        self._membership = membership
        self._renewal = renewal
        # Nobody else's turns: these end at the leader.
        self._control_planes = Turns(renewal.control_planes.order)
        self._asked = self._control_planes.current
        self._targets: tuple[Target, ...] = ()
        self._calls = CallTally()
        self._predictions = Predictions(membership.region, time.monotonic)

    def access_log(self) -> AccessLog:
        """What takes Envoy's log over."""
        return AccessLog(self._calls, self._node_at, self._predictions.get)

    async def run(self) -> None:
        """For ever; goes on measuring the nodes it knows while the control plane is away."""
        while True:
            self._control_planes.learn(self._renewal.control_planes.order)
            await self._run_with(self._renewal.current)

    async def _run_with(self, shown: Credentials) -> None:
        """Until the certificate is renewed, which a channel keeps as it was, or another control plane is asked."""
        credentials, self._asked = shown.channel_credentials(), self._control_planes.current
        async with grpc.aio.secure_channel(self._asked, credentials) as channel:
            self._routes = route_pb2_grpc.RouteServiceStub(channel)
            probe = Probe(
                targets=self._nodes,
                connect=lambda target: ServerLiveEcho(target, credentials),
                report=self._report,
                clock=time.perf_counter,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(probe.run(lambda: self._right(shown)))
                tasks.create_task(self._report_calls(shown))

    async def _report_calls(self, shown: Credentials) -> None:
        """Once a second, while the connection is right; what cannot be sent is dropped: demand is of the moment."""
        while self._right(shown):
            await asyncio.sleep(CALLS_EVERY_S)
            calls = self._calls.take()
            if calls:
                await self._send(route_pb2.ReportLatencyRequest(region=self._membership.region, calls=calls))
            await self._predictions.refresh(self._routes)

    def _right(self, shown: Credentials) -> bool:
        """The present certificate is shown, to the control plane that is to be asked."""
        return self._renewal.current is shown and self._control_planes.current == self._asked

    def _node_at(self, address: str) -> str | None:
        """For calls that ended without a word of the node."""
        return next((target.node for target in self._targets if target.address == address), None)

    async def _nodes(self) -> Sequence[Target]:
        request = route_pb2.ListLatenciesRequest(region=self._membership.region)
        try:
            found = await self._routes.ListLatencies(request, timeout=REPORT_TIMEOUT_S)
        except grpc.RpcError as error:
            log.debug("the control plane did not list the nodes: %s", from_rpc_error(error).message)
        else:
            self._targets = tuple(Target(n.node, n.address, n.server_name) for n in found.latencies if n.address)
        return self._targets

    async def _report(self, samples: Mapping[str, Sequence[float]]) -> None:
        request = route_pb2.ReportLatencyRequest(
            region=self._membership.region,
            samples=[route_pb2.LatencySample(node=node, network_ms=ms) for node, ms in samples.items()],
        )
        await self._send(request)

    async def _send(self, request: route_pb2.ReportLatencyRequest) -> None:
        try:
            await self._routes.ReportLatency(request, timeout=REPORT_TIMEOUT_S)
        except grpc.RpcError as error:
            log.debug("the control plane took no report: %s", from_rpc_error(error).message)
            # Of several, the one that leads takes it.
            self._control_planes.failed(self._asked)
        else:
            self._control_planes.answered()
