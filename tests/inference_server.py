"""The agent's inference service in this process, on a port of its own, over packages made by `tiny_models`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.server import add_servicers
from nearmesh_agent.serving.metrics import ServingMetrics
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.replica_config import ReplicaConfig
from nearmesh_agent.serving.responses import Place
from nearmesh_agent.serving.servicer import InferenceServicer
from nearmesh_agent.serving.table import ReplicaTable

from nearmesh.package import Package
from nearmesh.rpc import EVERYONE, Gatekeeper
from nearmesh.transport.health import Health
from nearmesh.transport.server import Server

PLACE = Place(node="node-1", site="site-1", region="europe-west1")
# As the agent's default.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Running:
    address: str
    servicer: InferenceServicer
    table: ReplicaTable
    metrics: ServingMetrics


async def load(folder: Path, package: Package, config: ReplicaConfig | None = None) -> Replica:
    digest = "sha256:" + hashlib.sha256(f"{folder}{package}".encode()).hexdigest()
    return await Replica.load(folder, digest, engine_factory=OnnxEngines(threads=1), package=package, config=config)


@asynccontextmanager
async def serving(
    replicas: Sequence[Replica], *, max_message_bytes: int = MAX_MESSAGE_BYTES, verifier: Any = None
) -> AsyncIterator[Running]:
    """Serves `replicas` on 127.0.0.1, and closes them afterwards. `verifier` reads tokens; none is demanded."""
    table = ReplicaTable()
    metrics = ServingMetrics(table)
    for replica in replicas:
        table.put(replica)
    servicer = InferenceServicer(table, PLACE, metrics=metrics)
    gatekeeper = Gatekeeper(
        mesh="test", verifier=verifier, policy={"/inference.GRPCInferenceService/": EVERYONE}, open_door=True
    )
    server = Server(gatekeeper, max_message_bytes)
    add_servicers(server, servicer, Health())
    address = server.listen_plain("127.0.0.1:0")
    await server.start()
    forgetting = asyncio.create_task(servicer.forget_idle())
    mirroring = asyncio.create_task(servicer.mirror.run())
    try:
        yield Running(address, servicer, table, metrics)
    finally:
        forgetting.cancel()
        mirroring.cancel()
        await server.stop(None)
        for replica in replicas:
            await replica.close()
