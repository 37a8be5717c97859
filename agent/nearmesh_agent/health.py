"""Keeps grpc.health.v1 in step with the truth: "" is the node, any other name a model."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health, health_pb2

from nearmesh_agent.serving.servicer import InferenceServicer
from nearmesh_agent.serving.table import ReplicaTable

# A stalled engine shows only with time, so readiness is looked at besides being told. A tenth of the five seconds
# within which a node must say that it is not ready.
LOOK_EVERY_S = 0.5


async def follow_readiness(
    status: health.aio.HealthServicer, servicer: InferenceServicer, table: ReplicaTable, changed: asyncio.Event
) -> None:
    """For ever; `changed` hurries the next look."""
    known: set[str] = set()
    while True:
        changed.clear()
        serving = {replica.name for replica in table if replica.ready and not servicer.draining}
        for model in known | serving:
            await status.set(model, _state(model in serving))
        known |= serving
        await status.set("", _state(servicer.ready))
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await changed.wait()
        except TimeoutError:
            pass


def _state(ready: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
