"""Swaps a model again and again under traffic, with trials in between, and prints what became of memory and requests.

In a process of its own, `python -m tests.hot_swaps FOLDER`. It prints JSON: resident bytes `before` and `after`, and
how often each answer came.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections import Counter
from pathlib import Path

from nearmesh_agent.config import NodeConfig
from nearmesh_agent.serving import memory
from nearmesh_agent.session.reconciler import Reconciler

from nearmesh.v1 import node_pb2 as pb
from tests.serving_node import Running, scaler, serving_node

# Four times 512 x 512 floats: 4 MiB of weights.
WIDTH, LAYERS = 512, 4
SWAPS = 100
# By then ONNX Runtime, gRPC and glibc have made their pools, which they keep.
SETTLED_AFTER = 20


def digest(version: int) -> str:
    return f"sha256:{version:064d}"


class Deployer:
    """A reconciler over packages that lie on this disk; versions answer with their number."""

    def __init__(self, folder: Path, node: Running, *, drain_s: float) -> None:
        self._folder = folder
        self._moved = asyncio.Event()
        self.reconciler = Reconciler(
            node.node.table,
            self._pull,
            node.node.load,
            keep=folder / "wanted.pb",
            on_progress=self._moved.set,
            drain_s=drain_s,
        )

    async def _pull(self, model: str, digest: str, registry_url: str) -> Path:
        return self._folder / f"v{int(digest[-64:])}"

    async def deploy(self, version: int, *, alone: bool = True) -> None:
        """Returns when it serves; if `alone`, when every other version is gone."""
        await self._want(version, alone=alone)

    async def try_out(self, standing: int, trial: int) -> None:
        """Returns when `trial` is beside the other, for half of the requests."""
        await self._want(standing, trial)

    async def _want(self, standing: int, trial: int = 0, *, alone: bool = False) -> None:
        wanted = [
            pb.WantedVersion(model="m", version=str(number), digest=digest(number))
            for number in (standing, trial)
            if number
        ]
        if trial:
            wanted[1].trial.share = wanted[1].trial.mirror_share = 0.5
        self.reconciler.want(pb.WantedState(versions=wanted))
        async with asyncio.timeout(30):
            while not self._there([version.digest for version in wanted], alone=alone):
                self._moved.clear()
                await self._moved.wait()

    def _there(self, digests: list[str], *, alone: bool) -> bool:
        states = {status.digest: status.state for status in self.reconciler.statuses()}
        ready = all(states.get(each) == pb.REPLICA_STATE_READY for each in digests)
        return ready and (len(states) == 1 or not alone)


def settled() -> int:
    """Bytes of this process once everything that is free was given back."""
    gc.collect()
    memory.give_back()
    return memory.resident()


async def swap(folder: Path) -> dict[str, object]:
    """A request that fails ends it with its error."""
    for version in (1, 2):
        scaler(folder / f"v{version}", "m", factor=version, version=str(version), width=WIDTH, layers=LAYERS)
    answers: Counter[float] = Counter()
    async with serving_node(NodeConfig(data=folder)) as node:
        deployer = Deployer(folder, node, drain_s=0.02)
        await deployer.deploy(1)

        async def caller() -> None:
            while True:
                answers[round(await node.ask("m", width=WIDTH), 3)] += 1

        async with asyncio.TaskGroup() as tasks:
            callers = [tasks.create_task(caller()) for _ in range(3)]
            before = 0
            for number in range(1, SWAPS + 1):
                new = 1 + number % 2
                if number % 3:
                    # By way of a trial, which one in three does not pass at first.
                    await deployer.try_out(3 - new, new)
                if number % 3 == 2:
                    await deployer.deploy(3 - new)
                await deployer.deploy(new)
                if number == SETTLED_AFTER:
                    before = settled()
            after = settled()
            for task in callers:
                task.cancel()
        await deployer.reconciler.close()
    return {"before": before, "after": after, "answers": dict(answers)}


if __name__ == "__main__":
    # As the agent does at its start.
    memory.use_one_arena()
    print(json.dumps(asyncio.run(swap(Path(sys.argv[1])))))
