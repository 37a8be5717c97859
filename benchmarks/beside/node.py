"""A node without a mesh that serves packages and, when it is told to, trains beside that, within a budget.

`python -m benchmarks.beside.node '{"packages": {DIGEST: FOLDER}, "folder": SCRATCH, "cpu_share": 0.5}'` says where it
listens. Each line on standard input, {"train": true|false}, begins or ends training and is answered by one line. The
end of the input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.server import POLICY, add_servicers, engines_of
from nearmesh_agent.serving.node import ServingNode
from nearmesh_agent.serving.responses import Place
from nearmesh_agent.training.throttle import Throttle

from nearmesh.process import leashed, rare_collections
from nearmesh.rpc import Gatekeeper
from nearmesh.transport.server import Server

PIPE = asyncio.subprocess.PIPE


class Training:
    """Begun and ended, again and again, under one throttle; as a node has it between rounds."""

    def __init__(self, node: ServingNode, folder: Path, cpu_share: float | None) -> None:
        """Without a `cpu_share` nothing holds it: to see what the budget is worth."""
        self._folder = folder
        self._held = cpu_share is not None
        self._throttle = Throttle(
            node.table, lambda: node.servicer.utilization, cpu_share=cpu_share or 1.0, occupancy=node.occupancy
        )
        self._running: asyncio.Task[None] | None = None
        self._unheld: asyncio.subprocess.Process | None = None

    async def begin(self) -> None:
        """Returns when an app is at work."""
        command = [sys.executable, "-m", "benchmarks.beside.app", "flower-supernode", str(self._folder / "examples")]
        if not self._held:
            self._unheld = await asyncio.create_subprocess_exec(*leashed(command), start_new_session=True)
            return
        process = await asyncio.create_subprocess_exec(
            *self._throttle.command(command, self._folder / "yielded"), stdin=PIPE, stdout=PIPE
        )
        self._running = asyncio.create_task(self._throttle.run(process))
        while not self._throttle.workers:  # noqa: ASYNC110  # the warden says so on its own time
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        if self._running:
            self._running.cancel()
            await asyncio.wait({self._running})
            self._running = None
        if self._unheld:
            await _kill(self._unheld)
            self._unheld = None

    def figures(self) -> dict[str, Any]:
        examples = self._folder / "examples"
        return {
            "examples": sum(map(int, examples.read_text().split())) if examples.exists() else 0,
            "yielded_s": self._throttle.yielded_s,
            "share": self._throttle.share,
            "paused": self._throttle.paused,
        }


async def _kill(process: asyncio.subprocess.Process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def serve(packages: dict[str, str], folder: str, cpu_share: float | None) -> None:
    """Until the end of the input."""
    config = NodeConfig(data=Path(folder))
    node = ServingNode(config, Place(node="alone", site="alone", region="alone"), engines_of(config))
    server = Server(Gatekeeper(mesh="alone", verifier=None, policy=POLICY, open_door=True), config.max_message_bytes)
    add_servicers(server, node.servicer, node.health)
    address = server.listen_plain("127.0.0.1:0")
    training = Training(node, Path(folder), cpu_share)
    for digest, place in packages.items():
        node.table.put(await node.load(Path(place), digest))
    await server.start()
    running = asyncio.create_task(node.run())
    _say({"address": address})
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            await (training.begin() if json.loads(line)["train"] else training.end())
            _say(training.figures())
    finally:
        await training.end()
        running.cancel()
        await server.stop(0)
        await asyncio.gather(*(replica.close() for replica in node.table))
        await node.close()


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    rare_collections()
    uvloop.run(serve(**json.loads(sys.argv[1])))
