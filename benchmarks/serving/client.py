"""The client of every system, as a process of its own.

`python -m benchmarks.serving.client`: each line on standard input is an order, {"kind": "probe" | "closed" | "open",
"server": where and what, "with": the order's own settings}, and is answered by one line. The end of the input ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.serving.loops import Burst, closed, opened, probe
from benchmarks.serving.models import load
from benchmarks.serving.transports import connect


async def obey(order: dict[str, Any]) -> dict[str, Any]:
    """One order, over a connection of its own."""
    server, settings = order["server"], order["with"]
    inputs, expected = load(Path(server["folder"]))
    transport = connect(server["protocol"], server["address"], server["model"], inputs)
    pid = server["pid"]
    try:
        if order["kind"] == "probe":
            right = expected if settings.pop("compare") else None
            return await probe(transport, right, pid=pid, **settings)
        if order["kind"] == "closed":
            return await closed(transport, pid=pid, **settings)
        return await opened(transport, Burst(**settings), pid=pid)
    finally:
        await transport.close()


async def main() -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        sys.stdout.write(json.dumps(await obey(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main())
