"""The control planes as the SDK reaches them: one after the other, on connections that are kept."""

from __future__ import annotations

import asyncio

import grpc

from nearmesh import addresses
from nearmesh.client.channels import CHANNEL_OPTIONS
from nearmesh.client.settings import ConnectSettings
from nearmesh.errors import DeadlineExceeded, MeshError, Unreachable
from nearmesh.turns import Turns
from nearmesh.v1 import route_pb2_grpc


class ControlPlanes:
    """Any of them answers; the one that does is asked until it does not. `close` when done."""

    def __init__(self, settings: ConnectSettings) -> None:
        self._credentials = grpc.ssl_channel_credentials(settings.ca_pem)
        self._turns = Turns(addresses.several(settings.control_plane))
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def address(self) -> str:
        """host:port of the one to ask now."""
        return self._turns.current

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._turns.order

    def channel(self, address: str) -> grpc.aio.Channel:
        """The connection to one of them."""
        if address not in self._channels:
            self._channels[address] = grpc.aio.secure_channel(address, self._credentials, CHANNEL_OPTIONS)
        return self._channels[address]

    def routes(self, address: str) -> route_pb2_grpc.RouteServiceStub:
        """The route service of one of them."""
        return route_pb2_grpc.RouteServiceStub(self.channel(address))

    def answered(self) -> None:
        """The present one does."""
        self._turns.answered()

    def failed(self, address: str, error: MeshError | None = None) -> bool:
        """Turns to the next one, unless `error` says that it is there. Whether all were asked in vain."""
        if error is not None and not isinstance(error, Unreachable | DeadlineExceeded):
            return True
        return self._turns.failed(address)

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close() for channel in channels))
