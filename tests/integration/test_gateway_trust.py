"""Whom a real Envoy believes in the control plane's place, and whom no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from envoy.service.discovery.v3 import ads_pb2_grpc

from nearmesh.gateway.bootstrap import write_configures
from nearmesh.rpc import MACHINES, Gatekeeper
from nearmesh.tls import Credentials
from nearmesh.transport.server import Server
from tests.integration.xds_fixtures import ADS, MESH, SmallMesh, gateway, machine, small_mesh

# An Envoy that is told is ready within a fraction of it.
REFUSES_FOR_S = 3.0


@asynccontextmanager
async def island(small: SmallMesh, name: str) -> AsyncIterator[str]:
    """The mesh's discovery under a node's certificate; yields its address."""
    own = Credentials.read(machine(small.authority, "node", name, small.folder / name))
    assert own
    guard = Gatekeeper(
        mesh=MESH, verifier=small.authority.verifier(), policy={ADS: MACHINES}, removed=lambda: frozenset[str]()
    )
    server = Server(guard, 1_000_000)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(small.service, server)
    address = server.listen("127.0.0.1:0", lambda: own, mesh=True)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


async def test_p8_who_may_configure_envoy_is_read_anew_while_it_runs(tmp_path: Path) -> None:
    async with small_mesh(tmp_path, "mesh", "a") as small, island(small, "island") as address:
        data = tmp_path / "gw"
        data.mkdir()
        believed = ["another"]

        def write() -> None:
            write_configures(data, data / "credentials", MESH, ["localhost"], believed)

        async def relent() -> None:
            await asyncio.sleep(REFUSES_FOR_S)
            assert small.service.streams == 0
            believed.append("island")
            write()

        write()
        relenting = asyncio.create_task(relent())
        async with gateway(small, configured_by=address):
            await relenting
            assert small.service.streams == 1
