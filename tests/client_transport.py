"""Nodes that play a script, for a client on a clock that jumps."""

from __future__ import annotations

import asyncio
from typing import Any

from tritonclient.grpc import service_pb2

from nearmesh import errors
from nearmesh.client.picker import Endpoint
from nearmesh.client.transport import Reply

# What a node does when it is asked: after so many seconds, answer ("ok") or raise.
Act = tuple[float, str | errors.MeshError]
NEVER = 1e6


class ScriptedTransport:
    """Each node plays its acts in turn, the last one for ever."""

    def __init__(self, **acts: list[Act]) -> None:
        self._acts = acts
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    async def infer(self, endpoint: Endpoint, request: Any, timeout_s: float) -> Reply:
        node = endpoint.node
        acts = self._acts[node]
        after_s, what = acts.pop(0) if len(acts) > 1 else acts[0]
        self.asked.append(node)
        try:
            await asyncio.sleep(min(after_s, timeout_s))
        except asyncio.CancelledError:
            self.cancelled.append(node)
            raise
        if after_s > timeout_s:
            raise errors.DeadlineExceeded("too late")
        if isinstance(what, errors.MeshError):
            raise what
        response = service_pb2.ModelInferResponse(model_name=node)
        if what == "garbled":
            response.outputs.add(name="y", datatype="FP32", shape=[2])
            response.raw_output_contents.append(b"three")
        response.parameters["nearmesh_service_ms"].double_param = 1.0
        return Reply(response, warm=True)

    async def live(self, endpoint: Endpoint, timeout_s: float) -> bool:
        raise NotImplementedError
