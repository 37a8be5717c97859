"""RunService: federated runs for programs and for the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nearmesh.v1 import run_pb2 as pb
from nearmesh.v1 import run_pb2_grpc
from nearmesh_controlplane.runs.calls import RunCalls


class RunServicer(run_pb2_grpc.RunServiceServicer):
    """Answers data teams and operators."""

    def __init__(self, calls: RunCalls) -> None:
        self._calls = calls

    async def Start(self, request: pb.StartRunRequest, context: Any) -> pb.Run:
        return await self._calls.start(request)

    async def Get(self, request: pb.GetRunRequest, context: Any) -> pb.Run:
        return await self._calls.get(request)

    async def List(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        return await self._calls.list(request)

    async def Watch(self, request: pb.GetRunRequest, context: Any) -> AsyncIterator[pb.Run]:
        async for run in self._calls.watch(request):
            yield run

    async def Stop(self, request: pb.StopRunRequest, context: Any) -> pb.Run:
        return await self._calls.stop(request)

    async def Promote(self, request: pb.PromoteRunRequest, context: Any) -> pb.Run:
        return await self._calls.promote(request)
