"""A node in this process with a standing version and one on trial, under steady traffic from a stock client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nearmesh_agent.config import NodeConfig
from nearmesh_agent.serving.replica import Replica
from tritonclient.grpc import service_pb2_grpc

from nearmesh.v1 import node_pb2 as pb
from tests.hot_swaps import Deployer, digest
from tests.integration.mesh_processes import question
from tests.serving_node import Running, serving_node
from tests.steady_traffic import Traffic


class TrialNode:
    """Versions lie in the folders v1, v2, ... of one folder; each adds its own number."""

    def __init__(self, folder: Path, node: Running) -> None:
        self.node = node
        self.deployer = Deployer(folder, node, drain_s=0.0)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(node.channel)

    async def want(self, standing: int, trial: int = 0, *, share: float = 0.0, mirror: float = 0.0) -> None:
        """Returns when both are there, or the one on trial has failed."""
        wanted = [pb.WantedVersion(model="m", version=str(standing), digest=digest(standing))]
        if trial:
            wish = pb.WantedVersion(model="m", version=str(trial), digest=digest(trial))
            wish.trial.share, wish.trial.mirror_share = share, mirror
            wanted.append(wish)
        self.deployer.reconciler.want(pb.WantedState(versions=wanted))
        over = (pb.REPLICA_STATE_READY, pb.REPLICA_STATE_FAILED)
        async with asyncio.timeout(20):
            while any(self.state(version) not in over for version in (standing, trial) if version):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def status(self, version: int) -> pb.ReplicaStatus:
        found = [s for s in self.deployer.reconciler.statuses() if s.digest == digest(version)]
        return found[0] if found else pb.ReplicaStatus()

    def state(self, version: int) -> pb.ReplicaState:
        return self.status(version).state

    def replica(self, version: int) -> Replica | None:
        return self.node.node.table.by_digest(digest(version))

    async def ask(self, version: str = "", *, timeout_s: float = 5.0, receipt: bool = False) -> Any:
        request = question("m", version)
        request.parameters["nearmesh_receipt"].bool_param = receipt
        return await self.stub.ModelInfer(request, timeout=timeout_s)

    async def traffic(self, seconds: float, **options: float) -> Traffic:
        """Once all of it has been answered."""
        found = Traffic(self.stub, **options)
        await found.run(seconds)
        return found


@asynccontextmanager
async def trial_node(folder: Path, **config: Any) -> AsyncIterator[TrialNode]:
    """Everything is ended and closed afterwards, but for calls that hang."""
    async with serving_node(NodeConfig(data=folder, grace_s=0.1, **config)) as node:
        found = TrialNode(folder, node)
        try:
            yield found
        finally:
            await found.deployer.reconciler.close()
