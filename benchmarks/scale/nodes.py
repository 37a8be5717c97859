"""The nodes of a mesh, as their control plane meets them: a session each, and a report every second. A process."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.scale.bare import client_tls, connected, standard_input
from benchmarks.scale.plan import HARDWARE, Size, usd_per_hour
from benchmarks.scale.state import CA, CERTIFICATES, addresses, replicas
from nearmesh.v1 import node_pb2

SESSION = "/nearmesh.v1.NodeService/Session"
REPORT_EVERY_S = 1.0
# Handshakes at the same moment; nodes of a real mesh do not all start in one.
AT_A_TIME = 8


async def serve(place: dict[str, Any], size: Size) -> None:
    """Until its standard input ends, or a session does."""
    commands, opening = await standard_input(), asyncio.Semaphore(AT_A_TIME)
    opened = [asyncio.Event() for _ in size.nodes]
    async with asyncio.TaskGroup() as tasks:
        sessions = [
            tasks.create_task(_session(place, size, number, opening, opened[number])) for number in range(size.sites)
        ]
        for event in opened:
            await event.wait()
        print(json.dumps({"sessions": size.sites}), flush=True)
        await commands.read()
        for session in sessions:
            session.cancel()


async def _session(
    place: dict[str, Any], size: Size, number: int, opening: asyncio.Semaphore, opened: asyncio.Event
) -> None:
    """One node: hello, then a report every second."""
    folder, node = Path(place["folder"]), size.nodes[number]
    status = node_pb2.NodeStatus(replicas=replicas(size, number))
    report = node_pb2.NodeReport(status=status).SerializeToString()
    ended = asyncio.get_running_loop().create_future()
    async with opening:
        tls = client_tls(str(folder / CA), str(folder / CERTIFICATES / f"{node}.pem"))
        connection = await connected(
            place["mesh"], tls, lambda *_: None, lambda _, why: ended.done() or ended.set_result(why)
        )
        stream = connection.open(SESSION)
        connection.send(stream, node_pb2.NodeReport(hello=_hello(number)).SerializeToString())
    opened.set()
    while not ended.done():
        connection.send(stream, report)
        await asyncio.wait({ended}, timeout=REPORT_EVERY_S)
    raise ConnectionError(f"the session of {node} ended: {ended.result()}")


def _hello(number: int) -> node_pb2.NodeHello:
    where = addresses(number)
    return node_pb2.NodeHello(
        public_address=where["public_address"],
        mesh_address=where["mesh_address"],
        metrics_address=where["metrics_address"],
        hardware=HARDWARE[number % len(HARDWARE)],
        usd_per_hour=usd_per_hour(number),
    )


if __name__ == "__main__":
    uvloop.run(serve(json.loads(sys.argv[1]), Size(**json.loads(sys.argv[2]))))
