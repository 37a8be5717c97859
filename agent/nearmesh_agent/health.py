"""Keeps grpc.health.v1 in step with the truth: "" is the node, any other name a model."""

from __future__ import annotations

import asyncio

from nearmesh.transport.health import Health
from nearmesh_agent.serving.servicer import InferenceServicer
from nearmesh_agent.serving.table import ReplicaTable

# A stalled engine shows only with time, so readiness is looked at besides being told. A tenth of the five seconds
# within which a node must say that it is not ready.
LOOK_EVERY_S = 0.5


async def follow_readiness(
    status: Health, servicer: InferenceServicer, table: ReplicaTable, changed: asyncio.Event
) -> None:
    """For ever; `changed` hurries the next look."""
    known: set[str] = set()
    while True:
        changed.clear()
        ready = [replica for replica in table if replica.ready and not replica.on_trial]
        serving = {replica.name for replica in ready if not servicer.draining}
        for model in known | serving:
            status.put(model, serving=model in serving)
        known |= serving
        status.put("", serving=servicer.ready)
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await changed.wait()
        except TimeoutError:
            pass
