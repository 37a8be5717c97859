"""Every part of one control plane, built from its durable state and wired to each other."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from nearmesh.oci_layout import Layout
from nearmesh.snapshot import SnapshotRoutes
from nearmesh.v1 import node_pb2
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.catalog.publishing import Publisher
from nearmesh_controlplane.catalog.signing import Signing
from nearmesh_controlplane.config import MeshConfig
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.idle.book import IdleBook
from nearmesh_controlplane.idle.scaler import Scaler
from nearmesh_controlplane.peers import told
from nearmesh_controlplane.peers.mirror import Mirror
from nearmesh_controlplane.peers.relay import Relay
from nearmesh_controlplane.peers.role import Alone, Role, Self
from nearmesh_controlplane.peers.together import Reader, Together
from nearmesh_controlplane.prices.book import Prices
from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.feed import Feed, FeedState
from nearmesh_controlplane.prices.sources import open_source
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.join import Addresses, Admission
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.registry.training import Training
from nearmesh_controlplane.registry.wanted import wanted_versions
from nearmesh_controlplane.rollouts.agreement import smallest_agreement
from nearmesh_controlplane.rollouts.rollouts import Rollouts
from nearmesh_controlplane.routing.gather import Gatherer
from nearmesh_controlplane.routing.kept import KeptRoutes
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.residency import ResidencyRules
from nearmesh_controlplane.routing.router import Router
from nearmesh_controlplane.routing.snapshots import Snapshots
from nearmesh_controlplane.runs.calls import RunCalls
from nearmesh_controlplane.runs.chain import Chain
from nearmesh_controlplane.runs.desk import Desk
from nearmesh_controlplane.runs.driver import Driver
from nearmesh_controlplane.runs.flower import FlowerEngine
from nearmesh_controlplane.runs.published import Published
from nearmesh_controlplane.runs.runs import Runs
from nearmesh_controlplane.runs.sites import Sites
from nearmesh_controlplane.runs.superlink import SuperLink
from nearmesh_controlplane.runs.trainer import Trainer
from nearmesh_controlplane.web.metrics import Observed


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

    def wants(self, node: Node) -> set[str]:
        """Digests of what the node should have."""
        replicas = self.registry.replicas(node.id)
        running, kept = self.rollouts.running(), self.idle.wanted
        return {v.digest for v in wanted_versions(node, replicas, self.catalog, running, kept)}

    def reach(self, region: str, node: Node) -> node_pb2.Peer:
        """How the nodes of a region reach a node: by the way that the region's clients go."""
        address = self.router.address(region, node, "mesh")
        return node_pb2.Peer(node=node.id, address=address, server_name=self.router.server_name(node.id))


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


def _feed(config: MeshConfig, currencies: Currencies) -> Feed | None:
    if not config.prices.feed:
        return None
    kept = config.data / "prices" / "feed.json"
    return Feed(open_source(config.prices.feed), config.prices.every_s, currencies, kept)
