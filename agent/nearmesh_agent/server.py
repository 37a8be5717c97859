"""The agent's one process: builds every part, wires them, serves until told to stop, and leaves in order."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import start_http_server
from tritonclient.grpc import service_pb2, service_pb2_grpc

import nearmesh
from nearmesh import addresses
from nearmesh.errors import ConfigError, MeshError
from nearmesh.membership import Membership, Renewal, member
from nearmesh.process import only_one
from nearmesh.rpc import EVERYONE, MACHINES, NODE_KEY, OPERATORS, PEOPLE, Gatekeeper
from nearmesh.tokens import TokenVerifier
from nearmesh.transport.health import SERVICE as HEALTH
from nearmesh.transport.health import Health
from nearmesh.transport.server import Server
from nearmesh.v1 import blob_pb2_grpc
from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.address import advertised_host
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.engines import early
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.engines.pipeline.retrieve_step import Retriever
from nearmesh_agent.island import ADS, Island
from nearmesh_agent.leaving import Leaving
from nearmesh_agent.notice.source import first_notice, sources
from nearmesh_agent.serving import wire
from nearmesh_agent.serving.metrics import ServingMetrics
from nearmesh_agent.serving.node import ServingNode
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.responses import Place
from nearmesh_agent.serving.servicer import InferenceServicer
from nearmesh_agent.serving.variants import BestVariants
from nearmesh_agent.session.peers import PeerTimes
from nearmesh_agent.session.reconciler import Reconciler
from nearmesh_agent.session.session import Session
from nearmesh_agent.store.blobs import BlobServicer
from nearmesh_agent.store.metrics import StoreMetrics
from nearmesh_agent.store.peers import MeshPeers
from nearmesh_agent.store.registry import HttpRegistry
from nearmesh_agent.store.store import ModelStore
from nearmesh_agent.training.part import Training
from nearmesh_agent.training.throttle import Throttle
from nearmesh_agent.vectors import front as vector_front
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.metrics import VectorFigures
from nearmesh_agent.vectors.namespaces import ANY
from nearmesh_agent.vectors.part import Vectors
from nearmesh_agent.vectors.text.embedders import NodeEmbedders
from nearmesh_agent.vectors.text.step import NodeRetriever

log = logging.getLogger(__name__)

ROUTES = "nearmesh.v1.RouteService"
ROUTE_METHODS = ("Resolve", "Watch", "Explain", "WatchSnapshot")
POLICY = {
    # Load balancers and orchestrators probe without credentials; it says ready or not, and nothing else.
    "/grpc.health.v1.Health/": EVERYONE,
    "/inference.GRPCInferenceService/": PEOPLE | MACHINES,
    # One caller's unload is felt by all others.
    "/inference.GRPCInferenceService/RepositoryModelLoad": OPERATORS,
    "/inference.GRPCInferenceService/RepositoryModelUnload": OPERATORS,
    "/grpc.reflection.v1alpha.ServerReflection/": PEOPLE | MACHINES,
    # Models are the mesh's; they go from node to node, and to nobody else.
    "/nearmesh.v1.BlobService/": {"node"},
    # In the control plane's place; nothing can be changed here.
    **dict.fromkeys((f"/{ROUTES}/{method}" for method in ROUTE_METHODS), PEOPLE | MACHINES),
    # gRPC's own xDS client cannot send a token as metadata; the servicer looks for it in the first message.
    ADS: EVERYONE,
    **vector_front.POLICY,
}

# From this share on the node is taken by inference, and hands no models to others.
BUSY_SHARE = 0.85

_INFERENCE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_REFLECTED = (
    _INFERENCE,
    HEALTH,
    reflection.SERVICE_NAME,
)


class Agent:
    """One node of the mesh: everything between its listeners and its disk."""

    def __init__(self, config: NodeConfig, membership: Membership, renewal: Renewal) -> None:
        self._config = config
        self._membership = membership
        self._renewal = renewal
        self._verifier = TokenVerifier(membership.jwks_json, membership.mesh)
        self._island = Island(membership, renewal, self._verifier, config.data)
        place = Place(node=membership.id, site=membership.site, region=membership.region)
        self._addresses: dict[str, str] = {}
        self._session = Session(
            renewal.control_planes,
            lambda: renewal.current,
            hello=self._hello,
            status=self._status,
            on_wanted=self._on_wanted,
        )
        self._retriever = NodeRetriever(enabled=config.vectors.enabled)
        self._node = ServingNode(config, place, engines_of(config, self._retriever), on_change=self._session.report_now)
        self._servicer = self._node.servicer
        metrics = StoreMetrics(self._node.metrics.registry)
        self._store = ModelStore(
            config.data / "models",
            config.store,
            me=membership.id,
            needed=self._needed,
            brought=metrics.brought,
        )
        self._blobs = BlobServicer(
            self._store.shelf, lambda: self._servicer.utilization >= BUSY_SHARE, given=metrics.given
        )
        self._leaving = Leaving(self._servicer, grace_s=config.grace_s, report_now=self._session.report_now)
        self._notices = sources(config.notice)
        self._reconciler = Reconciler(
            self._node.table,
            self._pull,
            self._node.load,
            keep=config.data / "wanted.pb",
            on_progress=self._session.report_now,
            tidy=self._tidy,
            drain_s=config.drain_s,
            pulled=self._store.progress,
        )
        self._peers = PeerTimes(lambda: self._reconciler.wanted.peers, lambda: renewal.current)
        budget = Throttle(
            self._node.table,
            lambda: self._servicer.utilization,
            cpu_share=config.training.cpu_share,
            occupancy=self._node.occupancy,
        )
        self._training = Training(
            config.training,
            config.data / "training",
            lambda: renewal.current,
            budget,
            on_change=self._session.report_now,
        )
        self._embedders = NodeEmbedders(self._node.table, self._bring_pinned, config.data / "vectors" / "pinned.json")
        self._vectors = Vectors(
            config.vectors,
            config.data / "vectors",
            Here(node=membership.id, site=membership.site, region=membership.region),
            max_message_bytes=config.max_message_bytes,
            embedder=self._embedders,
            nodes=lambda: self._reconciler.wanted.vector_nodes,
            credentials=lambda: renewal.current,
            on_change=self._session.report_now,
        )
        self._node.metrics.registry.register(VectorFigures(self._vectors))
        self._holders = MeshPeers(lambda: self._reconciler.wanted.versions, lambda: renewal.current, membership.id)

    async def serve(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises ConfigError when a listener cannot be opened."""
        server = self._build_server()
        await server.start()
        try:
            with _metrics_server(self._config.listen.metrics, self._node.metrics) as metrics_address:
                self._addresses["metrics"] = metrics_address
                async with asyncio.TaskGroup() as tasks:
                    background = [
                        tasks.create_task(self._session.run()),
                        tasks.create_task(self._renewal.run()),
                        tasks.create_task(self._node.run()),
                        tasks.create_task(self._heed_notices(stop)),
                        tasks.create_task(self._peers.run()),
                        tasks.create_task(self._island.run()),
                        tasks.create_task(self._training.run()),
                        tasks.create_task(self._vectors.run()),
                    ]
                    self._node.residency.idle_rules = idle_rules(self._reconciler.wanted)
                    self._retriever.open(partial(self._vectors.front.retrieve, reach=ANY))
                    self._reconciler.resume()
                    log.info(
                        "serving node=%s public=%s mesh=%s metrics=%s",
                        self._membership.id,
                        self._addresses["public"],
                        self._addresses["mesh"],
                        metrics_address,
                    )
                    await stop.wait()
                    self._training.leave()
                    self._reconciler.ending()
                    await self._leaving.run(self._node.health.leave, partial(self._stop, server))
                    for task in background:
                        task.cancel()
        finally:
            await self._close(server)

    async def _heed_notices(self, stop: asyncio.Event) -> None:
        """Sends the node away when somebody says that the machine goes."""
        self._leaving.noticed(await first_notice(self._notices))
        stop.set()

    async def _stop(self, server: Server, grace_s: float) -> None:
        self._node.health.end()
        self._island.leave()
        await server.stop(grace_s)

    async def _close(self, server: Server) -> None:
        """Everything but the process; where a notice has set a time, within it."""
        try:
            async with asyncio.timeout_at(self._leaving.until):
                await server.stop(0)
                await self._vectors.front.close()
                await self._reconciler.close()
                await self._embedders.close()
                self._store.close()
                await self._node.close()
        except TimeoutError:
            log.warning("some of what was loaded is not closed in time; it ends with the process")

    def _build_server(self) -> Server:
        gatekeeper = Gatekeeper(
            mesh=self._membership.mesh, verifier=self._verifier, policy=POLICY, removed=self._removed
        )
        server = Server(gatekeeper, self._config.max_message_bytes, metadata=((NODE_KEY, self._membership.id),))
        add_servicers(server, self._servicer, self._node.health)
        blob_pb2_grpc.add_BlobServiceServicer_to_server(self._blobs, server)
        self._vectors.add_to(server)
        self._island.add_to(server, gatekeeper)
        for name, address, mesh in (
            ("public", self._config.listen.public, False),
            ("mesh", self._config.listen.mesh, True),
        ):
            bound = server.listen(address, lambda: self._renewal.current, mesh=mesh)
            self._addresses[name] = f"{self._config.advertise_host}:{bound.rpartition(':')[2]}"
        return server

    def _removed(self) -> Collection[str]:
        return {*self._reconciler.wanted.removed_nodes, *self._island.removed()}

    def _hello(self) -> pb.NodeHello:
        return pb.NodeHello(
            agent_version=nearmesh.__version__,
            public_address=self._addresses["public"],
            mesh_address=self._addresses["mesh"],
            metrics_address=self._addresses["metrics"],
            hardware=self._config.hardware_name(),
            providers=self._config.providers,
            usd_per_hour=self._config.usd_per_hour or -1.0,
            spot=self._config.spot,
            machine_type=self._config.machine_type,
            keeps_vectors=self._vectors.enabled,
        )

    def _status(self) -> pb.NodeStatus:
        status = self._leaving.status()
        status.replicas.extend(self._reconciler.statuses())
        status.peers.extend(self._peers.take())
        status.utilization = self._servicer.utilization
        status.held.extend(self._store.proven)
        status.disk_free_bytes = self._store.free_bytes
        if training := self._training.status():
            status.training.CopyFrom(training)
        if vectors := self._vectors.status():
            status.vectors.CopyFrom(vectors)
        return status

    def _on_wanted(self, state: pb.WantedState) -> None:
        self._verifier.update(state.jwks_json)
        self._renewal.learn(state.control_planes)
        self._node.residency.idle_rules = idle_rules(state)
        self._reconciler.want(state)
        self._leaving.wanted(state)
        self._training.want(state)

    async def _pull(self, model: str, digest: str, registry_url: str) -> Path:
        wanted = self._reconciler.wanted
        keys = list(wanted.model_keys_pem)
        found = await self._store.held(digest, keys)
        if found:
            return found[1]
        elsewhere = next((version.registry for version in wanted.versions if version.digest == digest), "")
        if elsewhere:
            try:
                return await self._pulled(model, digest, self._registry(elsewhere, own=False), keys)
            except MeshError as error:
                log.warning("%s has no digest=%s to give: %s; asking the mesh", elsewhere, digest, error.message)
        return await self._pulled(model, digest, self._registry(f"{registry_url}/{model}", own=True), keys)

    async def _pulled(self, model: str, digest: str, registry: HttpRegistry, keys: list[str]) -> Path:
        try:
            _, folder = await self._store.pull(
                model, digest, registry, peers=self._holders, keys_pem=keys, look=self._look
            )
        finally:
            registry.close()
        return folder

    def _registry(self, url: str, *, own: bool) -> HttpRegistry:
        """Of a repository, "https://host:port/name"; the mesh's own one asks for this node's certificate."""
        scheme, _, rest = url.partition("://")
        host, _, name = rest.partition("/")
        context = self._renewal.current.ssl_context(self._config.data) if own else None
        return HttpRegistry(f"{scheme}://{host}", name, context)

    def _look(self, files: Mapping[str, Path]) -> None:
        """While a version's weights come. Raises PackageError."""
        early.check(files, providers=self._config.providers, allow_python=self._config.allow_python)

    async def _tidy(self) -> None:
        await self._store.keep_only(self._needed)

    def _needed(self) -> set[str]:
        """Digests of the versions that have to stay on this node's disk."""
        return self._reconciler.needed() | self._embedders.pins.digests

    async def _bring_pinned(self, model: str, digest: str) -> Replica:
        """A version that vectors were made with, beside those that are served."""
        folder = await self._pull(model, digest, self._reconciler.wanted.registry_url)
        return await self._node.load(folder, digest)


