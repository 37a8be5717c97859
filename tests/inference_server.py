"""The agent's inference service in this process, on a port of its own, over packages made by `tiny_models`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from nearmesh_agent.engines.onnx import OnnxEngines
from nearmesh_agent.serving.metrics import ServingMetrics
from nearmesh_agent.serving.replica import Replica, ReplicaConfig
from nearmesh_agent.serving.servicer import InferenceServicer, Place
from nearmesh_agent.serving.table import ReplicaTable
from tritonclient.grpc import service_pb2_grpc

from nearmesh.package import Package
from nearmesh.rpc import EVERYONE, CallInterceptor, Gatekeeper

PLACE = Place(node="node-1", site="site-1", region="europe-west1")


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
async def serving(replicas: Sequence[Replica], options: Sequence[tuple[str, Any]] = ()) -> AsyncIterator[Running]:
    """Serves `replicas` on 127.0.0.1 without tokens, and closes them afterwards."""
    table, metrics = ReplicaTable(), ServingMetrics()
    for replica in replicas:
        table.put(replica)
    servicer = InferenceServicer(table, PLACE, metrics=metrics)
    gatekeeper = Gatekeeper(
        mesh="test", verifier=None, policy={"/inference.GRPCInferenceService/": EVERYONE}, open_door=True
    )
    server = grpc.aio.server(interceptors=[CallInterceptor(gatekeeper)], options=list(options))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Running(f"127.0.0.1:{port}", servicer, table, metrics)
    finally:
        await server.stop(grace=None)
        for replica in replicas:
            await replica.close()
