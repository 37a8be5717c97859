"""gRPC to the nodes: one TLS channel for each, kept warm, and errors as those of `nearmesh.errors`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.client.picker import Endpoint
from nearmesh.client.settings import Token
from nearmesh.client.tasks import end
from nearmesh.client.transport import NotSent, Reply
from nearmesh.errors import MeshError, TooLarge, Unreachable
from nearmesh.rpc import REASON_KEY, from_rpc_error

# The size of a message is the server's to limit; gRPC's own 4 MB would refuse ordinary answers.
_UNLIMITED = -1
# Bytes that a peer may send ahead of being read: a large answer from far away takes one round trip instead of many.
_READ_AHEAD_BYTES = 4 * 1024 * 1024

# How both the nodes' channels and the control plane's behave.
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    ("grpc.http2.lookahead_bytes", _READ_AHEAD_BYTES),
    ("grpc.http2.bdp_probe", 1),
    # A peer that froze is found within 8 s while a call is open; without the second limit it would never be.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    # A node that comes back is used again soon; its probes ask no more often than `experience` lets them.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Whom to try next is decided here and nowhere else.
    ("grpc.enable_retries", 0),
)

# What grpc.aio says of a request that it could not write any more, since its stream had just broken.
_NOT_WRITTEN = "Internal error from Core"

# Calls under way on a node that left every route may end by themselves within this time.
_GRACE_S = 30.0


class _NodeChannel:
    """A channel and its three calls."""

    def __init__(self, endpoint: Endpoint, credentials: grpc.ChannelCredentials) -> None:
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", endpoint.server_name))
        self.channel = grpc.aio.secure_channel(endpoint.address, credentials, options)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        # A call has been answered on the present connection.
        self.warm = False
        # Sequences that live on this connection.
        self.streams = 0

    @property
    def is_warm(self) -> bool:
        return self.warm and self.channel.get_state() is grpc.ChannelConnectivity.READY

    def end_stream(self) -> None:
        self.streams -= 1


class Channels:
    """The real Transport. `close` when done."""

    def __init__(self, ca_pem: bytes, token: Token) -> None:
        self._credentials = grpc.ssl_channel_credentials(ca_pem)
        self._token = token
        self._channels: dict[tuple[str, str], _NodeChannel] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def infer(self, endpoint: Endpoint, request: service_pb2.ModelInferRequest, timeout_s: float) -> Reply:
        """One unary inference. Raises the node's error, NotSent or Unreachable."""
        found = self._get(endpoint)
        warm = found.is_warm
        response = await self._call(found, found.stub.ModelInfer, request, timeout_s)
        return Reply(response, warm)

    async def live(self, endpoint: Endpoint, timeout_s: float) -> bool:
        """A ServerLive call; returns whether the connection was warm. Raises as `infer` does."""
        found = self._get(endpoint)
        warm = found.is_warm
        await self._call(found, found.stub.ServerLive, service_pb2.ServerLiveRequest(), timeout_s)
        return warm

    def stream(self, endpoint: Endpoint) -> Any:
        """A ModelStreamInfer call (grpc.aio.StreamStreamCall)."""
        found = self._get(endpoint)
        stream = found.stub.ModelStreamInfer(metadata=self._metadata())
        found.streams += 1
        stream.add_done_callback(lambda _: found.end_stream())
        return stream

    def retain(self, endpoints: Iterable[Endpoint]) -> None:
        """Closes the channels of all other endpoints, once their calls have ended; those with sequences stay."""
        keep = {(endpoint.address, endpoint.server_name) for endpoint in endpoints}
        for key in [key for key, found in self._channels.items() if key not in keep and not found.streams]:
            task = asyncio.ensure_future(self._channels.pop(key).channel.close(_GRACE_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Cancels every call and closes every connection."""
        self._closed = True
        await end(self._closing)
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(found.channel.close() for found in channels))

    def _get(self, endpoint: Endpoint) -> _NodeChannel:
        key = (endpoint.address, endpoint.server_name)
        found = self._channels.get(key)
        if found is None:
            found = self._channels[key] = _NodeChannel(endpoint, self._credentials)
        return found

    async def _call(self, found: _NodeChannel, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            response = await method(request, timeout=timeout_s, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            raise_if_cancelled(error)
            found.warm = found.warm and error.code() is not grpc.StatusCode.UNAVAILABLE
            raise call_error(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed or (task and task.cancelling()):
                raise
            # gRPC's word for a call whose connection was closed here, after the grace: nobody wanted the call to end.
            raise Unreachable("the node left every route, and did not answer within the time that it had") from None
        found.warm = True
        return response

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return self._token.metadata(asyncio.get_running_loop().time())


def raise_if_cancelled(error: grpc.aio.AioRpcError) -> None:
    """Raises CancelledError if it was the present task that was cancelled.

    gRPC may report that as an ordinary status; taken for a node's failure, a task that tries again would never end.
    """
    task = asyncio.current_task()
    if error.code() is grpc.StatusCode.CANCELLED and task and task.cancelling():
        raise asyncio.CancelledError from error


def call_error(error: grpc.aio.AioRpcError) -> MeshError:
    """The node's own error, or what gRPC's own status means here: a node answers with a reason, gRPC does not."""
    if any(key == REASON_KEY for key, _ in error.trailing_metadata() or ()):
        return from_rpc_error(error)
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect"):
        return NotSent(details)
    if code is grpc.StatusCode.INTERNAL and details == _NOT_WRITTEN:
        return Unreachable("the connection to the node broke")
    if code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
        # We did not cancel it (that would be a CancelledError): the node stopped, or the stream broke.
        return Unreachable(details or "the node ended the call")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge(details)
    return from_rpc_error(error)