def idle_rules(state: pb.WantedState) -> dict[str, float]:
    """By digest, when a version that nobody asks for leaves memory, where the mesh has a rule for it."""
    return {version.digest: version.idle_unload_s for version in state.versions if version.idle_unload_s > 0}


def add_servicers(server: Server, servicer: InferenceServicer, status: Health) -> None:
    """Everything that a node answers over gRPC."""
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    server.add_registered_method_handlers(_INFERENCE, {"ModelInfer": infer_handler(servicer)})
    server.check_heads(f"/{_INFERENCE}/ModelInfer", servicer.check_head, wire.contents_at)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    # Its own `enable_server_reflection` takes any server but gRPC's for a synchronous one.
    described = reflection.aio.ReflectionServicer(service_names=_REFLECTED)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(described, server)


def engines_of(config: NodeConfig, retriever: Retriever | None = None) -> BestVariants:
    """What loads versions on this node; `retriever` finds passages for their steps."""
    engines = OnnxEngines(
        providers=config.providers,
        threads=config.threads,
        plans=config.data / "plans",
        allow_python=config.allow_python,
        retriever=retriever,
    )
    return BestVariants(engines, {name: model.variant for name, model in config.models.items() if model.variant})


def infer_handler(servicer: InferenceServicer) -> Any:
    """ModelInfer with messages that are read and written without needless copies."""
    return grpc.unary_unary_rpc_method_handler(
        servicer.ModelInfer,
        request_deserializer=wire.read,
        response_serializer=wire.write,
    )


