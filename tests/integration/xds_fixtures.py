"""A small mesh for xDS tests: real certificates, real discovery service, node stand-ins as processes, real Envoy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.load_stats.v3 import lrs_pb2_grpc
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.routing import load_reports
from nearmesh_controlplane.routing.load_reports import LoadReports

from nearmesh.addresses import free_port
from nearmesh.client.bootstrap import grpc_bootstrap, write_bootstrap
from nearmesh.gateway.access_log import AccessLog, listening, socket_path
from nearmesh.gateway.bootstrap import CONFIGURES_FILE, GatewayIdentity, write_configures, write_secrets
from nearmesh.gateway.bootstrap import write_bootstrap as write_envoy
from nearmesh.gateway.calls import CallTally, Prediction
from nearmesh.gateway.config import GatewayConfig
from nearmesh.gateway.envoy import Envoy, envoy_binary, envoy_command
from nearmesh.gateway.metadata import GatewayMetadata
from nearmesh.ids import Kind, MachineId
from nearmesh.routing.table import Endpoint, Listener, ModelRoutes, RouteTable
from nearmesh.rpc import EVERYONE, MACHINES, Gatekeeper
from nearmesh.tls import Credentials, certificate_request, key_to_pem, new_key
from nearmesh.transport.server import Server
from nearmesh.v1 import route_pb2
from nearmesh.xds.ads import AggregatedDiscovery

MESH = "test-mesh"
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
HERE = Path(__file__).parent
REGION = "europe-west1"
OBJECTIVES = ("cheapest-in-time", "nearest", "cheapest")
# Servers of a test are never asked for twice; a slow machine may need this long to start one.
START_WITHIN_S = 30
# What gateways of tests hold their calls against.
PREDICTED_DEADLINE_MS = 400.0


class FakeSource:
    """A RouteSource whose tables a test sets."""

    def __init__(self) -> None:
        self.generation = 1
        self._tables: dict[Listener, RouteTable] = {}
        self._changed = asyncio.Event()

    def set(self, listener: Listener, table: RouteTable) -> None:
        self._tables[listener] = table
        self.generation += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def table(self, region: str, listener: Listener) -> RouteTable:
        return self._tables.get(listener) or RouteTable(region=region, models={}, nearest=())

    async def changed(self, after: int) -> int:
        while self.generation <= after:
            await self._changed.wait()
        return self.generation


def machine(authority: Authority, kind: Kind, name: str, folder: Path) -> Path:
    """A folder with credentials signed for that machine."""
    who, key = MachineId(authority.mesh, kind, name), new_key()
    signed = authority.sign(certificate_request(key, who), who, timedelta(hours=1))
    Credentials(key_to_pem(key), signed, authority.ca_pem).write(folder)
    return folder


@dataclass
class NodeProcess:
    """One running stand-in."""

    name: str
    process: asyncio.subprocess.Process
    port: int

    @property
    def endpoint(self) -> Endpoint:
        region = f"region-{self.name}"
        return Endpoint(node=self.name, site=f"site-{self.name}", region=region, address=f"127.0.0.1:{self.port}")

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def node_process(name: str, folder: Path, listener: Listener) -> AsyncIterator[NodeProcess]:
    """A stand-in on a port of its own."""
    arguments = [str(HERE / "xds_node.py"), name, str(folder), *(["--mesh"] if listener == "mesh" else [])]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_WITHIN_S)
        yield NodeProcess(name, process, int(line))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Reports:
    """Takes the place of the control plane's measurements."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[tuple[str, str, route_pb2.ReportLatencyRequest]] = asyncio.Queue()

    def report(self, request: route_pb2.ReportLatencyRequest, *, kind: str, reporter: str, over_s: float) -> None:
        assert 0 < over_s < 60
        self.taken.put_nowait((kind, reporter, request))


@dataclass
class SmallMesh:
    """What a test has in hand."""

    authority: Authority
    source: FakeSource
    service: AggregatedDiscovery
    folder: Path
    public: str
    mesh: str
    reports: Reports
    listener: Listener
    # Starts the stand-in of that name.
    start: Callable[[str], Awaitable[NodeProcess]]
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    token: str = ""

    async def whole(self) -> None:
        """As at first, whatever was done to it: every node is there, in the order of their names, nobody is removed."""
        for name, node in self.nodes.items():
            if node.process.returncode is None:
                node.process.send_signal(signal.SIGCONT)
            else:
                self.nodes[name] = await self.start(name)
        self.removed.clear()
        self.reports.taken = asyncio.Queue()
        self.order(self.listener, tuple(self.nodes))

    def node_at(self, address: str) -> str | None:
        return next((node.name for node in self.nodes.values() if node.endpoint.address == address), None)

    def order(
        self, listener: Listener, names: Sequence[str], models: Sequence[str] = ("digits", "other"), **by: str
    ) -> None:
        """Puts the nodes in that order for every model; `by` puts one node first for an objective."""
        self.source.set(listener, self.table(names, models, **by))

    def table(self, names: Sequence[str], models: Sequence[str], **by: str) -> RouteTable:
        orders = {}
        for objective in OBJECTIVES:
            first = by.get(objective.replace("-", "_"))
            chosen = [*([first] if first else []), *(name for name in names if name != first)]
            orders[objective] = tuple(self.nodes[name].endpoint for name in chosen)
        routes = ModelRoutes(default_objective="cheapest-in-time", by_objective=orders)
        nearest = tuple(self.nodes[name].endpoint for name in reversed(names))
        return RouteTable(region=REGION, models=dict.fromkeys(models, routes), nearest=nearest)


