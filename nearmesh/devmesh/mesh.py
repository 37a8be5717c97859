"""The local mesh: starts every process in order, keeps them running, writes mesh.json, and stops them all.

Used by `nearmesh dev up`, and by fault tests, which switch `restart` off and kill what they want.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nearmesh.client.admin import AdminClient
from nearmesh.client.bootstrap import grpc_bootstrap, write_bootstrap
from nearmesh.devmesh import training
from nearmesh.devmesh.children import Child, ChildFailed, output_of, script
from nearmesh.devmesh.folder import MESH_FILE as MESH_FILE
from nearmesh.devmesh.plan import MESH, REGIONS, Plan, gateway_of, local, node_of, round_trip_ms, site_of
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import AlreadyExists, ConfigError, MeshError, NotFound
from nearmesh.ids import Kind
from nearmesh.packaging.build import Artifact, build
from nearmesh.process import LOCK_FILE, only_one
from nearmesh.tls import write_private
from nearmesh.v1 import node_pb2

log = logging.getLogger(__name__)

# Names in this folder are of processes that shall stay down until `nearmesh dev start`.
DOWN_FOLDER = "down"

START_TIMEOUT_S = 60.0
# How soon something that only time or another process changes is looked at again.
LOOK_AGAIN_S = 0.1
# A process that was killed comes back after this, so that one can watch the mesh do without it.
RESTART_AFTER_S = 5.0

Say = Callable[[str], None]


class LocalMesh:
    """All processes of one local mesh."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan = plan
        self._say = say
        self._artifacts: list[Artifact] = []
        log_path = plan.folder / "logs"
        self.wan = Child(
            "wan",
            [script("python"), "-m", "nearmesh.devmesh.wan", "--config", str(plan.wan_config)],
            log_path / "wan.log",
        )
        self.control_plane = Child(
            "control-plane",
            [script("nearmesh-controlplane"), "--config", str(plan.control_plane_config)],
            log_path / "control-plane.log",
        )
        self.nodes = {region: self._node(region, log_path) for region in REGIONS}
        self.gateways = {region: self._gateway(region, log_path) for region in REGIONS}

    def _node(self, region: str, logs: Path) -> Child:
        command = [script("nearmesh-agent"), "--config", str(self.plan.node_config(region))]
        return Child(node_of(region), command, logs / f"{node_of(region)}.log")

    def _gateway(self, region: str, logs: Path) -> Child:
        name = gateway_of(region)
        command = [script("nearmesh"), "gateway", "run", "--config", str(self.plan.gateway_config(region))]
        return Child(name, [*command, "--token-file", str(self.plan.join_token(name))], logs / f"{name}.log")

    @property
    def children(self) -> list[Child]:
        """In the order in which they start."""
        return [self.wan, self.control_plane, *self.nodes.values(), *self.gateways.values()]

    # Up

    async def start(self) -> None:
        """Returns when every site serves every model and every way has been measured. Raises MeshError."""
        self._say("starting the control plane and the emulated WAN")
        self.plan.write()
        await self.wan.start()
        await self.control_plane.start()
        await self._tokens()
        async with self.admin() as admin:
            await self._watched(self._first_answer(admin), "the control plane to answer")
            self._say("fetching and checking the models; starting three nodes and three gateways")
            building = asyncio.gather(
                *(asyncio.to_thread(build, CHECKOUT / "models" / model) for model in self.plan.models)
            )
            preparing = asyncio.gather(building, self._sites_data())
            await self._start_machines(admin)
            self._artifacts, _ = await preparing
            for artifact in self._artifacts:
                await self._publish(admin, artifact)
                await admin.deploy(artifact.manifest.model, artifact.manifest.version)
            self._say("published " + ", ".join(f"{a.manifest.model}@{a.manifest.version}" for a in self._artifacts))
            await self._watched(self._all_serve(admin), "every node to serve every model")
            await self._watched(self._all_measured(admin), "the gateways to measure the way to every node")
        self.write_state()

    async def _sites_data(self) -> None:
        if self.plan.trains:
            await training.write_data([self.plan.training_data(region) for region in REGIONS])

    async def _publish(self, admin: AdminClient, artifact: Artifact) -> None:
        try:
            await admin.publish(artifact)
        except AlreadyExists as error:
            raise AlreadyExists(
                f"{error.message}. Where the mesh is left over from an earlier Nearmesh, remove {self.plan.folder}"
            ) from None

    async def _tokens(self) -> None:
        """The operator's and a client's token, from the key on this machine, and the CA beside them."""
        operator, client, ca = await asyncio.gather(
            self._control_plane_command("token", "--subject", "dev-operator", "--role", "operator"),
            self._control_plane_command("token", "--subject", "dev-client", "--role", "client"),
            self._control_plane_command("ca"),
        )
        write_private(self.plan.folder / "operator.jwt", operator.strip())
        write_private(self.plan.folder / "client.jwt", client.strip())
        write_private(self.ca_path, ca, mode=0o644)
        for region in REGIONS:
            content = grpc_bootstrap(
                local(self.plan.public),
                self.ca_path,
                self.token("client"),
                region,
                site_of(region),
                fallbacks=self.plan.fallbacks(region),
            )
            write_bootstrap(self.plan.bootstrap(region), content)

    async def _control_plane_command(self, *arguments: str) -> bytes:
        command = [script("nearmesh-controlplane"), "--config", str(self.plan.control_plane_config), *arguments]
        return await output_of(command, f"{' '.join(command)} failed")

    async def _start_machines(self, admin: AdminClient) -> None:
        for region in REGIONS:
            names: list[tuple[Kind, str]] = [("node", node_of(region)), ("gateway", gateway_of(region))]
            for kind, name in names:
                issued = await admin.join_token(name, site_of(region), region, kind=kind, lifetime_s=600)
                write_private(self.plan.join_token(name), issued.token.encode())
        for child in (*self.nodes.values(), *self.gateways.values()):
            await child.start()

    async def _first_answer(self, admin: AdminClient) -> None:
        while True:
            try:
                await admin.nodes()
                return
            except MeshError:
                await asyncio.sleep(LOOK_AGAIN_S)

    async def _all_serve(self, admin: AdminClient) -> None:
        while True:
            models = await admin.models()
            serving = {(model.name, replica.node) for model in models for replica in model.replicas if _ready(replica)}
            if all((model, node_of(region)) in serving for model in self.plan.models for region in REGIONS):
                return
            for model in models:
                for replica in model.replicas:
                    if replica.status.state == node_pb2.REPLICA_STATE_FAILED:
                        raise ChildFailed(f"{model.name} failed on {replica.node}: {replica.status.detail}")
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _all_measured(self, admin: AdminClient) -> None:
        while True:
            if all(latency.measured for latency in await admin.latencies()):
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _watched(self, wait: Any, what: str) -> None:
        """Waits, but not for a mesh of which a process has ended. Raises ChildFailed."""
        waiting = asyncio.ensure_future(wait)
        ends = {asyncio.ensure_future(child.ended()): child for child in self.children if child.wanted}
        try:
            done, _ = await asyncio.wait({waiting, *ends}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if waiting in done:
                await waiting
                return
            for end in done:
                child = ends[end]
                raise ChildFailed(
                    f"{child.name} ended with code {end.result()}; {child.log_path}:\n{child.last_words()}"
                )
            raise ChildFailed(f"waited {START_TIMEOUT_S:.0f} s for {what}; the logs are in {self.wan.log_path.parent}")
        finally:
            for task in (waiting, *ends):
                task.cancel()

    # While it is up

    @property
    def ca_path(self) -> Path:
        return self.plan.folder / "ca.pem"

    def token(self, role: str) -> str:
        """The bearer token of "operator" or "client"."""
        return (self.plan.folder / f"{role}.jwt").read_text().strip()

    def admin(self) -> AdminClient:
        """An operator's connection; use it with `async with`."""
        return AdminClient(local(self.plan.public), self.ca_path.read_bytes(), self.token("operator"))

    def find(self, name: str) -> Child:
        """The process of that name. Raises NotFound."""
        for child in self.children:
            if child.name == name:
                return child
        raise NotFound(f"no process {name!r}; there are {', '.join(child.name for child in self.children)}")

    def write_state(self) -> None:
        """mesh.json: the addresses and process ids that scripts may rely on."""
        plan = self.plan
        state = {
            "ca": str(self.ca_path),
            "token": str(plan.folder / "client.jwt"),
            "control_plane": {
                "grpc": local(plan.public),
                "http": f"https://{local(plan.http)}",
                "pid": self.control_plane.pid,
            },
            "gateways": {
                region: {"address": local(plan.gateways[region]), "pid": child.pid}
                for region, child in self.gateways.items()
            },
            "nodes": {
                node_of(region): {
                    "region": region,
                    "site": site_of(region),
                    "public": local(plan.nodes[region].public),
                    "metrics": local(plan.nodes[region].metrics),
                    "pid": child.pid,
                    "usd_per_hour": plan.usd_per_hour[region],
                    "vectors": plan.vectors,
                }
                for region, child in self.nodes.items()
            },
            "bootstrap": {region: str(plan.bootstrap(region)) for region in REGIONS},
            "wan": {
                "pid": self.wan.pid,
                "control": local(plan.wan_control),
                "rtt_ms": {a: {node_of(b): round_trip_ms(a, b) for b in REGIONS} for a in REGIONS},
            },
        }
        write_private(plan.folder / MESH_FILE, json.dumps(state, indent=2).encode(), mode=0o644)

    async def keep_running(self) -> None:
        """Starts again whatever ends by itself, except what shall stay down. For ever."""
        await asyncio.gather(*(self._keep(child) for child in self.children))

    async def _keep(self, child: Child) -> None:
        while True:
            code = await child.ended()
            self.write_state()
            self._say(f"{child.name} ended with code {code}; it comes back in {RESTART_AFTER_S:.0f} s")
            await asyncio.sleep(RESTART_AFTER_S)
            await self._may_run(child)
            await child.start()
            self.write_state()
            self._say(f"{child.name} is started again, pid {child.pid}")

    async def _may_run(self, child: Child) -> None:
        """Waits while `nearmesh dev stop` keeps the process down."""
        while True:
            if not (self.plan.folder / DOWN_FOLDER / child.name).exists():
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    async def stop(self) -> None:
        """Ends every process, those first that others depend on least. Safe to repeat."""
        for group in (self.gateways.values(), self.nodes.values(), (self.control_plane,), (self.wan,)):
            await asyncio.gather(*(child.stop() for child in group))
        (self.plan.folder / MESH_FILE).unlink(missing_ok=True)


@asynccontextmanager
async def local_mesh(folder: Path, say: Say = lambda line: None, *, vectors: bool = False) -> AsyncIterator[LocalMesh]:
    """A running local mesh with fresh state in `folder`; with `vectors` its nodes keep some.

    Raises AlreadyRunning, ChildFailed and other MeshErrors.
    """
    folder = Path(os.path.abspath(folder))  # noqa: ASYNC240, PTH100
    with only_one(folder, f"mesh {MESH!r}"):
        _empty(folder)
        mesh = LocalMesh(Plan.make(folder, vectors=vectors), say)
        try:
            await mesh.start()
            yield mesh
        finally:
            await mesh.stop()


def _empty(folder: Path) -> None:
    """Removes what an earlier mesh left, but for the lock that this one holds. Raises ConfigError, and removes nothing,
    when the folder holds anything else."""
    entries = [entry for entry in folder.iterdir() if entry.name != LOCK_FILE]
    if entries and not (folder / Plan.WAN_CONFIG).is_file():
        raise ConfigError(f"{folder} holds other things than a local mesh ({entries[0].name}); name an empty folder")
    for entry in entries:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _ready(replica: Any) -> bool:
    return bool(replica.live and replica.status.state == node_pb2.REPLICA_STATE_READY)
