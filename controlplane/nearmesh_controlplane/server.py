"""The control plane's one process: builds every part, wires them, serves until told to stop."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.load_stats.v3 import lrs_pb2_grpc
from grpc_health.v1 import health_pb2_grpc
from starlette.routing import Route

from nearmesh.oci_layout import Layout
from nearmesh.process import only_one, rare_collections
from nearmesh.rpc import EVERYONE, MACHINES, OPERATORS, PEOPLE, TRAINERS, Gatekeeper
from nearmesh.snapshot import SnapshotRoutes
from nearmesh.tls import Credentials
from nearmesh.transport.health import Health
from nearmesh.transport.server import Server
from nearmesh.v1 import (
    admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    route_pb2_grpc,
    run_pb2_grpc,
)
from nearmesh.xds.ads import AggregatedDiscovery
from nearmesh_controlplane.admin import AdminServicer
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.catalog.publishing import Publisher
from nearmesh_controlplane.catalog.servicer import CatalogServicer
from nearmesh_controlplane.catalog.signing import Signing
from nearmesh_controlplane.config import MeshConfig
from nearmesh_controlplane.database import Database, settled
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.idle.book import IdleBook
from nearmesh_controlplane.idle.calls import IdleCalls
from nearmesh_controlplane.idle.scaler import Scaler
from nearmesh_controlplane.peers import told
from nearmesh_controlplane.peers.mirror import Mirror
from nearmesh_controlplane.peers.relay import Relay
from nearmesh_controlplane.peers.role import Alone, GivenOut, Role, Self
from nearmesh_controlplane.peers.together import Reader, Together
from nearmesh_controlplane.prices.book import Prices
from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.feed import Feed, FeedState
from nearmesh_controlplane.prices.sources import open_source
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.holders import Holders
from nearmesh_controlplane.registry.join import Addresses, Admission
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.registry.server_certificate import ServerCertificate
from nearmesh_controlplane.registry.servicer import NodeServicer
from nearmesh_controlplane.registry.training import Training
from nearmesh_controlplane.registry.wanted import wanted_state, wanted_versions
from nearmesh_controlplane.rollouts.agreement import smallest_agreement
from nearmesh_controlplane.rollouts.calls import RolloutCalls
from nearmesh_controlplane.rollouts.rollouts import Rollouts
from nearmesh_controlplane.routing import load_reports
from nearmesh_controlplane.routing.gather import Gatherer
from nearmesh_controlplane.routing.kept import KeptRoutes
from nearmesh_controlplane.routing.load_reports import LoadReports
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.residency import ResidencyRules
from nearmesh_controlplane.routing.router import Router
from nearmesh_controlplane.routing.servicer import RouteServicer
from nearmesh_controlplane.routing.snapshots import Snapshots
from nearmesh_controlplane.runs.calls import RunCalls
from nearmesh_controlplane.runs.chain import Chain
from nearmesh_controlplane.runs.desk import Desk
from nearmesh_controlplane.runs.driver import Driver
from nearmesh_controlplane.runs.flower import FlowerEngine
from nearmesh_controlplane.runs.published import Published
from nearmesh_controlplane.runs.runs import Runs
from nearmesh_controlplane.runs.servicer import RunServicer
from nearmesh_controlplane.runs.sites import Sites
from nearmesh_controlplane.runs.superlink import SuperLink
from nearmesh_controlplane.runs.trainer import Trainer
from nearmesh_controlplane.web.fleet_api import FleetApi
from nearmesh_controlplane.web.metrics import MeshMetrics, Observed
from nearmesh_controlplane.web.peer import HttpsServer
from nearmesh_controlplane.web.registry_api import application

log = logging.getLogger(__name__)

# Manifests and pieces of blobs; models themselves travel in pieces.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# How often leases, drifting measurements and the server's certificate are looked at.
TICK_S = 0.5
# Calls in progress get this long when the process is told to stop.
GRACE_S = 2.0

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
POLICY = {
    "/grpc.health.v1.Health/": EVERYONE,
    # The join token is the proof.
    "/nearmesh.v1.NodeService/Join": EVERYONE,
    "/nearmesh.v1.NodeService/Renew": MACHINES,
    "/nearmesh.v1.NodeService/Session": {"node"},
    "/nearmesh.v1.RouteService/": PEOPLE | MACHINES,
    "/nearmesh.v1.CatalogService/List": PEOPLE,
    "/nearmesh.v1.CatalogService/Get": PEOPLE,
    "/nearmesh.v1.CatalogService/Registry": PEOPLE,
    "/nearmesh.v1.CatalogService/": OPERATORS,
    "/nearmesh.v1.RunService/Get": PEOPLE,
    "/nearmesh.v1.RunService/List": PEOPLE,
    "/nearmesh.v1.RunService/Watch": PEOPLE,
    "/nearmesh.v1.RunService/": TRAINERS,
    "/nearmesh.v1.AdminService/": OPERATORS,
    # gRPC's own xDS client cannot send a token as metadata; the servicer looks for it in the first message.
    ADS: EVERYONE,
    load_reports.METHOD: EVERYONE,
}


@dataclass(slots=True)
class ControlPlane:
    """Every part of one control plane, wired."""

    config: MeshConfig
    authority: Authority
    db: Database
    changes: Generation
    registry: Registry
    catalog: Catalog
    rollouts: Rollouts
    idle: IdleBook
    scaler: Scaler
    layout: Layout
    signing: Signing
    mirror: Mirror
    router: Router
    measurements: Measurements
    snapshots: Snapshots
    role: Role
    admission: Admission
    audit: Audit
    prices: Prices
    feed: Feed | None
    residency: ResidencyRules
    kept: KeptRoutes | None
    observed: Observed
    publisher: Publisher
    training: Training
    superlink: SuperLink
    runs: Runs
    run_driver: Driver
    run_calls: RunCalls

    @classmethod
    async def open(cls, config: MeshConfig) -> ControlPlane:
        """Reads or creates the durable state below `config.data`."""
        db = Database.at(config.database) if config.database else Database.open(config.data / "state.db")
        try:
            return await cls._open(config, db)
        except BaseException:
            db.close()
            raise

    @classmethod
    async def _open(cls, config: MeshConfig, db: Database) -> ControlPlane:
        authority = Authority.open(config.mesh, config.data / "authority")
        await db.run(told.check_authority, authority.public)
        await db.run(told.check_authority, authority.model_key_pem.encode(), told.MODEL_KEY)
        changes = Generation()
        currencies = Currencies(config.currencies)
        feed = _feed(config, currencies)
        prices = Prices(db, changes, currencies, feed.state if feed else FeedState())
        residency = ResidencyRules(db, changes)
        registry = Registry(
            db, changes, config.lease_s, time.monotonic, lambda node: prices.usd_per_hour(node, time.time())
        )
        catalog = Catalog(db, changes)
        await prices.restore()
        await residency.restore()
        await registry.restore()
        await catalog.restore()
        measurements = Measurements(registry, catalog, time.monotonic)
        audit = Audit(db)
        rollouts = Rollouts(
            db,
            changes,
            registry,
            catalog,
            audit,
            lambda: measurements.demand.demand(time.monotonic()),
            name=config.name,
        )
        await rollouts.restore()
        idle = IdleBook(db, changes, catalog)
        await idle.restore()
        runs = Runs(db, audit, name=config.name)
        await runs.restore()
        gatherer = Gatherer(registry, catalog, measurements, residency, prices, clock=time.monotonic, kept=idle.kept)
        router = Router(
            config.mesh, registry, catalog, gatherer, changes, config.endpoint_override, clock=time.monotonic
        )
        snapshots = Snapshots(authority, registry, catalog, router, residency, changes, config.snapshot_lifetime_s)
        kept = None if config.database else KeptRoutes(authority, config.data / "routes")
        if kept:
            kept.resume(router)
        role = await _role(
            config,
            db,
            changes,
            registry,
            snapshots,
            Relay(authority),
            router.resume,
            {
                ("nodes", "replicas"): registry.refresh,
                ("versions", "deployments", "policies"): catalog.restore,
                ("rollouts",): rollouts.restore,
                ("transfer_prices",): prices.restore,
                ("residency",): residency.restore,
                ("idle",): idle.restore,
                ("runs", "run_rounds"): runs.restore,
                ("run_progress",): runs.restore_progress,
            },
        )
        rollouts.leads = role.decides
        scaler = Scaler(
            idle,
            registry,
            catalog,
            measurements,
            residency,
            router,
            audit,
            lambda model: rollouts.active(model) is not None,
            name=config.name,
            leads=role.decides,
        )
        admission = Admission(
            db,
            registry,
            authority,
            authority.verifier(),
            addresses=lambda: Addresses.of(config.name, role.known()),
            certificate_lifetime=timedelta(seconds=config.certificate_lifetime_s),
        )
        layout = Layout(config.data / "oci")
        mirror = Mirror(config.name, role, layout, catalog, authority, changes)
        signing = Signing(config.mesh, authority.model_key, layout)
        publisher = Publisher(catalog, layout, signing, audit, config.max_blob_bytes, mirror.copied, idle)
        training = Training(registry, changes, time.monotonic)
        superlink = SuperLink(config.runs, authority, config.data / "flower")
        candidates = Published(config.data / "runs" / "candidates", layout, catalog, publisher)
        sites = Sites(registry, training.status, measurements.utilization)
        desk = Desk(config.data / "runs" / "folders", candidates)
        driver = Driver(
            runs,
            Trainer(runs, desk, FlowerEngine(superlink), sites, changes.bump),
            Chain(runs, candidates, catalog, rollouts, functools.partial(smallest_agreement, layout)),
            sites,
            catalog,
            address=config.reached_at(config.listen.http),
            leads=role.decides,
        )
        return cls(
            config=config,
            authority=authority,
            db=db,
            changes=changes,
            registry=registry,
            catalog=catalog,
            rollouts=rollouts,
            idle=idle,
            scaler=scaler,
            layout=layout,
            signing=signing,
            mirror=mirror,
            router=router,
            measurements=measurements,
            snapshots=snapshots,
            role=role,
            admission=admission,
            audit=audit,
            prices=prices,
            feed=feed,
            residency=residency,
            kept=kept,
            observed=Observed(
                changes=changes,
                registry=registry,
                router=router,
                measurements=measurements,
                role=role,
                feed=feed,
                runs=runs,
            ),
            publisher=publisher,
            training=training,
            superlink=superlink,
            runs=runs,
            run_driver=driver,
            run_calls=RunCalls(runs, catalog, registry, candidates, own_apps=config.runs.own_apps),
        )

    def take_prices(self, state: FeedState) -> None:
        """What the feed says now counts from now on."""
        self.prices.take(state)
        self.registry.reprice()

    def _wants(self, node: Node) -> set[str]:
        """Digests of what the node should have."""
        replicas = self.registry.replicas(node.id)
        running, kept = self.rollouts.running(), self.idle.wanted
        return {v.digest for v in wanted_versions(node, replicas, self.catalog, running, kept)}

    def reach(self, region: str, node: Node) -> node_pb2.Peer:
        """How the nodes of a region reach a node: by the way that the region's clients go."""
        address = self.router.address(region, node, "mesh")
        return node_pb2.Peer(node=node.id, address=address, server_name=self.router.server_name(node.id))

    def add_servicers(self, server: Server, gatekeeper: Gatekeeper) -> None:
        """Every gRPC service of the control plane."""
        registry_url = f"https://{self.config.reached_at(self.config.listen.http)}"
        model_key = self.authority.model_key_pem
        holders = Holders(self.registry, self.changes, self._wants, self.reach)

        def wanted(node_id: str) -> Any:
            state = wanted_state(
                node_id,
                self.registry,
                self.catalog,
                jwks_json=self.authority.jwks_json,
                registry_url=registry_url,
                peers=self.measurements.peers(node_id),
                rollouts=self.rollouts.running(),
                holders=holders.of,
                kept=self.idle.wanted,
                unload_after_s=lambda model: self.idle.policy(model).unload_after_s,
                training=self.run_driver.wanted_training,
            )
            state.control_planes.extend(peer.mesh for peer in self.role.known())
            state.model_keys_pem.append(model_key)
            for version in state.versions:
                version.registry = self.catalog.registry_of(version.digest)
            return state

        node_pb2_grpc.add_NodeServiceServicer_to_server(
            NodeServicer(
                self.authority,
                self.admission,
                self.registry,
                self.changes,
                wanted,
                self.role,
                self.measurements.node_status,
                self.training.heard,
            ),
            server,
        )
        route_pb2_grpc.add_RouteServiceServicer_to_server(
            RouteServicer(
                self.router,
                self.registry,
                self.catalog,
                self.measurements,
                self.changes,
                self.snapshots,
                self.role,
                self.scaler.ask,
            ),
            server,
        )
        catalog_pb2_grpc.add_CatalogServiceServicer_to_server(
            CatalogServicer(
                self.catalog,
                self.publisher,
                self.registry,
                catalog_pb2.RegistryResponse(url=registry_url, model_keys_pem=[model_key]),
                calls=RolloutCalls(
                    self.rollouts,
                    self.catalog,
                    self.registry,
                    self.audit,
                    self.changes,
                    lambda version: smallest_agreement(self.layout, version),
                ),
                idle=IdleCalls(self.idle, self.audit),
            ),
            server,
        )
        run_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(self.run_calls), server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(
            AdminServicer(
                self.authority,
                self.admission,
                self.registry,
                self.catalog,
                self.audit,
                self.role,
                prices=self.prices,
                residency=self.residency,
                training=self.training.status,
            ),
            server,
        )
        self.observed.discovery = AggregatedDiscovery(
            source=GivenOut(self.router, self.role, self.router),
            mesh=self.config.mesh,
            verifier=self.authority.verifier(),
            jwks_json=lambda: self.authority.jwks_json,
            region_of=lambda gateway: self.registry.get(gateway).region,
            check=lambda who: gatekeeper.check(who, ADS),
        )
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self.observed.discovery, server)
        self.observed.load_reports = LoadReports(
            self.measurements, self.authority.verifier(), self.changes.drift, self.role.pass_on
        )
        lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(self.observed.load_reports, server)