@asynccontextmanager
async def small_mesh(
    folder: Path, listener: Listener, names: Sequence[str] = ("a", "b", "c")
) -> AsyncIterator[SmallMesh]:
    """Discovery on both listeners, and node stand-ins for one of them, in the order of their names."""
    async with AsyncExitStack() as stack:
        authority = Authority.open(MESH, folder / "authority")
        source = FakeSource()
        removed: set[str] = set()
        keepers = [
            Gatekeeper(
                mesh=MESH,
                verifier=authority.verifier(),
                policy={ADS: roles, load_reports.METHOD: EVERYONE},
                removed=lambda: removed,
            )
            for roles in (EVERYONE, MACHINES)
        ]
        service = AggregatedDiscovery(
            source=source,
            mesh=MESH,
            verifier=authority.verifier(),
            jwks_json=lambda: authority.jwks_json,
            region_of=lambda _gateway: REGION,
            check=lambda who: keepers[1].check(who, ADS) if who.role in MACHINES else None,
        )
        reports = Reports()
        own = authority.server_credentials(["localhost"])
        addresses = []
        for keeper, demands in zip(keepers, (False, True), strict=True):
            server = Server(keeper, 1_000_000)
            ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(service, server)
            lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(LoadReports(reports, authority.verifier()), server)
            address = server.listen("127.0.0.1:0", lambda: own, mesh=demands)
            addresses.append(address.replace("127.0.0.1", "localhost"))
            await server.start()
            stack.push_async_callback(server.stop, 0)
        folders = {name: machine(authority, "node", name, folder / name) for name in names}

        async def start(name: str) -> NodeProcess:
            return await stack.enter_async_context(node_process(name, folders[name], listener))

        small = SmallMesh(authority, source, service, folder, *addresses, reports, listener, start, removed=removed)
        small.token = access_token(authority)
        for node in await asyncio.gather(*(start(name) for name in names)):
            small.nodes[node.name] = node
        small.order(listener, names)
        yield small


def access_token(authority: Authority, role: str = "client", **more: Any) -> str:
    """A bearer token for an app."""
    return authority.issuer.access("app", role, **({"now_s": time.time(), "lifetime_s": 600} | more))


@dataclass
class Gateway:
    """A running Envoy."""

    address: str
    envoy: Envoy
    name: str
    calls: CallTally

    @property
    def server_name(self) -> str:
        return MachineId(MESH, "gateway", self.name).dns


@asynccontextmanager
async def gateway(
    small: SmallMesh,
    name: str = "gw",
    *,
    plaintext: bool = True,
    admin_port: int = 0,
    configured_by: str = "",
) -> AsyncIterator[Gateway]:
    """Envoy, configured by the mesh's discovery service alone, ready to serve; by `configured_by`, if that is given."""
    data = small.folder / name
    credentials = machine(small.authority, "gateway", name, data / "credentials")
    certificate, ca = write_secrets(data, credentials)
    configures = data / CONFIGURES_FILE
    if not configures.exists():
        write_configures(data, credentials, MESH, ["localhost"], [])
    port = free_port("127.0.0.1")
    metadata = GatewayMetadata(
        host="127.0.0.1",
        port=port,
        plaintext=plaintext,
        certificate_sds=str(certificate),
        ca_sds=str(ca),
        calls=True,
    )
    config = GatewayConfig(
        data=data,
        plaintext=plaintext,
        envoy_threads=1,
        envoy_log_level=os.environ.get("ENVOY_LOG", "error"),  # type: ignore[arg-type]
    )
    calls, prediction = CallTally(), Prediction(PREDICTED_DEADLINE_MS, {})
    with socket_path(data) as socket:
        identity = GatewayIdentity(
            id=name,
            mesh=MESH,
            region=REGION,
            site="",
            control_plane=[configured_by or small.mesh],
            control_plane_names=["localhost"],
            configures_sds=str(configures),
            calls=socket,
        )
        command = envoy_command(envoy_binary(), write_envoy(data, identity, metadata, admin_port), config)
        envoy, ready = Envoy(command, ("127.0.0.1", port)), asyncio.Event()
        async with listening(AccessLog(calls, small.node_at, lambda model, objective: prediction), socket):
            running = asyncio.create_task(envoy.run(ready.set))
            try:
                await asyncio.wait_for(ready.wait(), START_WITHIN_S)
                yield Gateway(f"127.0.0.1:{port}", envoy, name, calls)
            finally:
                envoy.stop()
                await running


class XdsClient:
    """A plain gRPC client in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def call(self, model: str = "digits", **more: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"model": model, **more}).encode() + b"\n")
        return await self.more()

    async def more(self) -> dict[str, Any]:
        """The next line of the client, for a call that prints more than one."""
        assert self._process.stdout
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def xds_client(small: SmallMesh, *, token: str | None = None) -> AsyncIterator[XdsClient]:
    """A client that holds only a bootstrap file."""
    path, ca = small.folder / "bootstrap.json", small.folder / "ca.pem"
    ca.write_bytes(small.authority.ca_pem)
    write_bootstrap(path, grpc_bootstrap(small.public, ca, small.token if token is None else token, REGION))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "xds_client.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(path)},
    )
    try:
        yield XdsClient(process)
    finally:
        process.kill()
        await process.wait()
