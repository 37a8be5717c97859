"""Nodes that play a script, and an event loop whose clock jumps to the next timer instead of waiting."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from tritonclient.grpc import service_pb2

from nearmesh import errors
from nearmesh.client.picker import Endpoint
from nearmesh.client.transport import Reply

T = TypeVar("T")
# What a node does when it is asked: after so many seconds, answer ("ok") or raise.
Act = tuple[float, str | errors.MeshError]
NEVER = 1e6


class JumpingSelector(selectors.DefaultSelector):
    """Nothing comes from outside, so instead of waiting time moves on."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "the loop waits for ever"
        self.now_s += max(0.0, timeout)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


def on_jumping_clock(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


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
