"""Gateways go on measuring, and being heard, with a renewed certificate; nodes measure each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
from cryptography import x509
from envoy.service.accesslog.v3 import als_pb2
from nearmesh_controlplane.registry.authority import Authority
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.gateway.calls import INFER_PATH
from nearmesh.gateway.server import NetworkTimes
from nearmesh.ids import MachineId
from nearmesh.tls import Credentials, certificate_request, key_to_pem, new_key
from nearmesh.turns import Turns
from nearmesh.v1 import route_pb2, route_pb2_grpc
from tests.integration.mesh_processes import control_plane, node, until

MESH, REGION = "test-mesh", "europe-west1"
# Nodes measure each other more often here: it takes some measurements until one counts.
NODE_TIMES = {"nearmesh_agent.session.peers.EVERY_S": 0.3}


class World(route_pb2_grpc.RouteServiceServicer, service_pb2_grpc.GRPCInferenceServiceServicer):
    """The control plane and its one node; notes which certificate each call came with."""

    def __init__(self) -> None:
        self.address = ""
        self.shown: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.calls: asyncio.Queue[route_pb2.CallReport] = asyncio.Queue()

    def _note(self, what: str, context: Any) -> None:
        (pem,) = context.auth_context()["x509_pem_cert"]
        self.shown.put_nowait((what, x509.load_pem_x509_certificate(pem).serial_number))

    async def ListLatencies(self, request: Any, context: Any) -> Any:
        self._note("list", context)
        node = route_pb2.Latency(region=REGION, node="n", address=self.address, server_name="localhost")
        return route_pb2.ListLatenciesResponse(latencies=[node])

    async def ReportLatency(self, request: Any, context: Any) -> Any:
        self._note("report", context)
        for calls in request.calls:
            assert request.region == REGION
            self.calls.put_nowait(calls)
        return route_pb2.ReportLatencyResponse()

    async def Resolve(self, request: Any, context: Any) -> Any:
        predicted = route_pb2.Candidate(node="n", total_ms_p50=10, total_ms_p95=20, total_ms_p99=30)
        return route_pb2.Route(model=request.model, deadline_ms=25, candidates=[predicted])

    async def ServerLive(self, request: Any, context: Any) -> Any:
        self._note("probe", context)
        return service_pb2.ServerLiveResponse(live=True)


def credentials(authority: Authority) -> Credentials:
    who, key = MachineId(MESH, "gateway", "door"), new_key()
    signed = authority.sign(certificate_request(key, who), who, timedelta(hours=1))
    return Credentials(key_to_pem(key), signed, authority.ca_pem)


@asynccontextmanager
async def serving(authority: Authority) -> AsyncIterator[World]:
    world, server = World(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    route_pb2_grpc.add_RouteServiceServicer_to_server(world, server)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(world, server)
    own = authority.server_credentials(["localhost"])
    tls = grpc.ssl_server_credentials([(own.key_pem, own.certificate_pem)], own.ca_pem, True)
    world.address = f"localhost:{server.add_secure_port('127.0.0.1:0', tls)}"
    await server.start()
    try:
        yield world
    finally:
        await server.stop(0)


async def test_every_connection_shows_the_certificate_that_is_current(tmp_path: Path) -> None:
    authority = Authority.open(MESH, tmp_path)
    membership = cast(Any, SimpleNamespace(region=REGION))
    renewal = cast(Any, SimpleNamespace(current=credentials(authority)))
    async with serving(authority) as world:
        renewal.control_planes = Turns([world.address])
        running = asyncio.create_task(NetworkTimes(membership, renewal).run())
        try:
            for _ in range(2):
                serial = renewal.current.certificate.serial_number
                seen: set[str] = set()
                async with asyncio.timeout(20):
                    # All of them with this certificate, sooner or later: what is in flight may still show the last.
                    while seen != {"list", "probe", "report"}:
                        what, shown = await world.shown.get()
                        seen |= {what} if shown == serial else set()
                renewal.current = credentials(authority)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def logged(took_ms: int) -> als_pb2.StreamAccessLogsMessage:
    """A call as Envoy logs it, to a node that said nothing of itself."""
    message = als_pb2.StreamAccessLogsMessage()
    entry = message.http_logs.log_entry.add()
    entry.request.path = INFER_PATH
    entry.common_properties.upstream_cluster = "m"
    entry.common_properties.duration.FromMilliseconds(took_ms)
    entry.response.response_headers["nearmesh-node"] = "n"
    entry.response.response_trailers["grpc-status"] = "0"
    return message


async def test_a_gateways_calls_are_summed_up_and_held_against_the_prediction(tmp_path: Path) -> None:
    authority = Authority.open(MESH, tmp_path)
    membership = cast(Any, SimpleNamespace(region=REGION))
    renewal = cast(Any, SimpleNamespace(current=credentials(authority)))
    async with serving(authority) as world:
        renewal.control_planes = Turns([world.address])
        times = NetworkTimes(membership, renewal)
        running = asyncio.create_task(times.run())

        async def calls() -> AsyncIterator[als_pb2.StreamAccessLogsMessage]:
            # Until the prediction is known, what the first call asked for.
            while True:
                yield logged(15)
                async with asyncio.timeout(20):
                    found = await world.calls.get()
                if found.predicted_ms:
                    assert (found.model, found.node, found.answered, found.total_ms) == ("m", "n", 1, 15)
                    assert (found.within_p50, found.within_p95, found.within_p99, found.late) == (0, 1, 1, 0)
                    break
            yield logged(28)
            async with asyncio.timeout(20):
                found = await world.calls.get()
            assert (found.within_p95, found.within_p99, found.late) == (0, 1, 1)

        try:
            await times.access_log().StreamAccessLogs(calls(), None)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_nodes_of_different_regions_measure_each_other(tmp_path: Path) -> None:
    """Before any gateway or client is there, and by the address that the region's clients are given."""
    async with (
        control_plane(tmp_path / "control") as plane,
        node(plane, tmp_path / "here", "here", region=REGION, times=NODE_TIMES) as here,
        node(plane, tmp_path / "there", "there", region="us-east1", times=NODE_TIMES),
        plane.operator() as operator,
    ):

        async def measured() -> dict[tuple[str, str], route_pb2.Latency] | None:
            found = {(found.region, found.node): found for found in await operator.latencies()}
            across = [found.get((REGION, "there")), found.get(("us-east1", "here"))]
            return found if all(one and one.measured for one in across) else None

        found = await until(measured, within_s=40, what="the nodes have measured each other")
        # Loopback, and not the Atlantic.
        assert found[REGION, "there"].network_ms_p50 < 60
        assert not found[REGION, here.name].measured, "nobody measures within a region"
