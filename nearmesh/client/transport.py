"""The seam between what the client decides and how bytes travel; a test puts a fake here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tritonclient.grpc import service_pb2

from nearmesh.client.picker import Endpoint
from nearmesh.errors import Unreachable


class NotSent(Unreachable):
    """No connection could be made, so the request never left this machine."""

    reason = "NOT_SENT"


@dataclass(frozen=True, slots=True)
class Reply:
    """A node's answer. `warm`: the connection had carried a call before, so the time taken is a round trip's."""

    response: service_pb2.ModelInferResponse
    warm: bool


class Transport(Protocol):
    """Calls to nodes. Errors are those of `nearmesh.errors`; NotSent where the request cannot have left."""

    async def infer(self, endpoint: Endpoint, request: service_pb2.ModelInferRequest, timeout_s: float) -> Reply:
        """One unary inference."""
        ...

    async def live(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """Asks whether the node is alive; returns whether the connection was warm."""
        ...
