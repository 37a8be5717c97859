"""A thousand models on one node with memory for fifty, under Zipf traffic.

`python -m tests.faults.many_models` prints JSON: how many requests found their model in memory, errors, loads,
evictions, resident memory at the start and the end, and the times of requests for models that were and were not there.
Every model is proven when it comes, as any other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from nearmesh_agent.config import NodeConfig
from nearmesh_agent.serving import memory
from tritonclient.utils import InferenceServerException

from tests.serving_node import Running, scaler, serving_node

CALLERS = 8


@dataclass(slots=True)
class Seen:
    """What the callers saw."""

    warm_ms: list[float] = field(default_factory=list)
    cold_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def register(node: Running, folder: Path, models: int) -> float:
    """Seconds for each."""
    started_s = time.monotonic()
    for number in range(models):
        name = f"m{number}"
        # A name's factor tells whether the right model answered.
        await node.add(await asyncio.to_thread(scaler, folder / name, name, factor=number, memory_bytes=memory.MIB))
    return (time.monotonic() - started_s) / models


async def call(node: Running, numbers: list[int], seen: Seen) -> None:
    for number in numbers:
        here = node.node.table.get(f"m{number}").active
        started_s = time.perf_counter()
        try:
            answer = await node.ask(f"m{number}", timeout_s=30)
        except InferenceServerException as error:
            seen.errors.append(str(error))
            continue
        (seen.warm_ms if here else seen.cold_ms).append((time.perf_counter() - started_s) * 1000)
        if answer != number:
            seen.errors.append(f"m{number} answered {answer}")


async def run(folder: Path, models: int, room: int, requests: int) -> dict[str, object]:
    async with serving_node(NodeConfig(data=folder, memory_budget_mib=room)) as node:
        register_s = await register(node, folder, models)
        chance = random.Random(7)
        ranked = chance.sample(range(models), models)
        asked = chance.choices(ranked, weights=[1 / (rank + 1) for rank in range(models)], k=requests)
        memory.give_back()
        seen, start_bytes, started_s = Seen(), memory.resident(), time.monotonic()
        await asyncio.gather(*(call(node, asked[first::CALLERS], seen) for first in range(CALLERS)))
        seconds = time.monotonic() - started_s
        memory.give_back()
        tallies = [replica.tally for replica in node.node.table]
        return {
            "models": models,
            "room": room,
            "requests": requests,
            "requests_per_second": requests / seconds,
            "register_ms": register_s * 1000,
            "hit_rate": len(seen.warm_ms) / requests,
            "errors": len(seen.errors),
            "first_errors": seen.errors[:3],
            "loads": sum(tally.loads for tally in tallies) - models,
            "evictions": sum(tally.evictions for tally in tallies) - (models - room),
            "warm_ms_p50": statistics.median(seen.warm_ms),
            "cold_ms_p50": statistics.median(seen.cold_ms),
            "rss_start_mib": start_bytes / memory.MIB,
            "rss_end_mib": memory.resident() / memory.MIB,
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--room", type=int, default=50, help="models that fit into memory")
    parser.add_argument("--requests", type=int, default=10000)
    asked = parser.parse_args()
    memory.use_one_arena()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(run(Path(folder), asked.models, asked.room, asked.requests)), indent=2))


if __name__ == "__main__":
    main()
