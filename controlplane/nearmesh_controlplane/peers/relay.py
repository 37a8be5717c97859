"""Asks the leader what people ask another control plane, and passes on what clients report to it: they keep to one.

It goes in the asker's own name, so that the leader believes it as far as it would believe the client itself. Nodes and
gateways find the leader by themselves.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
from google.protobuf.message import Message

from nearmesh.rpc import from_rpc_error
from nearmesh.v1 import route_pb2_grpc
from nearmesh_controlplane.registry.authority import Authority

# A report that is late is worth little; newer ones follow. And people are told what is known here instead.
WITHIN_S = 2.0
# Long enough for the way there, and for clocks that differ.
TOKEN_S = 60.0
# Metadata of what was passed on once: two control planes that each take the other for the leader end it at that.
RELAYED_KEY = "nearmesh-relayed"


class Relay:
    """One connection to whoever leads. `close` when done."""

    def __init__(self, authority: Authority) -> None:
        self._issuer = authority.issuer
        self._credentials = grpc.ssl_channel_credentials(authority.ca_pem)
        self._target = ""
        self._channel: grpc.aio.Channel | None = None

    async def ask(self, target: str, method: str, request: Message, asker: str) -> Any:
        """What the RouteService of the leader answers. Raises what it raised, and Unreachable."""
        token = self._issuer.access(asker, "client", now_s=time.time(), lifetime_s=TOKEN_S)
        metadata = (("authorization", f"Bearer {token}"), (RELAYED_KEY, "1"))
        call = getattr(route_pb2_grpc.RouteServiceStub(await self._to(target)), method)
        try:
            return await call(request, timeout=WITHIN_S, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def close(self) -> None:
        if self._channel:
            await self._channel.close()

    async def _to(self, target: str) -> grpc.aio.Channel:
        if self._channel is None or target != self._target:
            before, self._target = self._channel, target
            # What the leader says of a large mesh is as large as it is.
            options = [("grpc.max_receive_message_length", -1)]
            self._channel = grpc.aio.secure_channel(target, self._credentials, options=options)
            if before:
                await before.close()
        return self._channel
