"""A control plane that is only pretended, and a bench to run the command line on over it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from nearmesh.cli.main import main
from nearmesh.cli.place import Place
from nearmesh.errors import InvalidInput, NotFound
from nearmesh.routing.times import Times, sum_of
from nearmesh.snapshot import SnapshotRoutes
from nearmesh.v1 import admin_pb2, catalog_pb2, node_pb2, route_pb2
from tests import fake_runs
from tests.fake_runs import FakeRuns
from tests.snapshots import snapshot

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


class FakeAdmin:
    """An AdminClient that knows a small mesh by heart, and notes what it was asked to do."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.done: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.node_list = [
            node("node-a", "site-a", "europe-west1", usd_per_hour=0.7, ready_replicas=1),
            node("node-b", "site-b", "us-east1", live=False, last_seen_s=0),
            node("gateway-a", "site-a", "europe-west1", kind=admin_pb2.NODE_KIND_GATEWAY),
        ]
        self.keepers: list[str] = []
        self.price_list = prices()
        self.rules = [admin_pb2.Residency(client_region="europe-west1", regions=["europe-west1", "europe-west4"])]
        self.replica_list = [replica("node-a", node_pb2.REPLICA_STATE_READY)]
        # What a watcher hears, one after the other.
        self.rollout_list = [
            rollout(nodes=[rollout_node("node-a", answered=12, failed=1, compared=4, agreed=3)]),
            rollout(
                state=catalog_pb2.ROLLOUT_STATE_DONE, ended_at_s=13.0, nodes=[rollout_node("node-a", changed_over=True)]
            ),
        ]
        self.runs = FakeRuns(self.done, [fake_runs.run(), fake_runs.served()])
        self.never_ends = False
        self.sleeping = False
        self.report_json = ""
        self.lineage_json = ""
        self.expires_at_s = 0.0
        self.candidates = [
            candidate("node-a", True, 0.0000228, "nearest: 10.0 ms round trip", share=1.0),
            candidate("node-b", False, 0.0, "not ready: gone"),
        ]
        self.accuracy_list = [
            accuracy("us-east1", "clients", answered=1240.4),
            accuracy("us-east1", "gateway", answered=30, compared=0),
            accuracy("europe-west1", "clients", answered=9),
        ]
        self.accuracy_error: Exception | None = None

    async def __aenter__(self) -> FakeAdmin:
        if self.error:
            raise self.error
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def nodes(self) -> list[admin_pb2.Node]:
        return self.node_list

    async def vector_nodes(self) -> list[route_pb2.VectorPlace]:
        return [route_pb2.VectorPlace(node=name, address=f"{name}:8001", live=True) for name in self.keepers]

    async def join_token(self, name: str, site: str, region: str, **more: Any) -> Any:
        self.done.append(("join_token", name, site, region, more))
        return admin_pb2.CreateJoinTokenResponse(token="join.me.once", expires_at_s=1)

    async def issue_token(self, subject: str, role: str, **more: Any) -> Any:
        self.done.append(("issue_token", subject, role, more))
        return admin_pb2.IssueTokenResponse(token="fresh.client.token", expires_at_s=1)

    async def drain(self, name: str, *, undo: bool) -> Any:
        self.done.append(("drain", name, undo))
        return self._node(name)

    async def cordon(self, name: str, *, undo: bool) -> Any:
        self.done.append(("cordon", name, undo))
        return self._node(name)

    async def remove(self, name: str) -> Any:
        self.done.append(("remove", name))
        return self._node(name)

    async def set_price(self, name: str, usd_per_hour: float, **more: Any) -> Any:
        self.done.append(("set_price", name, usd_per_hour, more))
        found = self._node(name)
        found.usd_per_hour = usd_per_hour
        return found

    async def unset_price(self, name: str) -> Any:
        self.done.append(("unset_price", name))
        found = self._node(name)
        found.price_source = "feed"
        return found

    async def prices(self) -> admin_pb2.ListPricesResponse:
        return self.price_list

    async def set_transfer_price(self, *pair_and_price: Any) -> admin_pb2.TransferPrice:
        self.done.append(("set_transfer_price", *pair_and_price))
        return transfer(*pair_and_price)

    async def unset_transfer_price(self, from_region: str, to_region: str) -> admin_pb2.TransferPrice:
        self.done.append(("unset_transfer_price", from_region, to_region))
        return transfer(from_region, to_region, 0.0)

    def _node(self, name: str) -> admin_pb2.Node:
        for found in self.node_list:
            if found.id == name:
                return found
        raise NotFound(f"no node {name!r};\n the mesh has some")

    async def publish(self, artifact: Any, on_progress: Any = None) -> catalog_pb2.ModelVersion:
        manifest = artifact.manifest
        self.done.append(("publish", manifest.model, sorted(file.title for file in manifest.files)))
        return catalog_pb2.ModelVersion(
            model=manifest.model, version=manifest.version, digest=artifact.digest, size_bytes=manifest.size_bytes
        )

    async def models(self) -> list[catalog_pb2.Model]:
        return [await self.model("digits")]

    async def model(self, name: str) -> catalog_pb2.Model:
        version = catalog_pb2.ModelVersion(model=name, version="1", digest=DIGEST, size_bytes=1_234_567, created_at_s=1)
        version.report_json = self.report_json
        version.lineage_json = self.lineage_json
        return catalog_pb2.Model(
            name=name,
            versions=[version],
            deployments=[deployment(name)],
            replicas=self.replica_list,
            objective="nearest",
            deadline_ms=300,
            asleep=self.sleeping,
            asleep_since_s=5.0 if self.sleeping else 0.0,
            kept=["node-a"] if self.sleeping else [],
        )

    async def deploy(self, name: str, version: str, sites: tuple[str, ...], **more: Any) -> catalog_pb2.Deployment:
        self.done.append(("deploy", name, version, sites, more))
        return deployment(name, sites)

    async def watch_rollout(self, name: str, id: int = 0) -> AsyncIterator[catalog_pb2.Rollout]:
        self.done.append(("watch_rollout", name, id))
        for found in self.rollout_list:
            yield found
        if self.never_ends:
            await asyncio.get_running_loop().create_future()

    async def rollout(self, name: str, id: int = 0) -> catalog_pb2.Rollout:
        self.done.append(("rollout", name, id))
        return self.rollout_list[-1]

    async def rollouts(self, name: str = "") -> list[catalog_pb2.Rollout]:
        return [found for found in self.rollout_list if name in ("", found.model)]

    async def change_rollout(self, name: str, change: str) -> catalog_pb2.Rollout:
        self.done.append(("change_rollout", name, change))
        return self.rollout_list[-1]

    async def set_idle(self, name: str, **changes: float | None) -> catalog_pb2.IdlePolicy:
        self.done.append(("set_idle", name, changes))
        given = {key: value for key, value in changes.items() if value is not None}
        return catalog_pb2.IdlePolicy(**{"model": name, "keep": 1, **given})  # type: ignore[arg-type]

    async def rollback(self, name: str) -> catalog_pb2.Deployment:
        raise InvalidInput(f"{name!r} has been deployed in one version only (1)")

    async def explain(
        self,
        name: str,
        region: str = "",
        *,
        objective: str = "",
        site: str = "",
        latitude: float | None = None,
        longitude: float | None = None,
    ) -> route_pb2.Route:
        self.done.append(("explain", name, region, site, latitude, longitude))
        return route_pb2.Route(
            model=name,
            version="1",
            digest=DIGEST,
            region=region or "europe-west1",
            objective=objective or "nearest",
            deadline_ms=300,
            generation=7,
            demand_per_s=12.3,
            expires_at_s=self.expires_at_s,
            candidates=self.candidates,
        )

    async def accuracy(self, name: str = "") -> list[route_pb2.Accuracy]:
        if self.accuracy_error:
            raise self.accuracy_error
        return [row for row in self.accuracy_list if name in ("", row.model)]

    async def snapshot(self, region: str) -> SnapshotRoutes:
        if self.error:
            raise self.error
        return SnapshotRoutes(snapshot())

    async def latencies(self) -> list[route_pb2.Latency]:
        return [route_pb2.Latency(region=region, node="node-a") for region in ("us-east1", "europe-west1", "us-east1")]

    async def set_policy(
        self, name: str, *, objective: str, deadline_ms: float, regions: list[str], any_region: bool
    ) -> admin_pb2.Policy:
        self.done.append(("set_policy", name, regions, any_region))
        return admin_pb2.Policy(
            model=name, objective=objective or "nearest", deadline_ms=deadline_ms or 300, regions=regions
        )

    async def set_residency(self, client_region: str, regions: tuple[str, ...]) -> admin_pb2.Residency:
        self.done.append(("set_residency", client_region, regions))
        return admin_pb2.Residency(client_region=client_region, regions=regions)

    async def residency(self) -> list[admin_pb2.Residency]:
        return self.rules

    async def control_planes(self) -> list[admin_pb2.ControlPlane]:
        places = {"public_address": "cp:7400", "mesh_address": "cp:7401", "http_address": "cp:7480"}
        return [
            admin_pb2.ControlPlane(id="a", leader=True, term=3, seen_at_s=1.0, **places),
            admin_pb2.ControlPlane(id="b", seen_at_s=2.0, **places),
        ]

    async def audit(self, limit: int) -> list[admin_pb2.AuditEntry]:
        return [admin_pb2.AuditEntry(at_s=0.5, actor="operator/me", action="drain", subject="node-a", detail="[x]")][
            :limit
        ]