async def _role(
    config: MeshConfig,
    db: Database,
    changes: Generation,
    registry: Registry,
    snapshots: Snapshots,
    relay: Relay,
    resume: Callable[[SnapshotRoutes], None],
    readers: Mapping[tuple[str, ...], Reader],
) -> Role:
    me = Self(
        id=config.name,
        incarnation=uuid.uuid4().hex,
        public=config.reached_at(config.listen.public),
        mesh=config.reached_at(config.listen.mesh),
        http=config.reached_at(config.listen.http),
    )
    if config.database:
        return Together(config.database, me, db, changes, registry, snapshots, relay, resume, readers)
    return await Alone.open(db, me)


async def serve(config: MeshConfig, stop: asyncio.Event) -> None:
    """Runs the control plane until `stop` is set. Raises ConfigError, AlreadyRunning."""
    with only_one(config.data, "a control plane"):
        plane = await ControlPlane.open(config)
        certificate = ServerCertificate(plane.authority, config.data / "server", config.host)
        server = _grpc_server(plane, certificate)
        https = _https_server(plane, certificate)
        rare_collections()
        await server.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                web = tasks.create_task(https.run_until_stopped())
                background = [
                    tasks.create_task(_tick(plane, certificate, https)),
                    tasks.create_task(plane.snapshots.run()),
                    tasks.create_task(plane.measurements.run()),
                    tasks.create_task(plane.role.run()),
                    tasks.create_task(plane.mirror.run()),
                    tasks.create_task(plane.rollouts.run()),
                    tasks.create_task(plane.scaler.run()),
                    tasks.create_task(plane.superlink.run()),
                    tasks.create_task(plane.run_driver.run()),
                ]
                if plane.feed:
                    background.append(tasks.create_task(plane.feed.run(plane.take_prices)))
                if plane.kept:
                    background.append(tasks.create_task(plane.kept.run(plane.snapshots)))
                log.info(
                    "serving mesh=%s public=%s mesh_listener=%s http=%s",
                    config.mesh,
                    config.listen.public,
                    config.listen.mesh,
                    config.listen.http,
                )
                await stop.wait()
                log.info("stopping")
                for task in background:
                    task.cancel()
                https.should_exit = True
                await server.stop(GRACE_S)
                await web
        finally:
            await server.stop(0)
            await settled()
            plane.db.close()


