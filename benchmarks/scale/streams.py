"""gRPC clients, as a control plane meets them: discovery streams that ask for one model each, as gRPC does. A process.

Commands come as lines of JSON on standard input, answers go to standard output.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2

from benchmarks.scale.bare import BareConnection, client_tls, connected, standard_input
from benchmarks.scale.plan import REPRICED, Size, clusters
from benchmarks.scale.state import CA
from nearmesh.xds.resources import CLUSTER, ENDPOINTS, LISTENER

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
# What is asked for once an answer of the first has come.
_NEXT = {LISTENER: CLUSTER, CLUSTER: ENDPOINTS}


class Client:
    """One stream."""

    def __init__(self, number: int, size: Size) -> None:
        self.region, self.model = size.stream(number)
        self.concerned = size.concerned(number)
        self.clusters = clusters(self.model)
        self._asked: set[str] = set()
        # Its endpoints are there; when the first response came after `Clients.arm`; how many there were.
        self.whole = False
        self.at_s = 0.0
        self.responses = 0
        self.latest = b""

    def first(self, token: str) -> bytes:
        request = discovery_pb2.DiscoveryRequest(type_url=LISTENER, resource_names=[self.model])
        request.node.id, request.node.locality.region = "load", self.region
        request.node.metadata["token"] = token
        self._asked.add(LISTENER)
        return bytes(request.SerializeToString())

    def took(self, data: bytes) -> list[bytes]:
        """What the client says to a response."""
        response = discovery_pb2.DiscoveryResponse.FromString(data)
        kind = response.type_url
        said = [self._request(kind, response.version_info, response.nonce)]
        if kind == ENDPOINTS:
            self.whole, self.latest = True, data
        elif _NEXT[kind] not in self._asked:
            said.append(self._request(_NEXT[kind]))
        return said

    def _request(self, kind: str, version: str = "", nonce: str = "") -> bytes:
        self._asked.add(kind)
        names = [self.model] if kind == LISTENER else self.clusters
        return bytes(
            discovery_pb2.DiscoveryRequest(
                type_url=kind, resource_names=names, version_info=version, response_nonce=nonce
            ).SerializeToString()
        )

    def cheapest(self) -> str:
        """The node that the last response put first for the cheapest objective; empty if it did not say."""
        for resource in discovery_pb2.DiscoveryResponse.FromString(self.latest).resources:
            assignment = endpoint_pb2.ClusterLoadAssignment.FromString(resource.value)
            if assignment.cluster_name == f"{self.model}/cheapest":
                return str(assignment.endpoints[0].locality.sub_zone)
        return ""


class Clients:
    """All streams of a size."""

    def __init__(self, place: dict[str, Any], size: Size) -> None:
        self._place = place
        self._size = size
        self._clients = [Client(number, size) for number in range(size.streams)]
        # Streams that something is awaited from; when there is none left, it has been heard by all.
        self._missing: set[Client] = set(self._clients)
        self._all = asyncio.Event()
        self._armed = False
        self.failed: list[str] = []

    async def open(self) -> None:
        tls = client_tls(str(Path(self._place["folder"]) / CA))
        for first in range(self._size.connections):
            await self._connect(tls, self._clients[first :: self._size.connections])
        await self._all.wait()

    async def _connect(self, tls: Any, clients: list[Client]) -> None:
        by_stream: dict[int, Client] = {}

        def took(number: int, data: bytes) -> None:
            self._took(connection, number, by_stream[number], data)

        connection = await connected(self._place["public"], tls, took, lambda _, why: self._failed(why))
        for client in clients:
            number = connection.open(ADS)
            by_stream[number] = client
            connection.send(number, client.first(self._place["client"]))

    def _took(self, connection: BareConnection, number: int, client: Client, data: bytes) -> None:
        for request in client.took(data):
            connection.send(number, request)
        client.responses += 1
        if self._armed and not client.at_s:
            client.at_s = time.monotonic()
        if client.whole:
            self._heard(client)

    def _heard(self, client: Client) -> None:
        self._missing.discard(client)
        if not self._missing:
            self._all.set()

    def _failed(self, why: str) -> None:
        self.failed.append(why)
        self._all.set()

    def arm(self) -> None:
        """From here on it is noted who hears of what."""
        self._armed = True
        self._missing = {client for client in self._clients if client.concerned}
        self._all.clear()
        for client in self._clients:
            client.at_s, client.responses = 0.0, 0

    async def all_heard(self) -> dict[str, Any]:
        """Waits until everybody concerned has."""
        await self._all.wait()
        return {"failed": self.failed[:3]}

    def report(self) -> dict[str, Any]:
        """What was heard since `arm`."""
        concerned = [client for client in self._clients if client.concerned]
        spared = [client for client in self._clients if not client.concerned]
        return {
            "at_s": sorted(client.at_s for client in concerned),
            "responses": sum(client.responses for client in concerned),
            "responses_to_spared": sum(client.responses for client in spared),
            "first_choice": sum(client.cheapest() == REPRICED for client in concerned),
            "concerned": len(concerned),
            "spared": len(spared),
            "failed": self.failed[:3],
        }


async def serve(place: dict[str, Any], size: Size) -> None:
    """Until its standard input ends."""
    clients = Clients(place, size)
    await clients.open()
    _say({"streams": size.streams, "failed": clients.failed[:3]})
    commands = await standard_input()
    while command := (await commands.readline()).decode().strip():
        if command == "arm":
            clients.arm()
            _say({})
        elif command == "all":
            _say(await clients.all_heard())
        else:
            _say(clients.report())


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    uvloop.run(serve(json.loads(sys.argv[1]), Size(**json.loads(sys.argv[2]))))
