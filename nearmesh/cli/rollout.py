"""How far a deployment has come: which nodes should serve it, which do, and which cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearmesh.cli import records
from nearmesh.errors import DeadlineExceeded
from nearmesh.v1 import admin_pb2, catalog_pb2, node_pb2

if TYPE_CHECKING:
    from nearmesh.client.admin import AdminClient

# The catalog has no call that waits for replicas, and people see no difference below this.
POLL_S = 0.25
# What a node that has said nothing of the version is doing, as far as we know.
WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Every live node that the deployment covers, by what it has made of it."""

    serving: tuple[str, ...]
    # Node and its state, such as "loading".
    pending: Mapping[str, str]
    # Node and the reason.
    failed: Mapping[str, str]

    @property
    def settled(self) -> bool:
        """There is nothing to wait for: all serve it, or one never will."""
        return not self.pending or bool(self.failed)

    @property
    def expected(self) -> int:
        return len(self.serving) + len(self.pending) + len(self.failed)


def progress(
    deployment: catalog_pb2.Deployment, nodes: Iterable[admin_pb2.Node], replicas: Iterable[catalog_pb2.Replica]
) -> Progress:
    """Judges by what the nodes said last. Nodes that are away, leaving or cordoned are not waited for."""
    said = {replica.node: replica.status for replica in replicas if replica.status.digest == deployment.digest}
    serving: list[str] = []
    pending: dict[str, str] = {}
    failed: dict[str, str] = {}
    for node in nodes:
        if not _is_expected(node, deployment):
            continue
        status = said.get(node.id)
        if status is None:
            pending[node.id] = WAITING
        elif status.state == node_pb2.REPLICA_STATE_READY:
            serving.append(node.id)
        elif status.state == node_pb2.REPLICA_STATE_FAILED:
            failed[node.id] = status.detail or "it gave no reason"
        else:
            pending[node.id] = records.replica_state(status)
    return Progress(serving=tuple(serving), pending=pending, failed=failed)


def _is_expected(node: admin_pb2.Node, deployment: catalog_pb2.Deployment) -> bool:
    covered = (not deployment.sites or node.site in deployment.sites) and (
        not deployment.regions or node.region in deployment.regions
    )
    covered = covered and (not deployment.replicas or node.id in deployment.nodes)
    away = not node.live or node.removed or node.draining or node.cordoned
    return covered and not away and node.kind == admin_pb2.NODE_KIND_NODE


async def follow(
    admin: AdminClient,
    deployment: catalog_pb2.Deployment,
    *,
    limit_s: float,
    on_progress: Callable[[Progress], None],
) -> Progress:
    """Waits until the deployment has settled. Raises DeadlineExceeded that names who was not ready in time."""
    found: Progress | None = None
    try:
        async with asyncio.timeout(limit_s):
            while True:
                nodes, model = await asyncio.gather(admin.nodes(), admin.model(deployment.model))
                found = progress(deployment, nodes, model.replicas)
                on_progress(found)
                if found.settled:
                    return found
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        late = ", ".join(f"{node} ({state})" for node, state in found.pending.items()) if found else "unknown"
        name = f"{deployment.model}@{deployment.version}"
        raise DeadlineExceeded(
            f"{name} is deployed, but after {limit_s:g} s not yet served by {late}; "
            f"`nearmesh model show {deployment.model}` says how far it is"
        ) from None