@contextmanager
def _metrics_server(address: str, metrics: ServingMetrics) -> Iterator[str]:
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host, registry=metrics.registry)
    except (OSError, ValueError, socket.gaierror) as error:
        raise ConfigError(f"cannot serve metrics on {address}: {error}") from None
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def serve(config: NodeConfig, token: str | None, stop: asyncio.Event) -> None:
    """Joins if need be, then runs the node until `stop` is set. Raises MeshError."""
    with only_one(config.data, "an agent"):
        membership = await member(config.data, "node", token)
        host = await asyncio.to_thread(advertised_host, config, addresses.several(membership.control_plane)[0])
        config = dataclasses.replace(config, advertise_host=host)
        renewal = Renewal(membership, config.data, host)
        await Agent(config, membership, renewal).serve(stop)


async def serve_alone(packages: Mapping[str, Path], config: NodeConfig, stop: asyncio.Event) -> None:
    """Serves packages (digest: folder) without a mesh: no TLS, no token, on loopback alone, for a trial."""
    node = ServingNode(config, Place(node="alone", site="alone", region="alone"), engines_of(config))
    gatekeeper = Gatekeeper(mesh="alone", verifier=None, policy=POLICY, open_door=True)
    server = Server(gatekeeper, config.max_message_bytes)
    add_servicers(server, node.servicer, node.health)
    address = server.listen_plain(config.listen.public)
    try:
        for digest, folder in packages.items():
            node.table.put(await node.load(folder, digest))
        await server.start()
        log.info("serving %s on %s, without TLS", ", ".join(replica.name for replica in node.table), address)
        running = asyncio.create_task(node.run())
        await stop.wait()
        running.cancel()
        node.servicer.draining = True
        node.health.leave()
        node.health.end()
        await server.stop(config.grace_s)
        await asyncio.gather(*(replica.close() for replica in node.table))
    finally:
        await node.close()
