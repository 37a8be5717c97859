"""A gateway's process: joins, keeps Envoy running with a young certificate, and measures the way to every node."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

import grpc

from nearmesh import addresses
from nearmesh.gateway.bootstrap import GatewayIdentity, write_bootstrap, write_secrets
from nearmesh.gateway.config import GatewayConfig
from nearmesh.gateway.envoy import Envoy, envoy_binary, envoy_command, free_port
from nearmesh.gateway.metadata import GatewayMetadata
from nearmesh.membership import Membership, Renewal, member
from nearmesh.probe import Probe, ServerLiveEcho, Target
from nearmesh.process import only_one
from nearmesh.rpc import from_rpc_error
from nearmesh.tls import Credentials
from nearmesh.v1 import route_pb2, route_pb2_grpc

log = logging.getLogger(__name__)

REPORT_TIMEOUT_S = 2.0


async def serve(config: GatewayConfig, token: str | None, stop: asyncio.Event) -> None:
    """Joins if need be, then runs the gateway until `stop` is set. Raises MeshError."""
    with only_one(config.data, "a gateway"):
        membership = await member(config.data, "gateway", token)
        # Envoy watches the folder and takes renewed files over by itself.
        renewal = Renewal(membership, config.data)
        envoy = _envoy(config, membership)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(envoy.run())
            background = [
                tasks.create_task(renewal.run()),
                tasks.create_task(NetworkTimes(membership, renewal).run()),
            ]
            log.info("gateway=%s region=%s listen=%s", membership.id, membership.region, config.listen)
            await stop.wait()
            envoy.stop()
            for task in background:
                task.cancel()
            await running


def _envoy(config: GatewayConfig, membership: Membership) -> Envoy:
    host, port = addresses.split_ip(config.listen)
    port = port or free_port(host)
    certificate_sds, ca_sds = write_secrets(config.data, config.data)
    metadata = GatewayMetadata(
        host=host,
        port=port,
        plaintext=config.plaintext,
        certificate_sds=str(certificate_sds.resolve()),
        ca_sds=str(ca_sds.resolve()),
    )
    who = GatewayIdentity(
        id=membership.id,
        mesh=membership.mesh,
        region=membership.region,
        site=membership.site,
        control_plane=(membership.control_plane_mesh,),
        control_plane_name=addresses.split(membership.control_plane_mesh)[0],
    )
    bootstrap = write_bootstrap(config.data, who, metadata, config.admin_port)
    return Envoy(envoy_command(envoy_binary(), bootstrap, config), (host, port))


class NetworkTimes:
    """Probes every node from this gateway's region and reports to the control plane what it measured."""

    def __init__(self, membership: Membership, renewal: Renewal) -> None:
        self._membership = membership
        self._renewal = renewal
        self._targets: tuple[Target, ...] = ()

    async def run(self) -> None:
        """For ever; goes on measuring the nodes it knows while the control plane is away."""
        while True:
            await self._run_with(self._renewal.current)

    async def _run_with(self, shown: Credentials) -> None:
        """Until the certificate is renewed: a channel shows the one it was made with, at every reconnection too."""
        credentials = shown.channel_credentials()
        async with grpc.aio.secure_channel(self._membership.control_plane_mesh, credentials) as channel:
            self._routes = route_pb2_grpc.RouteServiceStub(channel)
            probe = Probe(
                targets=self._nodes,
                connect=lambda target: ServerLiveEcho(target, credentials),
                report=self._report,
                clock=time.perf_counter,
            )
            await probe.run(lambda: self._renewal.current is shown)

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
        try:
            await self._routes.ReportLatency(request, timeout=REPORT_TIMEOUT_S)
        except grpc.RpcError as error:
            log.debug("the control plane took no report: %s", from_rpc_error(error).message)
