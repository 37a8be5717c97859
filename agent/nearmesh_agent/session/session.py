"""The session with the control plane: reports up, wanted state down, taken up again for ever when it breaks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable

import grpc

from nearmesh.rpc import from_rpc_error
from nearmesh.tls import Credentials
from nearmesh.v1 import node_pb2 as pb
from nearmesh.v1 import node_pb2_grpc

log = logging.getLogger(__name__)

REPORT_EVERY_S = 1.0
# Waits between attempts grow from the first to the second, each shortened by up to half so that nodes do not march
# in step after the control plane's restart.
BACKOFF_S = (0.2, 5.0)

# Notices a dead path although nothing is being sent.
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class Session:
    """Keeps one stream to the control plane. `report_now` hurries the next report."""

    def __init__(
        self,
        target: str,
        credentials: Callable[[], Credentials],
        hello: Callable[[], pb.NodeHello],
        status: Callable[[], pb.NodeStatus],
        on_wanted: Callable[[pb.WantedState], None],
    ) -> None:
        self._target = target
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
        wait_s = BACKOFF_S[0]
        while True:
            try:
                async for state in self._one_session():
                    wait_s = BACKOFF_S[0]
                    self._on_wanted(state)
                log.info("session ended by the control plane")
            except grpc.RpcError as error:
                log.info("session lost: %s", from_rpc_error(error).message)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, BACKOFF_S[1])

    async def _one_session(self) -> AsyncIterator[pb.WantedState]:
        credentials = self._credentials().channel_credentials()
        async with grpc.aio.secure_channel(self._target, credentials, options=_KEEPALIVE) as channel:
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
