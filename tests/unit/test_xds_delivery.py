"""Discovery streams over a source that a test steers: who is sent something, who is not, and what a slow one costs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2

from nearmesh import rpc
from nearmesh.errors import MeshError, Overloaded, PermissionDenied, Unreachable
from nearmesh.routing.table import Endpoint, Listener, ModelRoutes, RouteTable
from nearmesh.rpc import Identity
from nearmesh.xds import delivery
from nearmesh.xds.ads import AggregatedDiscovery
from nearmesh.xds.resources import ENDPOINTS, ROUTES
from tests.unit.test_stream_openings import METADATA

CLIENT, GATEWAY = Identity("app", "client"), Identity("door", "gateway")
UNUSED = cast(Any, None)


class Source:
    """Any number of models, each with one node whose port a test moves."""

    def __init__(self, *models: str) -> None:
        self.ports = dict.fromkeys(models, 1)
        self.error: Exception | None = None
        self.asked = 0
        self._generation = 1
        self._changed = asyncio.Event()

    def change(self, **ports: int) -> None:
        self.ports |= ports
        self._generation += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def table(self, region: str, listener: Listener) -> RouteTable:
        self.asked += 1
        if self.error:
            raise self.error
        return RouteTable(region=region, models={m: _routes(port) for m, port in self.ports.items()}, nearest=())

    async def changed(self, after: int) -> int:
        while self._generation <= after:
            await self._changed.wait()
        return self._generation


def _routes(port: int) -> ModelRoutes:
    endpoint = Endpoint(node="n", site="s", region="r", address=f"127.0.0.1:{port}")
    return ModelRoutes(default_objective="nearest", by_objective={"nearest": (endpoint,)})


class Peer:
    """One stream, as its client has it."""

    def __init__(self, service: AggregatedDiscovery) -> None:
        self._requests: asyncio.Queue[discovery_pb2.DiscoveryRequest] = asyncio.Queue()
        self.responses = service.StreamAggregatedResources(self._asked(), None)

    async def _asked(self) -> AsyncIterator[discovery_pb2.DiscoveryRequest]:
        while True:
            yield await self._requests.get()

    def ask(self, kind: str, *names: str, nonce: str = "", region: str = "here") -> None:
        request = discovery_pb2.DiscoveryRequest(type_url=kind, resource_names=names, response_nonce=nonce)
        request.node.locality.region = region
        request.node.metadata.update(METADATA.to_struct())
        self._requests.put_nowait(request)

    async def answer(self) -> discovery_pb2.DiscoveryResponse:
        async with asyncio.timeout(5):
            return discovery_pb2.DiscoveryResponse.FromString(await anext(self.responses))

    async def ports(self) -> dict[str, int]:
        """Of the next response, which has to be one of endpoints."""
        found = {}
        for resource in (await self.answer()).resources:
            assignment = endpoint_pb2.ClusterLoadAssignment()
            assert resource.Unpack(assignment)
            address = assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address
            found[assignment.cluster_name] = address.port_value
        return found

    async def silent(self) -> None:
        """Nothing is due: what is asked for next is answered next, though it would come last."""
        self.ask(ROUTES, "nothing-of-the-kind")
        assert (await self.answer()).type_url == ROUTES


def service(source: Source, **more: Any) -> AggregatedDiscovery:
    return AggregatedDiscovery(
        source=source, mesh="mesh", verifier=UNUSED, jwks_json=lambda: "{}", region_of=lambda _: "here", **more
    )


@asynccontextmanager
async def stream(found: AggregatedDiscovery, who: Identity = CLIENT) -> AsyncIterator[Peer]:
    rpc._caller.set(who)
    peer = Peer(found)
    async with aclosing(cast(Any, peer.responses)):
        yield peer


async def test_a_change_reaches_who_asked_for_the_model_and_nobody_else() -> None:
    source = Source("a", "b")
    served = service(source)
    async with stream(served) as one, stream(served) as other:
        one.ask(ENDPOINTS, "a")
        other.ask(ENDPOINTS, "b")
        assert (await one.ports(), await other.ports()) == ({"a": 1}, {"b": 1})
        for port in (2, 3):
            source.change(a=port)
            assert await one.ports() == {"a": port}
        await other.silent()
        source.change(b=9)
        assert await other.ports() == {"b": 9}
        await one.silent()


async def test_many_streams_ask_the_source_once_for_each_region() -> None:
    source = Source("a")
    served = service(source)
    async with stream(served) as first, stream(served) as second, stream(served) as third:
        for peer, region in ((first, "here"), (second, "here"), (third, "there")):
            peer.ask(ENDPOINTS, "a", region=region)
            await peer.ports()
        before = source.asked
        source.change(a=2)
        assert [await peer.ports() for peer in (first, second, third)] == [{"a": 2}] * 3
        assert source.asked == before + 2
    assert not served._delivery._views and not served._delivery._streams and served._delivery._following is None


async def test_a_peer_that_does_not_read_is_owed_its_latest_state_alone() -> None:
    source = Source("a")
    async with stream(service(source)) as peer:
        peer.ask(ENDPOINTS, "a")
        assert await peer.ports() == {"a": 1}
        for port in range(2, 50):
            source.change(a=port)
            # Requests are taken in meanwhile, and not kept.
            peer.ask(ENDPOINTS, "a", nonce="1")
            await asyncio.sleep(0)
        assert await peer.ports() == {"a": 49}
        await peer.silent()


async def test_p8_a_removed_gateway_hears_so_though_no_route_of_it_changed() -> None:
    removed: set[str] = set()

    def check(who: Identity) -> None:
        if who.name in removed:
            raise PermissionDenied("removed")

    source = Source("a")
    async with stream(service(source, check=check), GATEWAY) as peer:
        peer.ask(ENDPOINTS, "a")
        assert await peer.ports() == {"a": 1}
        removed.add("door")
        source.change()
        with pytest.raises(PermissionDenied):
            await peer.answer()


async def test_streams_of_a_source_that_fails_end_and_new_ones_go_on(caplog: pytest.LogCaptureFixture) -> None:
    source = Source("a")
    served = service(source)
    async with stream(served) as peer:
        peer.ask(ENDPOINTS, "a")
        assert await peer.ports() == {"a": 1}
        source.error = ZeroDivisionError("a bug")
        with caplog.at_level(logging.ERROR):
            source.change(a=2)
            with pytest.raises(Unreachable):
                await peer.answer()
        assert "ZeroDivisionError: a bug" in caplog.text
    source.error = None
    async with stream(served) as peer:
        peer.ask(ENDPOINTS, "a")
        assert await peer.ports() == {"a": 2}
        source.change(a=3)
        assert await peer.ports() == {"a": 3}


async def test_clients_cannot_have_any_number_of_regions_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MAX_VIEWS", 2)
    served = service(Source("a"))
    async with stream(served) as first, stream(served) as second, stream(served) as third:
        for number, peer in enumerate((first, second)):
            peer.ask(ENDPOINTS, "a", region=f"r-{number}")
            await peer.ports()
        third.ask(ENDPOINTS, "a", region="r-3")
        with pytest.raises(Overloaded, match="'r-3' would be one more"):
            await third.answer()
    async with stream(served) as again:
        again.ask(ENDPOINTS, "a", region="r-3")
        assert await again.ports() == {"a": 1}


async def test_a_request_that_asks_for_too_much_ends_the_stream() -> None:
    async with stream(service(Source("a"))) as peer:
        peer.ask(ENDPOINTS, "a")
        await peer.ports()
        peer.ask(ENDPOINTS, *(f"m{n}" for n in range(1001)), nonce="1")
        with pytest.raises(MeshError, match="1001 resource names"):
            await peer.answer()
