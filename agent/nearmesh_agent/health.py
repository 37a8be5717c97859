"""grpc.health.v1, in step with the truth: "" is the node, any other name a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from nearmesh.errors import NotFound
from nearmesh_agent.serving.servicer import InferenceServicer
from nearmesh_agent.serving.table import ReplicaTable

# A stalled engine shows only with time, so readiness is looked at besides being told. A tenth of the five seconds
# within which a node must say that it is not ready.
LOOK_EVERY_S = 0.5

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The service. Watchers know nothing of each other, and what they ask for is not kept."""

    def __init__(self) -> None:
        self._states: dict[str, int] = {"": health_pb2.HealthCheckResponse.NOT_SERVING}
        self._changed = asyncio.Event()
        self._leaving = self._ended = False

    def put(self, name: str, *, serving: bool) -> None:
        """Says how `name` is; once the node leaves, nothing serves any more."""
        state = health_pb2.HealthCheckResponse.NOT_SERVING
        if serving and not self._leaving:
            state = health_pb2.HealthCheckResponse.SERVING
        if self._states.get(name) != state:
            self._states[name] = state
            self._tell()

    def leave(self) -> None:
        """The node leaves, and so does all that it serves."""
        self._leaving = True
        for name in self._states:
            self._states[name] = health_pb2.HealthCheckResponse.NOT_SERVING
        self._tell()

    def end(self) -> None:
        """Watchers have heard all that there is to hear; the server waits for their calls to end."""
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        told, self._changed = self._changed, asyncio.Event()
        told.set()

    async def Check(self, request: Any, context: Any) -> Any:
        """Raises NotFound for a name that was never served here."""
        if request.service not in self._states:
            raise NotFound(f"nothing of the name {request.service[:200]!r} is or was served on this node")
        return health_pb2.HealthCheckResponse(status=self._states[request.service])

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The state, and from then on every other one."""
        said = None
        while True:
            changed = self._changed
            state = self._states.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if state != said:
                said = state
                yield health_pb2.HealthCheckResponse(status=state)
            if self._ended:
                return
            await changed.wait()


async def follow_readiness(
    status: Health, servicer: InferenceServicer, table: ReplicaTable, changed: asyncio.Event
) -> None:
    """For ever; `changed` hurries the next look."""
    known: set[str] = set()
    while True:
        changed.clear()
        serving = {replica.name for replica in table if replica.ready and not servicer.draining}
        for model in known | serving:
            status.put(model, serving=model in serving)
        known |= serving
        status.put("", serving=servicer.ready)
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await changed.wait()
        except TimeoutError:
            pass