def _feed(config: MeshConfig, currencies: Currencies) -> Feed | None:
    if not config.prices.feed:
        return None
    kept = config.data / "prices" / "feed.json"
    return Feed(open_source(config.prices.feed), config.prices.every_s, currencies, kept)


def _grpc_server(plane: ControlPlane, certificate: ServerCertificate) -> Server:
    gatekeeper = Gatekeeper(
        mesh=plane.config.mesh,
        verifier=plane.authority.verifier(),
        policy=POLICY,
        removed=plane.registry.removed_ids,
    )
    server = Server(gatekeeper, MAX_MESSAGE_BYTES)
    plane.add_servicers(server, gatekeeper)
    health = Health()
    health.put("", serving=True)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.listen(plane.config.listen.public, lambda: certificate.current, mesh=False)
    server.listen(plane.config.listen.mesh, lambda: certificate.current, mesh=True)
    return server


def _https_server(plane: ControlPlane, certificate: ServerCertificate) -> HttpsServer:
    app = application(
        plane.layout,
        plane.catalog,
        plane.signing,
        mesh=plane.config.mesh,
        verifier=plane.authority.verifier(),
        removed=plane.registry.removed_ids,
        fetch=plane.mirror.fetch,
        more=[Route("/metrics", MeshMetrics(plane.observed).page)],
    )
    return HttpsServer(
        FleetApi(app, plane.superlink, plane.training),
        address=plane.config.listen.http,
        certificate=certificate.folder / Credentials.CERTIFICATE,
        key=certificate.folder / Credentials.KEY,
        ca=certificate.folder / Credentials.CA,
    )


async def _tick(plane: ControlPlane, certificate: ServerCertificate, https: HttpsServer) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        plane.registry.expire()
        plane.registry.end_prices(time.time())
        if plane.measurements.tick(plane.reach):
            plane.changes.drift()
        plane.router.tick()
        certificate.keep_young(https.reload_certificate)
