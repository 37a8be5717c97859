"""The session with the control plane: reports up, wanted state down, taken up again for ever when it breaks.

Of several control planes the one that leads takes it; the others send the node on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable

import grpc

from nearmesh.membership import KEEPALIVE
from nearmesh.rpc import from_rpc_error
from nearmesh.tls import Credentials
from nearmesh.turns import Turns
from nearmesh.v1 import node_pb2 as pb
from nearmesh.v1 import node_pb2_grpc

log = logging.getLogger(__name__)

REPORT_EVERY_S = 1.0
# Waits between attempts grow from the first to the second, each shortened by up to half so that nodes do not march
# in step after the control plane's restart. Of several control planes, all are asked between two waits; a new leader is
# there within seconds.
BACKOFF_S = (0.2, 5.0)
BACKOFF_OF_SEVERAL_S = (0.2, 1.0)


class Session:
    """Keeps one stream to the control plane. `report_now` hurries the next report."""

    def __init__(
        self,
        control_planes: Turns,
        credentials: Callable[[], Credentials],
        hello: Callable[[], pb.NodeHello],
        status: Callable[[], pb.NodeStatus],
        on_wanted: Callable[[pb.WantedState], None],
    ) -> None:
        self._control_planes = control_planes
        self._credentials = credentials
        self._hello = hello
        self._status = status
        self._on_wanted = on_wanted
        self._hurry = asyncio.Event()

    def report_now(self) -> None:
        """Something changed that the control plane should know at once."""
        self._hurry.set()

    async def run(self) -> None:
        """For ever."""
        failed = 0
        while True:
            target = self._control_planes.current
            try:
                async for state in self._one_session(target):
                    failed = 0
                    self._control_planes.answered()
                    self._on_wanted(state)
                log.info("session ended by the control plane")
            except grpc.RpcError as error:
                log.info("session lost: %s", from_rpc_error(error).message)
            if self._control_planes.failed(target):
                await asyncio.sleep(self._wait_s(failed) * random.uniform(0.5, 1.0))
                failed += 1

    def _wait_s(self, failed: int) -> float:
        first, most = BACKOFF_S if len(self._control_planes) == 1 else BACKOFF_OF_SEVERAL_S
        return float(min(first * 2 ** min(failed, 10), most))

    async def _one_session(self, target: str) -> AsyncIterator[pb.WantedState]:
        credentials = self._credentials().channel_credentials()
        async with grpc.aio.secure_channel(target, credentials, options=KEEPALIVE) as channel:
            call = node_pb2_grpc.NodeServiceStub(channel).Session(self._reports())
            async for state in call:
                yield state

    async def _reports(self) -> AsyncIterator[pb.NodeReport]:
        yield pb.NodeReport(hello=self._hello())
        while True:
            self._hurry.clear()
            yield pb.NodeReport(status=self._status())
            try:
                async with asyncio.timeout(REPORT_EVERY_S):
                    await self._hurry.wait()
            except TimeoutError:
                pass
