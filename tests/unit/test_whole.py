"""A call that is cancelled on its way leaves memory and disk alike, and an entry in the audit log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from nearmesh_controlplane.admin import AdminServicer
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.servicer import CatalogServicer
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.rollouts.calls import RolloutCalls

from nearmesh import rpc
from nearmesh.v1 import admin_pb2, catalog_pb2
from nearmesh.whole import settled, whole
from tests.control_plane_state import State, alone, replica, state
from tests.rollout_nodes import rollouts_of

ME = rpc.Identity("me", "operator")


@asynccontextmanager
async def blocked(db: Database) -> AsyncIterator[None]:
    """The database's thread waits, and so does every transaction that is asked for meanwhile."""
    held, release = threading.Event(), threading.Event()

    def hold(_connection: Any) -> None:
        held.set()
        release.wait(30)

    holding = asyncio.ensure_future(db.run(hold))
    await asyncio.to_thread(held.wait, 30)
    try:
        yield
    finally:
        release.set()
        await holding


async def cancelled(db: Database, call: Awaitable[Any]) -> None:
    """Cancels the call while its transaction waits, as gRPC does when the client has gone away."""
    async with blocked(db):
        task = asyncio.ensure_future(call)
        # Enough turns of the loop for the call to reach the database.
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        # At once, though the change goes on.
        with pytest.raises(asyncio.CancelledError):
            await task
    await settled()


def contents(mesh: State) -> Any:
    nodes = mesh.registry.all()
    models = mesh.catalog.models()
    return (
        nodes,
        [dict(mesh.registry.replicas(node.id)) for node in nodes],
        [(mesh.catalog.versions(m), mesh.catalog.deployments(m), mesh.catalog.policy(m)) for m in models],
        mesh.prices.transfers(),
        mesh.residency.all(),
    )


CHANGES: dict[str, Callable[[State], Awaitable[Any]]] = {
    "register": lambda mesh: mesh.join("second"),
    "drain": lambda mesh: mesh.registry.drain("n", undo=False),
    "price": lambda mesh: mesh.registry.set_price("n", 7.0),
    "price taken back": lambda mesh: mesh.registry.unset_price("priced"),
    "transfer": lambda mesh: mesh.prices.set_transfer("a", "*", 0.1),
    "transfer taken back": lambda mesh: mesh.prices.unset_transfer("a", "b"),
    "residency": lambda mesh: mesh.residency.set("a", ["b"]),
    "residency taken back": lambda mesh: mesh.residency.set("bound", []),
    "regions": lambda mesh: mesh.catalog.set_policy("m", "", 0.0, ("a",)),
    "status": lambda mesh: mesh.reports("n", replica()),
    "add": lambda mesh: mesh.publish("m", "2"),
    "deploy": lambda mesh: mesh.catalog.deploy("m", "1", (), "me"),
    "rollback": lambda mesh: mesh.catalog.rollback("r", "me"),
    "policy": lambda mesh: mesh.catalog.set_policy("m", "nearest", 70.0),
}


@asynccontextmanager
async def filled(folder: Path) -> AsyncIterator[State]:
    async with state(folder) as mesh:
        await mesh.node("n")
        await mesh.node("priced")
        await mesh.registry.set_price("priced", 3.0)
        await mesh.prices.set_transfer("a", "b", 0.2)
        await mesh.residency.set("bound", ["a"])
        await mesh.publish("m", "1")
        for version in "12":
            await mesh.publish("r", version)
            await mesh.catalog.deploy("r", version, (), "me")
        yield mesh


@pytest.mark.parametrize("name", CHANGES)
async def test_memory_and_disk_agree_after_a_cancelled_change(tmp_path: Path, name: str) -> None:
    async with filled(tmp_path) as mesh:
        before, seen = contents(mesh), mesh.changes.value
        await cancelled(mesh.db, CHANGES[name](mesh))
        assert contents(mesh) != before, "it had begun, so it is done"
        assert mesh.changes.value > seen, "and those who route were woken"
        async with state(tmp_path) as restarted:
            assert contents(restarted) == contents(mesh)


CALLS: dict[str, Callable[[AdminServicer, CatalogServicer], Awaitable[Any]]] = {
    "drain": lambda admin, _: admin.DrainNode(admin_pb2.DrainNodeRequest(node="n"), None),
    "cordon": lambda admin, _: admin.CordonNode(admin_pb2.CordonNodeRequest(node="n"), None),
    "remove": lambda admin, _: admin.RemoveNode(admin_pb2.RemoveNodeRequest(node="n"), None),
    "price": lambda admin, _: admin.SetPrice(admin_pb2.SetPriceRequest(node="n", usd_per_hour=7), None),
    "transfer-price": lambda admin, _: admin.SetTransferPrice(
        admin_pb2.SetTransferPriceRequest(from_region="a", to_region="*", usd_per_gb=0.1), None
    ),
    "residency": lambda admin, _: admin.SetResidency(
        admin_pb2.SetResidencyRequest(client_region="a", regions=["b"]), None
    ),
    "policy": lambda admin, _: admin.SetPolicy(admin_pb2.SetPolicyRequest(model="m", deadline_ms=7), None),
    "token": lambda admin, _: admin.IssueToken(
        admin_pb2.IssueTokenRequest(subject="you", role="client", lifetime_s=60), None
    ),
    "deploy": lambda _, catalog: catalog.Deploy(catalog_pb2.DeployRequest(model="m", version="1"), None),
    "rollback": lambda _, catalog: catalog.Rollback(catalog_pb2.RollbackRequest(model="r"), None),
    "rollout": lambda _, catalog: catalog.Deploy(
        catalog_pb2.DeployRequest(model="m", version="1", strategy=catalog_pb2.ROLLOUT_STRATEGY_ROLLING), None
    ),
}

# What the log has where it is not the call's own name.
ACTIONS = {"rollout": "deploy"}


@pytest.mark.parametrize("name", CALLS)
async def test_the_audit_follows_a_cancelled_call_and_knows_who_called(tmp_path: Path, name: str) -> None:
    async with filled(tmp_path) as mesh:
        audit, unused = Audit(mesh.db), cast(Any, None)
        admin = AdminServicer(
            Authority.open("mesh", tmp_path),
            unused,
            mesh.registry,
            mesh.catalog,
            audit,
            alone(),
            prices=mesh.prices,
            residency=mesh.residency,
        )
        rollouts = rollouts_of(mesh)
        calls = RolloutCalls(rollouts, mesh.catalog, mesh.registry, audit, mesh.changes, lambda version: 0.0)
        catalog = CatalogServicer(mesh.catalog, unused, mesh.registry, unused, calls=calls, idle=unused)
        rpc._caller.set(ME)
        await cancelled(mesh.db, CALLS[name](admin, catalog))
        action = ACTIONS.get(name, name)
        assert [(entry.action, entry.actor) for entry in await audit.latest(10)] == [(action, "operator/me")]


async def test_a_change_that_fails_fails_for_its_caller() -> None:
    @whole
    async def refused() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await refused()
    await settled()
