"""The aggregated discovery service: one stream to each gRPC client and each Envoy gateway, told of what concerns it.

A gateway proves itself by its certificate. gRPC's own xDS client can send no bearer token, so a client's token may
stand in the first request's node metadata instead of the call's headers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from nearmesh.errors import DeadlineExceeded, InvalidInput, MeshError, PermissionDenied, Unauthenticated, Unsupported
from nearmesh.gateway.metadata import GatewayMetadata
from nearmesh.ids import check_label
from nearmesh.routing.table import RouteSource
from nearmesh.rpc import ANYONE, PEOPLE, Identity, caller
from nearmesh.tokens import TokenVerifier
from nearmesh.xds.delivery import Delivery, Stream
from nearmesh.xds.envoy_gateway import GatewayResources, gateway_model
from nearmesh.xds.grpc_client import client_model
from nearmesh.xds.index import View
from nearmesh.xds.resources import Resources
from nearmesh.xds.subscription import Subscription

log = logging.getLogger(__name__)

# Where a gRPC client's bootstrap carries its bearer token.
TOKEN_KEY = "token"

# Who opens a stream knows what to ask; anybody may open one, so an idle one is not kept.
ASK_WITHIN_S = 10.0

Requests = AsyncIterator[discovery_pb2.DiscoveryRequest]
# Tells a stream that it is to end, by returning with what.
Dismissal = Callable[[], Awaitable[MeshError]]
# What a stream is to know at this moment.
Builder = Callable[[View, Subscription], Resources]


def identity(verifier: TokenVerifier, node: base_pb2.Node) -> Identity:
    """Who opened the stream that is being answered: by certificate or header, else by its node's metadata.

    Raises Unauthenticated.
    """
    who = caller()
    if who.role != ANYONE:
        return who
    token = dict(node.metadata).get(TOKEN_KEY)
    if not isinstance(token, str):
        raise Unauthenticated(f"no token: put one under node.metadata.{TOKEN_KEY} of the xDS bootstrap")
    bearer = verifier.access(token)
    return Identity(bearer.subject, bearer.role, bearer.namespace)


def _anybody(_: Identity) -> None:
    return None


def _from_anywhere(_: str) -> str | None:
    return None


class AggregatedDiscovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """State-of-the-world ADS over a RouteSource, for `nearmesh.transport`: responses are yielded serialized.

    `region_of` gives the region that a gateway joined for, by its id, where that is known. `check` raises once an
    identity may no longer listen; of gateways it is asked at every change. `dismissal` is awaited beside each stream.
    """

    def __init__(
        self,
        *,
        source: RouteSource,
        mesh: str,
        verifier: TokenVerifier,
        jwks_json: Callable[[], str],
        region_of: Callable[[str], str | None] = _from_anywhere,
        check: Callable[[Identity], None] = _anybody,
        dismissal: Dismissal | None = None,
    ) -> None:
        self._delivery = Delivery(source, {"public": functools.partial(client_model, mesh), "mesh": gateway_model})
        self._mesh = mesh
        self._verifier = verifier
        self._jwks_json = jwks_json
        self._region_of = region_of
        self._check = check
        self._dismissal = dismissal
        # How many responses were refused (NACK) since the start: a bug in what was built, or a client too old for it.
        self.refused = 0
        # How many were sent, and the streams that are open.
        self.pushed = 0
        self.streams = 0

    async def StreamAggregatedResources(self, requests: Requests, context: Any) -> AsyncIterator[bytes]:
        """Answers the stream's requests and pushes every change until the stream ends."""
        first = await _first(requests)
        if first is None:
            return
        who = identity(self._verifier, first.node)
        region = self._region(who, first.node)
        log.info("xds stream opened peer=%s region=%s", who, region)
        self.streams += 1
        try:
            async with aclosing(self._serve(first, requests, who, region)) as responses:
                async for response in responses:
                    self.pushed += 1
                    yield response
        finally:
            self.streams -= 1
            log.info("xds stream closed peer=%s", who)

    async def DeltaAggregatedResources(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Refused: both gRPC and our gateways speak state-of-the-world."""
        raise Unsupported("incremental xDS is not offered; use StreamAggregatedResources")
        yield

    def _region(self, who: Identity, node: base_pb2.Node) -> str:
        """The region that the stream is for. Raises InvalidInput, PermissionDenied."""
        region: str = node.locality.region
        if not region:
            raise InvalidInput("the xDS node names no region; set node.locality.region")
        check_label("region", region)
        if who.role == "gateway":
            own = self._region_of(who.name)
            if own is not None and region != own:
                raise PermissionDenied(f"{who} joined for region {own!r}, and asks for {region!r}")
        elif who.role not in PEOPLE:
            raise PermissionDenied(f"{who} has no use for xDS; it is for clients and gateways")
        return region

    async def _serve(
        self, first: discovery_pb2.DiscoveryRequest, requests: Requests, who: Identity, region: str
    ) -> AsyncGenerator[bytes, None]:
        gateway = who.role == "gateway"
        build = self._for_gateway(first.node) if gateway else _for_client
        stream = Stream(Subscription(str(who)), functools.partial(self._check, who) if gateway else None)
        with self._delivery.view(region, "mesh" if gateway else "public", stream) as view:
            self._take(first, stream, view)
            reader = asyncio.create_task(self._read(requests, stream, view))
            dismissed = [asyncio.ensure_future(self._dismissal())] if self._dismissal else []
            for task in (reader, *dismissed):
                task.add_done_callback(lambda _: stream.wake())
            try:
                while True:
                    await stream.news()
                    if dismissed and dismissed[0].done():
                        raise dismissed[0].result()
                    self._check(who)
                    over = reader.done()
                    for response in stream.subscription.pending(build(view, stream.subscription)):
                        yield response
                    if over:
                        reader.result()
                        return
            finally:
                for task in (reader, *dismissed):
                    task.cancel()
                await asyncio.gather(reader, *dismissed, return_exceptions=True)

    async def _read(self, requests: Requests, stream: Stream, view: View) -> None:
        """Takes requests as they come, also while the peer takes no responses: each changes what is due and is gone."""
        async for request in requests:
            self._take(request, stream, view)

    def _take(self, request: discovery_pb2.DiscoveryRequest, stream: Stream, view: View) -> None:
        subscription = stream.subscription
        before = subscription.refused
        if subscription.take(request) and not stream.of_gateway:
            view.watch(stream, None if subscription.everything else subscription.models)
        self.refused += subscription.refused - before
        if subscription.due:
            stream.wake()

    def _for_gateway(self, node: base_pb2.Node) -> Builder:
        own = GatewayResources(self._mesh, GatewayMetadata.parse(dict(node.metadata)))

        def build(view: View, _: Subscription) -> Resources:
            return own.of(view.table, view.resources(view.table.models.keys()), self._jwks_json())

        return build


def _for_client(view: View, subscription: Subscription) -> Resources:
    named = subscription.models
    return view.resources(named | view.table.models.keys() if subscription.everything else named)


async def _first(requests: Requests) -> discovery_pb2.DiscoveryRequest | None:
    try:
        async with asyncio.timeout(ASK_WITHIN_S):
            return await anext(aiter(requests), None)
    except TimeoutError:
        raise DeadlineExceeded(f"the stream asked for nothing within {ASK_WITHIN_S:.0f} s") from None
