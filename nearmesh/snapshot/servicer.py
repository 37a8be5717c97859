"""RouteService from a snapshot, read-only: what a node answers in the control plane's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from nearmesh.errors import Draining, NotReady
from nearmesh.ids import check_label
from nearmesh.regions import region_near
from nearmesh.routing import parse_objective
from nearmesh.snapshot.keeper import SnapshotKeeper
from nearmesh.v1 import route_pb2 as pb
from nearmesh.v1 import route_pb2_grpc


class SnapshotRouteServicer(route_pb2_grpc.RouteServiceServicer):
    """Resolve, Explain, Watch and WatchSnapshot; `leaving` ends the open streams."""

    def __init__(self, keeper: SnapshotKeeper, leaving: asyncio.Event) -> None:
        self._keeper = keeper
        self._leaving = leaving

    async def Resolve(self, request: pb.ResolveRequest, context: Any) -> pb.Route:
        return self._route(request)

    async def Explain(self, request: pb.ResolveRequest, context: Any) -> pb.Route:
        # Who could not serve does not stand in a snapshot.
        return self._route(request)

    async def Watch(self, request: pb.ResolveRequest, context: Any) -> AsyncIterator[pb.Route]:
        seen = 0
        while True:
            seen = await self._news(seen)
            yield self._route(request)

    async def WatchSnapshot(self, request: pb.WatchSnapshotRequest, context: Any) -> AsyncIterator[pb.SignedSnapshot]:
        """The whole one, whatever region is asked for: a part of it would not be what was signed."""
        seen = 0
        while True:
            seen = await self._news(seen)
            self._keeper.routes()
            if self._keeper.signed is None:
                raise NotReady("there is no snapshot here yet")
            yield self._keeper.signed

    def _route(self, request: pb.ResolveRequest) -> pb.Route:
        objective = parse_objective(request.objective) if request.objective else ""
        return self._keeper.routes().route(request.model, client_region(request), objective)

    async def _news(self, seen: int) -> int:
        """The keeper's next change. Raises Draining when the node leaves."""
        waiting = {asyncio.ensure_future(self._keeper.changed(seen)), asyncio.ensure_future(self._leaving.wait())}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if self._leaving.is_set():
            raise Draining("the node leaves; ask another one, or the control plane")
        return await self._keeper.changed(seen)


def client_region(request: pb.ResolveRequest) -> str:
    """The client's region by name, or the one nearest to where it is. Raises InvalidInput."""
    if request.region or not (request.HasField("latitude") and request.HasField("longitude")):
        return check_label("region", request.region)
    return region_near(request.latitude, request.longitude)
