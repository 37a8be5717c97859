"""grpc.health.v1: "" is the whole process; on a node, any other name is a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from nearmesh.errors import NotFound

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The service. Watchers know nothing of each other, and what they ask for is not kept."""

    def __init__(self) -> None:
        self._states: dict[str, int] = {"": health_pb2.HealthCheckResponse.NOT_SERVING}
        self._changed = asyncio.Event()
        self._leaving = self._ended = False

    def put(self, name: str, *, serving: bool) -> None:
        """Says how `name` is; once the process leaves, nothing serves any more."""
        state = health_pb2.HealthCheckResponse.NOT_SERVING
        if serving and not self._leaving:
            state = health_pb2.HealthCheckResponse.SERVING
        if self._states.get(name) != state:
            self._states[name] = state
            self._tell()

    def leave(self) -> None:
        """The process leaves, and so does all that it serves."""
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
            raise NotFound(f"nothing of the name {request.service[:200]!r} is or was served here")
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
