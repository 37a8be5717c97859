"""A mesh made of fakes behind real sockets: TLS, an in-process RouteService, nodes that add one, and the WAN between.

What the SDK meets is gRPC as it is; only the decisions and the models behind it are made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh import tensors
from nearmesh.client import Mesh
from nearmesh.client.settings import ConnectSettings
from nearmesh.devmesh.wan import Link, LinkSettings
from nearmesh.errors import InvalidInput, MeshError, NotFound, SequenceLost, Unsupported
from nearmesh.rpc import error_metadata
from nearmesh.v1 import route_pb2, route_pb2_grpc

TOKEN = "a-token"
MODEL = "adder"
CONTROL = "control.test"
# As large messages as a node takes; two servers on one port would share its connections by chance; clients may ping.
OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
]


class Authority:
    """A certificate authority for one test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])
        self._certificate = self._sign(self._name, self._key.public_key(), None)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def server_credentials(self, name: str) -> grpc.ServerCredentials:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key(), name).public_bytes(serialization.Encoding.PEM)
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return grpc.ssl_server_credentials([(key_pem, certificate)])

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, dns: str | None) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=dns is None, path_length=None), critical=True)
        if dns:
            builder = builder.add_extension(x509.SubjectAlternativeName(_names(dns)), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _names(dns: str) -> list[x509.GeneralName]:
    """Clients know the control plane by its address, nodes by their names alone."""
    address = [x509.IPAddress(IPv4Address("127.0.0.1"))] if dns == CONTROL else []
    return [x509.DNSName(dns), *address]


async def abort(context: Any, error: MeshError) -> None:
    await context.abort(error.status, error.message, error_metadata(error))


class FakeNode(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves one model that adds 1 to `x`; a sequence answers the sum so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.served = 0
        # Raised instead of an answer while set.
        self.error: MeshError | None = None
        self.wait_s = 0.0
        # Set once a call waits.
        self.waiting = asyncio.Event()
        # Calls that their caller gave up.
        self.cancelled = 0

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {TOKEN}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        if self.error:
            await abort(context, self.error)
        if self.wait_s:
            self.waiting.set()
        try:
            await asyncio.sleep(self.wait_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        try:
            arrays = tensors.decode_request(request)
            if "x" not in arrays:
                raise InvalidInput(f"input 'x' is expected, {list(arrays)} given")
        except MeshError as error:
            await abort(context, error)
        self.served += 1
        return self._respond(request, arrays["x"] + 1)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        total: Any = None
        async for request in requests:
            await asyncio.sleep(self.wait_s)
            if self.error:
                await abort(context, self.error)
            if request.parameters["sequence_start"].bool_param:
                total = 0
            if total is None:
                await abort(context, SequenceLost("it never began here"))
            arrays = tensors.decode_request(request)
            if "x" not in arrays:
                failed = service_pb2.ModelInferResponse()
                failed.parameters["nearmesh_reason"].string_param = "INVALID_INPUT"
                yield service_pb2.ModelStreamInferResponse(error_message="no x", infer_response=failed)
                continue
            total = total + arrays["x"]
            yield service_pb2.ModelStreamInferResponse(infer_response=self._respond(request, total))

    def _respond(self, request: Any, value: Any) -> Any:
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        tensors.add_outputs(response, {"y": np.asarray(value)})
        response.parameters["nearmesh_node"].string_param = self.name
        response.parameters["nearmesh_service_ms"].double_param = 0.5
        return response


class FakeControlPlane(route_pb2_grpc.RouteServiceServicer):
    """Says what the test wants it to say about the one model."""

    def __init__(self) -> None:
        self.candidates: dict[str, route_pb2.Candidate] = {}
        self.reported: dict[str, list[float]] = {}
        self.calls: list[route_pb2.CallReport] = []
        self.reports = asyncio.Event()
        self._changed = asyncio.Event()

    def say(self, *candidates: route_pb2.Candidate) -> None:
        """These are the candidates from now on."""
        self.candidates = {candidate.node: candidate for candidate in candidates}
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[route_pb2.Route]:
        if request.model != MODEL:
            await abort(context, NotFound(f"no model is called {request.model!r}"))
        while True:
            changed = self._changed
            yield route_pb2.Route(
                model=MODEL,
                objective=request.objective or "nearest",
                deadline_ms=300,
                candidates=list(self.candidates.values()),
            )
            await changed.wait()

    async def WatchSnapshot(self, request: Any, context: Any) -> AsyncIterator[route_pb2.SignedSnapshot]:
        await abort(context, Unsupported("no snapshots in this test"))
        yield route_pb2.SignedSnapshot()

    async def ReportLatency(self, request: Any, context: Any) -> Any:
        for sample in request.samples:
            self.reported.setdefault(sample.node, []).extend(sample.network_ms)
        self.calls.extend(request.calls)
        self.reports.set()
        return route_pb2.ReportLatencyResponse()


@dataclass(slots=True)
class Server:
    """A gRPC server that can be stopped as a killed process stops, and started again on its port."""

    name: str
    credentials: grpc.ServerCredentials
    servicer: Any
    port: int = 0
    _server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=OPTIONS)
        if isinstance(self.servicer, FakeNode):
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.servicer, self._server)
        else:
            route_pb2_grpc.add_RouteServiceServicer_to_server(self.servicer, self._server)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", self.credentials)
        await self._server.start()

    async def kill(self) -> None:
        server, self._server = self._server, None
        if server:
            await server.stop(None)


@dataclass(slots=True)
class FakeMesh:
    """Two nodes, `near` and `far`, each behind a link of its own name."""

    authority: Authority
    control: FakeControlPlane
    control_server: Server
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)

    def candidate(self, node: str, **more: Any) -> route_pb2.Candidate:
        """As the control plane would describe it."""
        round_trip_ms = self.links[node].settings.round_trip_ms
        plain: dict[str, Any] = {
            "node": node,
            "site": f"{node}-site",
            "region": f"{node}-region",
            "address": f"127.0.0.1:{self.links[node].port}",
            "server_name": f"{node}.test",
            "ready": True,
            "network_ms_p50": round_trip_ms,
            "network_ms_p95": round_trip_ms,
            "service_ms_p50": 1,
            "service_ms_p95": 2,
            "usd_per_hour": 1,
            "usd_per_1000": 1,
        }
        return route_pb2.Candidate(**(plain | more))

    def settings(self) -> ConnectSettings:
        return ConnectSettings(
            control_plane=f"127.0.0.1:{self.control_server.port}",
            ca_pem=self.authority.pem,
            region="here",
            token=TOKEN,
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Mesh]:
        async with Mesh(self.settings()) as mesh:
            yield mesh


@asynccontextmanager
async def fake_mesh(**round_trips_ms: float) -> AsyncIterator[FakeMesh]:
    """Everything listening; by default `near` is 10 ms away and `far` 40 ms."""
    authority, control = Authority(), FakeControlPlane()
    async with AsyncExitStack() as stack:
        control_server = Server("control", authority.server_credentials(CONTROL), control)
        await control_server.start()
        stack.push_async_callback(control_server.kill)
        mesh = FakeMesh(authority, control, control_server)
        for name, round_trip_ms in (round_trips_ms or {"near": 10.0, "far": 40.0}).items():
            node = mesh.nodes[name] = FakeNode(name)
            server = mesh.servers[name] = Server(name, authority.server_credentials(f"{name}.test"), node)
            await server.start()
            stack.push_async_callback(server.kill)
            target = f"127.0.0.1:{server.port}"
            link = mesh.links[name] = Link(
                LinkSettings(name=name, client_region="here", node=name, target=target, round_trip_ms=round_trip_ms)
            )
            await link.start()
            stack.push_async_callback(link.close)
        control.say(*(mesh.candidate(name) for name in mesh.nodes))
        yield mesh