def node(name: str, site: str, region: str, **more: Any) -> admin_pb2.Node:
    values = {"kind": admin_pb2.NODE_KIND_NODE, "live": True, "last_seen_s": 1.0, **more}
    return admin_pb2.Node(id=name, site=site, region=region, **values)


def prices() -> admin_pb2.ListPricesResponse:
    operators = admin_pb2.NodePrice(
        node="node-a",
        region="europe-west1",
        usd_per_hour=0.54,
        source="operator",
        amount=0.5,
        currency="EUR",
        valid_until_s=86400,
    )
    feeds = admin_pb2.NodePrice(
        node="node-b",
        region="us-east1",
        machine_type="g2-standard-4",
        usd_per_hour=0.2,
        spot=True,
        source="feed",
        note="the operator's price ended 1970-01-01 00:00:01 UTC",
    )
    feed = admin_pb2.PriceFeed(source="prices.csv", read_at_s=3600, prices=2, error="line 3: usd_per_hour is 'free'")
    return admin_pb2.ListPricesResponse(
        nodes=[operators, feeds], transfers=[transfer("us-east1", "*", 0.12, "feed")], feed=feed
    )


def transfer(from_region: str, to_region: str, usd: float, source: str = "operator") -> admin_pb2.TransferPrice:
    return admin_pb2.TransferPrice(from_region=from_region, to_region=to_region, usd_per_gb=usd, source=source)


