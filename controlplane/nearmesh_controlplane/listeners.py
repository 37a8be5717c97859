"""What a control plane serves to others: its gRPC services, who may call which, and its HTTPS pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.load_stats.v3 import lrs_pb2_grpc
from grpc_health.v1 import health_pb2_grpc
from starlette.routing import Route

from nearmesh.rpc import EVERYONE, MACHINES, OPERATORS, PEOPLE, TRAINERS, Gatekeeper
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
from nearmesh_controlplane.catalog.servicer import CatalogServicer
from nearmesh_controlplane.idle.calls import IdleCalls
from nearmesh_controlplane.peers.role import GivenOut
from nearmesh_controlplane.plane import ControlPlane
from nearmesh_controlplane.registry.holders import Holders
from nearmesh_controlplane.registry.server_certificate import ServerCertificate
from nearmesh_controlplane.registry.servicer import NodeServicer
from nearmesh_controlplane.registry.vectors import Vectors
from nearmesh_controlplane.registry.wanted import wanted_state
from nearmesh_controlplane.rollouts.agreement import smallest_agreement
from nearmesh_controlplane.rollouts.calls import RolloutCalls
from nearmesh_controlplane.routing import load_reports
from nearmesh_controlplane.routing.load_reports import LoadReports
from nearmesh_controlplane.routing.servicer import RouteServicer
from nearmesh_controlplane.runs.servicer import RunServicer
from nearmesh_controlplane.web.fleet_api import FleetApi
from nearmesh_controlplane.web.metrics import MeshMetrics
from nearmesh_controlplane.web.peer import HttpsServer
from nearmesh_controlplane.web.registry_api import application

# Manifests and pieces of blobs; models themselves travel in pieces.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

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


def grpc_server(plane: ControlPlane, certificate: ServerCertificate) -> Server:
    """Both listeners, not started."""
    gatekeeper = Gatekeeper(
        mesh=plane.config.mesh,
        verifier=plane.authority.verifier(),
        policy=POLICY,
        removed=plane.registry.removed_ids,
    )
    server = Server(gatekeeper, MAX_MESSAGE_BYTES)
    _add_servicers(plane, server, gatekeeper)
    health = Health()
    health.put("", serving=True)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.listen(plane.config.listen.public, lambda: certificate.current, mesh=False)
    server.listen(plane.config.listen.mesh, lambda: certificate.current, mesh=True)
    return server


def https_server(plane: ControlPlane, certificate: ServerCertificate) -> HttpsServer:
    """The registry, the metrics and Flower's Fleet API; not started."""
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


def _add_servicers(plane: ControlPlane, server: Server, gatekeeper: Gatekeeper) -> None:
    """Every gRPC service of the control plane."""
    registry_url = f"https://{plane.config.reached_at(plane.config.listen.http)}"
    model_key = plane.authority.model_key_pem
    vectors = Vectors(plane.registry, plane.changes, plane.reach, plane.residency.allowed)

    def heard(node_id: str, status: node_pb2.NodeStatus) -> None:
        plane.measurements.node_status(node_id, status)
        vectors.heard(node_id, status)

    node_pb2_grpc.add_NodeServiceServicer_to_server(
        NodeServicer(
            plane.authority,
            plane.admission,
            plane.registry,
            plane.changes,
            _wanted(plane, registry_url, model_key, vectors),
            plane.role,
            heard,
            plane.training.heard,
        ),
        server,
    )
    route_pb2_grpc.add_RouteServiceServicer_to_server(
        RouteServicer(
            plane.router,
            plane.registry,
            plane.catalog,
            plane.measurements,
            plane.changes,
            plane.snapshots,
            plane.role,
            plane.scaler.ask,
            plane.residency.allowed,
        ),
        server,
    )
    catalog_pb2_grpc.add_CatalogServiceServicer_to_server(
        CatalogServicer(
            plane.catalog,
            plane.publisher,
            plane.registry,
            catalog_pb2.RegistryResponse(url=registry_url, model_keys_pem=[model_key]),
            calls=RolloutCalls(
                plane.rollouts,
                plane.catalog,
                plane.registry,
                plane.audit,
                plane.changes,
                lambda version: smallest_agreement(plane.layout, version),
            ),
            idle=IdleCalls(plane.idle, plane.audit),
        ),
        server,
    )
    run_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(plane.run_calls), server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(
        AdminServicer(
            plane.authority,
            plane.admission,
            plane.registry,
            plane.catalog,
            plane.audit,
            plane.role,
            prices=plane.prices,
            residency=plane.residency,
            training=plane.training.status,
            vectors=vectors.status,
        ),
        server,
    )
    _add_discovery(plane, server, gatekeeper)


def _wanted(plane: ControlPlane, registry_url: str, model_key: str, vectors: Vectors) -> Callable[[str], Any]:
    """What a node is to be like, by its id."""
    holders = Holders(plane.registry, plane.changes, plane.wants, plane.reach)

    def wanted(node_id: str) -> Any:
        state = wanted_state(
            node_id,
            plane.registry,
            plane.catalog,
            jwks_json=plane.authority.jwks_json,
            registry_url=registry_url,
            peers=plane.measurements.peers(node_id),
            rollouts=plane.rollouts.running(),
            holders=holders.of,
            kept=plane.idle.wanted,
            unload_after_s=lambda model: plane.idle.policy(model).unload_after_s,
            training=plane.run_driver.wanted_training,
            vector_nodes=vectors.nodes_for,
        )
        state.control_planes.extend(peer.mesh for peer in plane.role.known())
        state.model_keys_pem.append(model_key)
        for version in state.versions:
            version.registry = plane.catalog.registry_of(version.digest)
        return state

    return wanted


def _add_discovery(plane: ControlPlane, server: Server, gatekeeper: Gatekeeper) -> None:
    """What proxies of the xDS family call."""
    plane.observed.discovery = AggregatedDiscovery(
        source=GivenOut(plane.router, plane.role, plane.router),
        mesh=plane.config.mesh,
        verifier=plane.authority.verifier(),
        jwks_json=lambda: plane.authority.jwks_json,
        region_of=lambda gateway: plane.registry.get(gateway).region,
        check=lambda who: gatekeeper.check(who, ADS),
    )
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(plane.observed.discovery, server)
    plane.observed.load_reports = LoadReports(
        plane.measurements, plane.authority.verifier(), plane.changes.drift, plane.role.pass_on
    )
    lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(plane.observed.load_reports, server)
