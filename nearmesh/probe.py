"""Measures network round trips to nodes, again and again: what gateways and nodes do for the clients of their region.

A tiny call on a connection that stays open, so that neither handshakes nor inference count; clients of the same region
see the same network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
from tritonclient.grpc import service_pb2

from nearmesh.membership import KEEPALIVE

log = logging.getLogger(__name__)

# An answer that takes longer tells about the node, not about the network.
CALL_TIMEOUT_S = 2.0
_SERVER_LIVE = "/inference.GRPCInferenceService/ServerLive"


@dataclass(frozen=True, slots=True)
class Target:
    """A node to measure: its address as seen from here, and the name in its certificate."""

    node: str
    address: str
    server_name: str


class Echo(Protocol):
    """An open connection to one node."""

    async def call(self) -> bool:
        """Makes one round trip; False when the node did not answer in time."""
        ...

    async def close(self) -> None: ...


Report = Callable[[Mapping[str, Sequence[float]]], Awaitable[None]]


class Probe:
    """Measures all targets side by side; `run` makes a `round` each second."""

    def __init__(
        self,
        *,
        targets: Callable[[], Awaitable[Sequence[Target]]],
        connect: Callable[[Target], Echo],
        report: Report,
        clock: Callable[[], float],
    ) -> None:
        self._targets = targets
        self._connect = connect
        self._report = report
        self._clock = clock
        self._open: dict[Target, Echo] = {}
        # Connections that have answered once; a first call pays for the handshakes and is no sample.
        self._warm: set[Target] = set()

    async def round(self) -> None:
        """Measures every target once and reports the round trips in milliseconds by node, if there are any."""
        targets = await self._targets()
        await self._follow(targets)
        times = await asyncio.gather(*(self._measure(target) for target in targets))
        samples = {target.node: [ms] for target, ms in zip(targets, times, strict=True) if ms is not None}
        if samples:
            await self._report(samples)

    async def run(self, wanted: Callable[[], bool], every_s: float = 1.0) -> None:
        """Measures while it is wanted, then closes its connections."""
        try:
            while wanted():
                await self.round()
                await asyncio.sleep(every_s)
        finally:
            await self.close()

    async def close(self) -> None:
        """Closes every connection. Safe to repeat."""
        await self._follow(())

    async def _follow(self, targets: Sequence[Target]) -> None:
        for gone in self._open.keys() - set(targets):
            self._warm.discard(gone)
            await self._open.pop(gone).close()
        for target in targets:
            if target not in self._open:
                self._open[target] = self._connect(target)

    async def _measure(self, target: Target) -> float | None:
        start = self._clock()
        answered = await self._open[target].call()
        elapsed_ms = (self._clock() - start) * 1000
        if not answered:
            self._warm.discard(target)
            return None
        if target not in self._warm:
            self._warm.add(target)
            return None
        return elapsed_ms


class ServerLiveEcho:
    """A round trip by the inference protocol's cheapest call, over the node's mesh listener."""

    def __init__(self, target: Target, credentials: grpc.ChannelCredentials) -> None:
        # Without keepalive, a connection that a partition left behind would answer again minutes after it.
        options = [*KEEPALIVE, ("grpc.ssl_target_name_override", target.server_name), ("grpc.enable_retries", 0)]
        self._node = target.node
        self._channel = grpc.aio.secure_channel(target.address, credentials, options=options)
        self._live = self._channel.unary_unary(
            _SERVER_LIVE,
            request_serializer=service_pb2.ServerLiveRequest.SerializeToString,
            response_deserializer=service_pb2.ServerLiveResponse.FromString,
        )

    async def call(self) -> bool:
        try:
            await self._live(service_pb2.ServerLiveRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.debug("probe failed node=%s: %s", self._node, error.code())
            return False
        return True

    async def close(self) -> None:
        await self._channel.close()