def replica(name: str, state: node_pb2.ReplicaState, detail: str = "", digest: str = DIGEST) -> catalog_pb2.Replica:
    status = node_pb2.ReplicaStatus(model="digits", digest=digest, state=state, detail=detail, variant="fp32")
    return catalog_pb2.Replica(node=name, version="1", status=status, live=True)


def deployment(name: str, sites: tuple[str, ...] = ()) -> catalog_pb2.Deployment:
    return catalog_pb2.Deployment(
        model=name, version="1", digest=DIGEST, sites=sites, created_at_s=1, actor="me", rollout=7
    )


def rollout(**more: Any) -> catalog_pb2.Rollout:
    """A canary at its second step."""
    values = {
        "id": 7,
        "model": "digits",
        "version": "1",
        "digest": DIGEST,
        "strategy": catalog_pb2.ROLLOUT_STRATEGY_CANARY,
        "steps": [0.05, 0.25],
        "state": catalog_pb2.ROLLOUT_STATE_RUNNING,
        "phase": catalog_pb2.ROLLOUT_PHASE_STEPS,
        "step": 1,
        "share": 0.25,
        "actor": "operator/me",
        "created_at_s": 1.0,
        "since_s": 2.0,
    }
    return catalog_pb2.Rollout(**(values | more))


