"""The aggregated discovery service: one stream to each gRPC client and each Envoy gateway, told of every change.

A gateway proves itself by its certificate. gRPC's own xDS client can send no bearer token, so a client's token may
stand in the first request's node metadata instead of the call's headers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from nearmesh.errors import DeadlineExceeded, InvalidInput, PermissionDenied, Unauthenticated, Unsupported
from nearmesh.gateway.metadata import GatewayMetadata
from nearmesh.ids import check_label
from nearmesh.routing.table import Listener, RouteSource, RouteTable
from nearmesh.rpc import ANYONE, PEOPLE, Identity, caller
from nearmesh.tokens import TokenVerifier
from nearmesh.xds.envoy_gateway import gateway_resources
from nearmesh.xds.grpc_client import client_resources, with_unknown
from nearmesh.xds.resources import Resources
from nearmesh.xds.subscription import Subscription

log = logging.getLogger(__name__)

# Where a gRPC client's bootstrap carries its bearer token.
TOKEN_KEY = "token"

# Who opens a stream knows what to ask; anybody may open one, so an idle one is not kept.
ASK_WITHIN_S = 10.0

# Clients name their own region, so what is kept for them must have a bound.
_KEPT_REGIONS = 64

# What a stream's resources are made of, at this moment, for this subscription.
Builder = Callable[[Subscription], Resources]


def _anybody(_: Identity) -> None:
    return None


class AggregatedDiscovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """State-of-the-world ADS over a RouteSource.

    `region_of` gives the region that a gateway joined for, by its id. `check` raises once an identity may no longer
    listen; it is asked at every change.
    """

    def __init__(
        self,
        *,
        source: RouteSource,
        mesh: str,
        verifier: TokenVerifier,
        jwks_json: Callable[[], str],
        region_of: Callable[[str], str],
        check: Callable[[Identity], None] = _anybody,
    ) -> None:
        self._source = source
        self._mesh = mesh
        self._verifier = verifier
        self._jwks_json = jwks_json
        self._region_of = region_of
        self._check = check
        self._built: dict[str, tuple[RouteTable, Resources]] = {}
        # How many responses were refused (NACK) since the start: a bug in what was built, or a client too old for it.
        self.refused = 0
        self.streams = 0

    async def StreamAggregatedResources(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: Any
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        """Answers the stream's requests and pushes every change until the stream ends."""
        first = await _first(requests)
        if first is None:
            return
        who = self._identify(first.node)
        build = self._builder(who, first.node)
        log.info("xds stream opened peer=%s region=%s", who, first.node.locality.region)
        self.streams += 1
        try:
            async for response in self._serve(first, requests, who, build):
                yield response
        finally:
            self.streams -= 1
            log.info("xds stream closed peer=%s", who)

    async def DeltaAggregatedResources(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Refused: both gRPC and our gateways speak state-of-the-world."""
        raise Unsupported("incremental xDS is not offered; use StreamAggregatedResources")
        yield

    def _identify(self, node: base_pb2.Node) -> Identity:
        who = caller()
        if who.role != ANYONE:
            return who
        token = dict(node.metadata).get(TOKEN_KEY)
        if not isinstance(token, str):
            raise Unauthenticated(f"no token: put one under node.metadata.{TOKEN_KEY} of the xDS bootstrap")
        bearer = self._verifier.access(token)
        return Identity(bearer.subject, bearer.role)

    def _builder(self, who: Identity, node: base_pb2.Node) -> Builder:
        region = node.locality.region
        if not region:
            raise InvalidInput("the xDS node names no region; set node.locality.region")
        check_label("region", region)
        if who.role == "gateway":
            own = self._region_of(who.name)
            if region != own:
                raise PermissionDenied(f"{who} joined for region {own!r}, and asks for {region!r}")
            return self._for_gateway(region, GatewayMetadata.parse(dict(node.metadata)))
        if who.role in PEOPLE:
            return self._for_client(region)
        raise PermissionDenied(f"{who} has no use for xDS; it is for clients and gateways")

    def _for_gateway(self, region: str, metadata: GatewayMetadata) -> Builder:
        def build(_: Subscription) -> Resources:
            return gateway_resources(self._table(region, "mesh"), self._mesh, metadata, self._jwks_json())

        return build

    def _for_client(self, region: str) -> Builder:
        def build(subscription: Subscription) -> Resources:
            table = self._table(region, "public")
            kept = self._built.get(region)
            # A region's clients all get the same: built once for all of them.
            if kept is None or kept[0] != table:
                if len(self._built) >= _KEPT_REGIONS:
                    self._built.clear()
                kept = self._built[region] = (table, client_resources(table, self._mesh))
            return with_unknown(kept[1], subscription.listeners)

        return build

    def _table(self, region: str, listener: Listener) -> RouteTable:
        return self._source.table(region, listener)

    async def _serve(
        self,
        first: discovery_pb2.DiscoveryRequest,
        requests: AsyncIterator[discovery_pb2.DiscoveryRequest],
        who: Identity,
        build: Builder,
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        subscription = Subscription(str(who))
        subscription.take(first)
        generation = await self._source.changed(0)
        for response in subscription.pending(build(subscription)):
            yield response
        async with _Events(requests, self._source, generation) as events:
            async for request in events:
                self._check(who)
                if request is not None:
                    self._take(subscription, request)
                for response in subscription.pending(build(subscription)):
                    yield response

    def _take(self, subscription: Subscription, request: discovery_pb2.DiscoveryRequest) -> None:
        before = subscription.refused
        subscription.take(request)
        self.refused += subscription.refused - before


async def _first(requests: AsyncIterator[discovery_pb2.DiscoveryRequest]) -> discovery_pb2.DiscoveryRequest | None:
    try:
        async with asyncio.timeout(ASK_WITHIN_S):
            return await anext(aiter(requests), None)
    except TimeoutError:
        raise DeadlineExceeded(f"the stream asked for nothing within {ASK_WITHIN_S:.0f} s") from None


class _Events:
    """Requests of a stream as they come, and None for each change of the source; ends with the requests."""

    def __init__(self, requests: AsyncIterator[Any], source: RouteSource, generation: int) -> None:
        self._requests = requests
        self._source = source
        self._generation = generation

    async def __aenter__(self) -> _Events:
        self._request = asyncio.ensure_future(anext(self._requests, None))
        self._change = asyncio.ensure_future(self._source.changed(self._generation))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._request, self._change):
            task.cancel()
        await asyncio.gather(self._request, self._change, return_exceptions=True)

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> discovery_pb2.DiscoveryRequest | None:
        await asyncio.wait((self._request, self._change), return_when=asyncio.FIRST_COMPLETED)
        if self._change.done():
            self._generation = self._change.result()
            self._change = asyncio.ensure_future(self._source.changed(self._generation))
            return None
        request: discovery_pb2.DiscoveryRequest | None = self._request.result()
        if request is None:
            raise StopAsyncIteration
        self._request = asyncio.ensure_future(anext(self._requests, None))
        return request
