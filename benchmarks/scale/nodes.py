"""The nodes of a mesh, as their control plane meets them: a session each, and a report every second. A process."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.scale.bare import BareConnection, client_tls, connected
from benchmarks.scale.plan import HARDWARE, Size, usd_per_hour
from benchmarks.scale.state import CA, CERTIFICATES, addresses, replicas
from nearmesh.v1 import node_pb2

SESSION = "/nearmesh.v1.NodeService/Session"
REPORT_EVERY_S = 1.0


async def serve(place: dict[str, Any], size: Size) -> None:
    """Until its standard input ends."""
    told: list[str] = []
    sessions = []
    for number, node in enumerate(size.nodes):
        sessions.append(await _session(place, size, number, node, told.append))
    print(json.dumps({"sessions": len(sessions)}), flush=True)
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    while not ended.done() and not told:
        for connection, stream, report in sessions:
            connection.send(stream, report)
            # Nodes do not report all at once.
            await asyncio.sleep(REPORT_EVERY_S / len(sessions))
    if told:
        raise SystemExit(f"a session ended: {told[0]}")


async def _session(
    place: dict[str, Any], size: Size, number: int, node: str, failed: Any
) -> tuple[BareConnection, int, bytes]:
    folder = Path(place["folder"])
    tls = client_tls(str(folder / CA), str(folder / CERTIFICATES / f"{node}.pem"))
    connection = await connected(place["mesh"], tls, lambda *_: None, lambda _, why: failed(f"{node}: {why}"))
    stream = connection.open(SESSION)
    hello = node_pb2.NodeHello(
        hardware=HARDWARE[number % len(HARDWARE)], usd_per_hour=usd_per_hour(number), **addresses(number)
    )
    connection.send(stream, node_pb2.NodeReport(hello=hello).SerializeToString())
    status = node_pb2.NodeStatus(replicas=replicas(size, number))
    report = node_pb2.NodeReport(status=status).SerializeToString()
    connection.send(stream, report)
    return connection, stream, report


if __name__ == "__main__":
    uvloop.run(serve(json.loads(sys.argv[1]), Size(**json.loads(sys.argv[2]))))
