"""Passes on to the leader what clients report to another control plane: an SDK or an `xds:///` client keeps to one.

It goes in the reporter's own name, so that the leader believes it as far as it would believe the client itself. Nodes
and gateways find the leader by themselves.
"""

from __future__ import annotations

import time

import grpc

from nearmesh.rpc import from_rpc_error
from nearmesh.v1 import route_pb2, route_pb2_grpc
from nearmesh_controlplane.registry.authority import Authority

# A report that is late is worth little; newer ones follow.
WITHIN_S = 2.0
# Long enough for the way there, and for clocks that differ.
TOKEN_S = 60.0


class Relay:
    """One connection to whoever leads. `close` when done."""

    def __init__(self, authority: Authority) -> None:
        self._issuer = authority.issuer
        self._credentials = grpc.ssl_channel_credentials(authority.ca_pem)
        self._target = ""
        self._channel: grpc.aio.Channel | None = None

    async def report(self, target: str, request: route_pb2.ReportLatencyRequest, reporter: str) -> None:
        """Raises what the leader raised, and Unreachable."""
        token = self._issuer.access(reporter, "client", now_s=time.time(), lifetime_s=TOKEN_S)
        stub = route_pb2_grpc.RouteServiceStub(await self._to(target))
        try:
            await stub.ReportLatency(request, timeout=WITHIN_S, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def close(self) -> None:
        if self._channel:
            await self._channel.close()

    async def _to(self, target: str) -> grpc.aio.Channel:
        if self._channel is None or target != self._target:
            before, self._target = self._channel, target
            self._channel = grpc.aio.secure_channel(target, self._credentials)
            if before:
                await before.close()
        return self._channel