def rollout_node(name: str, **more: Any) -> catalog_pb2.RolloutNode:
    values = {
        "node": name,
        "site": f"site-{name}",
        "standing_version": "0",
        "state": node_pb2.REPLICA_STATE_READY,
        "service_ms_p95": 5.25,
        "standing_ms_p95": 5.0,
        "live": True,
    }
    return catalog_pb2.RolloutNode(**(values | more))


def candidate(name: str, ready: bool, price: float, why: str, **more: Any) -> route_pb2.Candidate:
    """As the router makes them: of a node that is not ready it knows neither time nor price."""
    network, service = Times.spread(10.0, 12.0), Times.spread(20.0, 30.5)
    total = sum_of(network, service)
    values: dict[str, Any] = {
        "node": name,
        "site": f"site-{name}",
        "region": "europe-west1",
        "ready": ready,
        "network_ms_p50": network.p50_ms,
        "network_ms_p95": network.p95_ms,
        "network_ms_quantiles": network.ms,
        "service_ms_p50": 20.0 if ready else math.nan,
        "service_ms_p95": 30.5 if ready else math.inf,
        "usd_per_1000": price if ready else math.inf,
        "in_time": ready,
        "why": why,
    }
    if ready:
        values |= {"total_ms_p50": total.p50_ms, "total_ms_p95": total.p95_ms, "total_ms_p99": total.p99_ms}
        values |= {"service_ms_quantiles": service.ms, "p_in_time": 0.9987}
    return route_pb2.Candidate(**(values | more))


def accuracy(region: str, reporter: str, **more: Any) -> route_pb2.Accuracy:
    values = {"failed": 2.0, "compared": 9.0, "late": 0.01, "within_p50": 0.51, "within_p95": 0.96, "within_p99": 0.99}
    return route_pb2.Accuracy(
        region=region,
        model="digits",
        objective="nearest",
        reporter=reporter,
        **(values | {"actual_over_predicted": 1.04} | more),
    )


def local_mesh(folder: Path) -> Path:
    """The folder of a local mesh below `folder`."""
    mesh = folder / ".nearmesh" / "dev"
    mesh.mkdir(parents=True)
    state = {"control_plane": {"grpc": "127.0.0.1:7400"}, "ca": "ca.pem", "bootstrap": {"us-east1": "b.json"}}
    (mesh / "mesh.json").write_text(json.dumps(state))
    (mesh / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (mesh / "operator.jwt").write_text("eyJ.operator.x\n")
    return mesh


class Bench:
    """Runs commands, each with a FakeAdmin of its own, and keeps the latest one."""

    def __init__(self, mesh: Path) -> None:
        self.mesh = mesh
        self._values: dict[str, Any] = {}
        self.admin: FakeAdmin

    def pretend(self, **values: Any) -> None:
        """From now on the FakeAdmin has these attributes."""
        self._values = values

    def __call__(self, *arguments: str, env: dict[str, str] | None = None, bare: bool = False) -> Result:
        """Runs one command; `bare` leaves the mesh for it to find."""
        where = () if bare else ("--mesh", str(self.mesh))
        return CliRunner().invoke(main, [*where, *arguments], obj=self._dial, env=env)

    def _dial(self, place: Place) -> FakeAdmin:
        self.admin = FakeAdmin(place)
        for name, value in self._values.items():
            setattr(self.admin, name, value)
        return self.admin
