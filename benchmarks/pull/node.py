"""`python -m benchmarks.pull.node '{...}'`: one node that pulls, in a process of its own.

It prints "ready", waits for a line, reads in the way that it was told to, prints what that took as JSON, and stays for
the others of its site until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop
from nearmesh_agent.store.blobs import BlobServicer
from nearmesh_agent.store.peers import MeshPeers
from nearmesh_agent.store.registry import HttpRegistry
from nearmesh_agent.store.store import ModelStore

from benchmarks.pull.registry import MESH, MODEL
from nearmesh.ids import node_server_name
from nearmesh.rpc import Gatekeeper
from nearmesh.tls import Credentials
from nearmesh.transport.server import Server
from nearmesh.v1 import blob_pb2_grpc
from nearmesh.v1 import node_pb2 as pb

# What a bare reader asks for at once, as the store does.
RANGE_BYTES = 8 * 2**20


def _registry(asked: dict[str, Any], credentials: Credentials) -> HttpRegistry:
    return HttpRegistry(asked["url"], MODEL, credentials.ssl_context(Path(asked["credentials"])))


def read_bare(asked: dict[str, Any], credentials: Credentials) -> None:
    """Ranges over some connections, in order; nothing is checked, nothing kept."""
    registry, size = _registry(asked, credentials), asked["size_bytes"]
    step = RANGE_BYTES if asked["connections"] > 1 else size

    def read(offset: int) -> None:
        buffer = memoryview(bytearray(256 * 1024))
        reader = registry.open(asked["blob"], offset, min(step, size - offset), 0.0)
        while reader.left and reader.readinto(buffer):
            pass
        assert not reader.left, "broken off"
        reader.close()

    with ThreadPoolExecutor(asked["connections"]) as pool:
        for done in [pool.submit(read, offset) for offset in range(0, size, step)]:
            done.result()
    registry.close()


async def pull(asked: dict[str, Any], credentials: Credentials, store: ModelStore) -> None:
    """As an agent does; a registry that is away is tried again, as the reconciler does."""
    holders = [
        pb.Holder(node=name, address=address, server_name=node_server_name(MESH, name), same_site=True)
        for name, address in asked["peers"].items()
    ]
    wanted = [pb.WantedVersion(model=MODEL, digest=asked["digest"], holders=holders)]
    registry = _registry(asked, credentials)
    await store.pull(
        MODEL, asked["digest"], registry, peers=MeshPeers(lambda: wanted, lambda: credentials, asked["me"])
    )
    registry.close()


async def main(asked: dict[str, Any]) -> None:
    credentials = Credentials.read(Path(asked["credentials"]))
    assert credentials
    store = ModelStore(Path(asked["data"]), me=asked["me"])
    gatekeeper = Gatekeeper(mesh=MESH, verifier=None, policy={"/nearmesh.v1.BlobService/": {"node"}})
    server = Server(gatekeeper, 16 * 2**20)
    blob_pb2_grpc.add_BlobServiceServicer_to_server(BlobServicer(store.shelf), server)
    server.listen(asked["listen"], lambda: credentials, mesh=True)
    await server.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began_s, began_cpu_s = time.monotonic(), _cpu_s()
    if asked["mode"] == "store":
        await pull(asked, credentials, store)
    else:
        await asyncio.to_thread(read_bare, asked, credentials)
    found = {"seconds": time.monotonic() - began_s, "cpu_s": _cpu_s() - began_cpu_s}
    print(json.dumps(found), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)
    store.close()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
