"""A real control plane and real agents as processes on loopback, and callers that count what went wrong."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tomli_w
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nearmesh_controlplane.registry.authority import Authority
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.client.admin import AdminClient
from nearmesh.devmesh.children import Child
from nearmesh.devmesh.ports import free_ports
from nearmesh.errors import MeshError
from nearmesh.ids import Kind, node_server_name
from nearmesh.membership import join
from nearmesh.tls import Credentials
from nearmesh.v1 import catalog_pb2
from tests import hurried

MESH = "test-mesh"
REGION = "europe-west1"
# A process that is loaded by nothing else is up in two seconds; two cores may be shared by many.
START_WITHIN_S = 40.0

NO_TIMES: Mapping[str, float] = {}

# A killed server is back soon; gRPC would wait a second before it looked again, then longer.
RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    # What its name does not say: a handshake has so long, and on a busy machine it takes its time.
    ("grpc.min_reconnect_backoff_ms", 5_000),
]


async def until(check: Callable[[], Awaitable[Any]], *, within_s: float = 20.0, what: str = "") -> Any:
    """The first answer of `check` that is true; for what no event tells. Fails after `within_s`."""
    end = time.monotonic() + within_s
    while True:
        if found := await check():
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s} s: {what or check}")
        await asyncio.sleep(0.05)


class Daemon:
    """One of the mesh's processes: its log, and how it ends; `times` as in tests/hurried.py."""

    def __init__(self, name: str, program: str, config: Path, times: Mapping[str, float]) -> None:
        command = [*hurried.command(program, times), "--config", str(config)]
        self.child = Child(name, command, config.with_suffix(".log"))

    @property
    def log(self) -> str:
        return self.child.log_path.read_text("utf-8", "replace")

    async def kill(self) -> None:
        """kill -9."""
        await self.child.kill()

    async def exit_code(self, within_s: float = START_WITHIN_S) -> int:
        """Waits for the process to end by itself."""
        async with asyncio.timeout(within_s):
            return await self.child.ended()

    async def logged(self, text: str, within_s: float = 10.0) -> None:
        async def found() -> bool:
            return text in self.log

        await until(found, within_s=within_s, what=f"{text!r} in the log:\n{self.child.last_words(30)}")

    async def healthy(self, channel: grpc.aio.Channel, service: str = "") -> None:
        """Until the process says that it serves. Fails with its last words when it ends instead."""
        check = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=START_WITHIN_S, wait_for_ready=True
        )
        answered, ended = asyncio.ensure_future(_answer(check)), asyncio.ensure_future(self.child.ended())
        await asyncio.wait({answered, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not answered.done():
            answered.cancel()
            raise AssertionError(f"{self.child.name} ended:\n{self.child.last_words(30)}")
        await answered


async def _answer(call: Any) -> Any:
    return await call


class ControlPlane(Daemon):
    """A control plane in a folder, on ports that stay its own."""

    def __init__(self, folder: Path, *, times: Mapping[str, float] = NO_TIMES, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data, self.name = folder / "data", settings.get("id", "")
        self.public, self.mesh, self.http = (f"127.0.0.1:{port}" for port in free_ports(3))
        listen = {"public": self.public, "mesh": self.mesh, "http": self.http}
        self.config = folder / "mesh.toml"
        self.config.write_text(tomli_w.dumps({"mesh": MESH, "data": str(self.data), **settings, "listen": listen}))
        super().__init__("control plane", "nearmesh-controlplane", self.config, times)
        self.authority = Authority.open(MESH, self.data / "authority")
        self._channels: list[grpc.aio.Channel] = []

    def token(self, role: str = "client", *, lifetime_s: float = 600.0, now_s: float | None = None) -> str:
        return self.authority.issuer.access("tester", role, now_s=now_s or time.time(), lifetime_s=lifetime_s)

    def channel(self, role: str | None = None, *, token: str | None = None) -> grpc.aio.Channel:
        """To the public listener, with a token of that role or none at all."""
        credentials = grpc.ssl_channel_credentials(self.authority.ca_pem)
        token = self.token(role) if role else token
        if token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        return self._kept(grpc.aio.secure_channel(self.public, credentials, options=RECONNECT))

    def mesh_channel(self, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        """To the mesh listener."""
        return self._kept(grpc.aio.secure_channel(self.mesh, credentials, options=RECONNECT))

    def _kept(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        self._channels.append(channel)
        return channel

    async def start(self) -> None:
        await self.child.start()
        channel = self.channel()
        await self.healthy(channel)

    async def stop(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.child.stop()

    def operator(self) -> AdminClient:
        """To be entered with `async with`."""
        return AdminClient(self.public, self.authority.ca_pem, self.token("operator"))

    async def join_token(
        self, name: str, site: str = "", *, kind: Kind = "node", lifetime_s: float = 600.0, region: str = REGION
    ) -> str:
        async with self.operator() as operator:
            answer = await operator.join_token(name, site or f"site-{name}", region, kind=kind, lifetime_s=lifetime_s)
            return answer.token

    async def machine(self, folder: Path, name: str, *, kind: Kind = "node") -> Credentials:
        """The credentials of a machine that joined, which the test itself plays."""
        await join(await self.join_token(name, kind=kind), kind, folder)
        credentials = Credentials.read(folder)
        assert credentials
        return credentials


class Node(Daemon):
    """An agent in a folder, on ports that stay its own."""

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        name: str,
        *,
        site: str = "",
        region: str = REGION,
        times: Mapping[str, float] = NO_TIMES,
        **settings: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.plane, self.name, self.site, self.region = plane, name, site or f"site-{name}", region
        self.data = folder / "data"
        self.public, self.mesh, metrics = (f"127.0.0.1:{port}" for port in free_ports(3))
        config, self._token = folder / "node.toml", folder / "join.jwt"
        head = {
            "data": str(self.data),
            "join_token_file": str(self._token),
            "hardware": "test",
            "threads": 1,
            "usd_per_hour": 1.0,
            **settings,
            "listen": {"public": self.public, "mesh": self.mesh, "metrics": metrics},
        }
        config.write_text(tomli_w.dumps(head))
        super().__init__(name, "nearmesh-agent", config, times)
        self._channels: list[grpc.aio.Channel] = []

    async def start(self) -> None:
        """Returns when the process answers; `serves` and `live` wait for more."""
        if not self._token.exists():
            self._token.write_text(await self.plane.join_token(self.name, self.site, region=self.region))
        await self.child.start()
        await self.healthy(self.channel())

    async def stop(self) -> None:
        await self._hang_up()
        await self.child.stop()

    async def end(self) -> None:
        """For the end of a test: nobody needs it any more, and an orderly way out waits for routes and late calls."""
        await self._hang_up()
        await self.kill()

    async def _hang_up(self) -> None:
        for channel in self._channels:
            await channel.close()

    def channel(self, token: str | None = None, *, credentials: Credentials | None = None) -> grpc.aio.Channel:
        """To the public listener, or with a certificate to the mesh listener."""
        options = [*RECONNECT, ("grpc.ssl_target_name_override", node_server_name(MESH, self.name))]
        if credentials:
            channel = grpc.aio.secure_channel(self.mesh, credentials.channel_credentials(), options=options)
        else:
            tls = grpc.ssl_channel_credentials(self.plane.authority.ca_pem)
            if token:
                tls = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token))
            channel = grpc.aio.secure_channel(self.public, tls, options=options)
        self._channels.append(channel)
        return channel

    def stub(self) -> Any:
        """The inference service as a client calls it."""
        return service_pb2_grpc.GRPCInferenceServiceStub(self.channel(self.plane.token()))

    async def serves(self, model: str, version: str, within_s: float = 30.0) -> None:
        """Until the node answers with that version."""
        stub = self.stub()

        async def ready() -> bool:
            try:
                answer = await stub.ModelInfer(question(model), timeout=5)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.model_version == version)

        await until(
            ready, within_s=within_s, what=f"{self.name} serves {model}@{version}:\n{self.child.last_words(30)}"
        )

    async def certified(self) -> None:
        """Until its certificate holds for its address, too: it asks for that a second after it has joined."""
        await self.logged("certificate renewed", within_s=20.0)

    async def live(self, within_s: float = 20.0) -> None:
        """Until the control plane has the node's session."""
        async with self.plane.operator() as operator:

            async def seen() -> bool:
                return any(node.id == self.name and node.live for node in await operator.nodes())

            await until(seen, within_s=within_s, what=f"{self.name} is live")

    async def says(self, model: str, check: Callable[[catalog_pb2.Replica], bool], within_s: float = 20.0) -> Any:
        """The node's replica in `GetModel`, once `check` holds for one."""
        async with self.plane.operator() as operator:

            async def found() -> catalog_pb2.Replica | None:
                replicas = (await operator.model(model)).replicas
                return next((r for r in replicas if r.node == self.name and check(r)), None)

            return await until(found, within_s=within_s, what=f"{self.name} says so of {model}")


def question(model: str, version: str = "", x: tuple[float, ...] = (1.0, 2.0)) -> Any:
    """A request to a model of `adding_model`."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name="x", datatype="FP32", shape=[len(x)])
    request.raw_input_contents.append(np.array(x, np.float32).tobytes())
    return request


def added(answer: Any) -> float:
    """What the model added to `question`."""
    return float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0]) - 1.0


class Caller:
    """Asks one node over and over; keeps each version that answered and each error."""

    def __init__(self, stub: Any, model: str) -> None:
        self._stub = stub
        self._model = model
        self.answers: list[tuple[str, float]] = []
        self.errors: list[str] = []

    async def run(self) -> None:
        while True:
            try:
                answer = await self._stub.ModelInfer(question(self._model), timeout=5)
                self.answers.append((answer.model_version, added(answer)))
            except grpc.aio.AioRpcError as error:
                self.errors.append(f"{error.code().name}: {error.details()}")
            await asyncio.sleep(0.005)

    async def hears(self, version: str, within_s: float = 30.0) -> None:
        """Until the latest answer came from `version`."""

        async def heard() -> bool:
            return bool(self.answers) and self.answers[-1][0] == version

        await until(heard, within_s=within_s, what=f"{version} answers; errors {self.errors[-3:]}")

    async def goes_on(self, calls: int = 20) -> None:
        """Until that many more calls were answered."""
        wanted = len(self.answers) + calls

        async def enough() -> bool:
            return len(self.answers) >= wanted

        await until(enough, what=f"{calls} more answers; errors {self.errors[-3:]}")


@asynccontextmanager
async def calling(node: Node, model: str) -> AsyncIterator[Caller]:
    """A client that calls while the body runs."""
    caller = Caller(node.stub(), model)
    task = asyncio.create_task(caller.run())
    try:
        yield caller
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def control_plane(folder: Path, **settings: Any) -> AsyncIterator[ControlPlane]:
    """A running control plane with `settings` in its mesh.toml."""
    plane = ControlPlane(folder, **settings)
    try:
        await plane.start()
        yield plane
    finally:
        await plane.stop()


class Pair:
    """Two control planes over one database, with the same keys."""

    def __init__(self, folder: Path, database: str, **settings: Any) -> None:
        self.planes = {name: ControlPlane(folder / name, database=database, id=name, **settings) for name in "ab"}
        one, other = self.planes.values()
        shutil.copytree(one.data / "authority", other.data / "authority", dirs_exist_ok=True)
        other.authority = one.authority

    async def leader(self, *but: str, within_s: float = 20.0) -> ControlPlane:
        """The one that leads and decides, once there is one that is none of these."""

        async def found() -> ControlPlane | None:
            for name, plane in self.planes.items():
                if name not in but and plane.child.pid and await _leads(plane, name):
                    return plane
            return None

        leader: ControlPlane = await until(found, within_s=within_s, what="a control plane leads")
        return leader

    def other(self, plane: ControlPlane) -> ControlPlane:
        return next(other for other in self.planes.values() if other is not plane)


async def _leads(plane: ControlPlane, name: str) -> bool:
    try:
        async with plane.operator() as operator:
            return any(one.leader and one.id == name for one in await operator.control_planes())
    except MeshError:
        return False


@asynccontextmanager
async def pair(folder: Path, database: str, **settings: Any) -> AsyncIterator[Pair]:
    """Two running control planes."""
    both = Pair(folder, database, **settings)
    try:
        await asyncio.gather(*(plane.start() for plane in both.planes.values()))
        yield both
    finally:
        await asyncio.gather(*(plane.stop() for plane in both.planes.values()))


@asynccontextmanager
async def node(plane: ControlPlane, folder: Path, name: str, *, site: str = "", **settings: Any) -> AsyncIterator[Node]:
    """A running agent that has joined, with `settings` in its node.toml."""
    agent = Node(plane, folder, name, site=site, **settings)
    try:
        await agent.start()
        await agent.live()
        yield agent
    finally:
        await agent.end()
