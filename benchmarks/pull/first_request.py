"""What the first request of a model costs that the node has never seen, over a link of known speed.

`python -m benchmarks.pull.first_request` publishes a convolutional net with 14 MB of weights on a registry of its own
that sends so many bytes a second, and in turns (a) opens it with ONNX Runtime and runs it once, from the disk, (b) has
a node pull, prove and load it and answers one request. It prints JSON: the transfer's time by the link's speed,
milliseconds of each, as medians and in full, and the ratio of (b) to the transfer and (a) together. Half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.serving import memory
from nearmesh_agent.serving.node import ServingNode
from nearmesh_agent.serving.responses import Place
from nearmesh_agent.store.bandwidth import Bandwidth
from nearmesh_agent.store.store import ModelStore

from benchmarks.cold import bare_ms, write_package
from nearmesh.packaging.build import Artifact, build

ROUNDS = 7
MEGABYTES_PER_SECOND = 20.0
# What is sent at a time, and then waited for.
_PIECE_BYTES = 64 * 1024


class SlowRegistry:
    """A registry over a link of known speed, in memory, so that nothing but the speed is measured."""

    def __init__(self, artifact: Artifact, bytes_per_second: float) -> None:
        self._artifact = artifact
        self._link = Bandwidth(bytes_per_second)

    def manifest(self, reference: str) -> bytes:
        return self._artifact.manifest_bytes

    def open(self, digest: str, offset: int, size: int, wait_s: float) -> Paced:
        blob = self._artifact.blobs[digest]
        data = blob if isinstance(blob, bytes) else blob.read_bytes()
        return Paced(memoryview(data)[offset : offset + size], self._link)

    def break_off(self) -> None:
        pass


class Paced:
    """A range, as fast as the link brings it to all readers together."""

    def __init__(self, data: memoryview, link: Bandwidth) -> None:
        self._data = data
        self._link = link

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._data), _PIECE_BYTES)
        time.sleep(self._link.take(count))
        view[:count], self._data = self._data[:count], self._data[count:]
        return count

    def close(self) -> None:
        pass


async def from_zero_ms(scratch: Path, artifact: Artifact, given: np.ndarray, bytes_per_second: float) -> float:
    """Pulled, proven, loaded, and one request answered, on a node with an empty disk."""
    store = ModelStore(scratch / "models")
    node = ServingNode(NodeConfig(data=scratch), Place(node="n", site="s", region="r"), OnnxEngines())
    registry = SlowRegistry(artifact, bytes_per_second)
    started_s = time.perf_counter()
    _, folder = await store.pull("conv", artifact.digest, registry)
    replica = await node.load(folder, artifact.digest)
    await replica.infer({"x": given})
    took_ms = (time.perf_counter() - started_s) * 1000
    await replica.close()
    await node.close()
    store.close()
    return took_ms


async def measure(folder: Path, rounds: int, bytes_per_second: float) -> dict[str, object]:
    package = folder / "package"
    package.mkdir()
    given = write_package(package)
    artifact = await asyncio.to_thread(build, package, folder / "cache")
    size_bytes = artifact.manifest.size_bytes
    bare: list[float] = []
    zero: list[float] = []
    for number in range(rounds):
        bare.append(await asyncio.to_thread(bare_ms, package / "fp32.onnx", given))
        scratch = folder / f"node-{number}"
        scratch.mkdir()
        zero.append(await from_zero_ms(scratch, artifact, given, bytes_per_second))
        await asyncio.to_thread(memory.give_back)
    transfer_ms = size_bytes / bytes_per_second * 1000
    floor_ms = transfer_ms + statistics.median(bare)
    return {
        "ratio": statistics.median(zero) / floor_ms,
        "bytes": size_bytes,
        "megabytes_per_second": bytes_per_second / 1e6,
        "transfer_ms": transfer_ms,
        "bare_ms": statistics.median(bare),
        "from_zero_ms": statistics.median(zero),
        "rounds": {"bare_ms": bare, "from_zero_ms": zero},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each way (default %(default)s)")
    parser.add_argument(
        "--speed", type=float, default=MEGABYTES_PER_SECOND, help="of the link, MB a second (default %(default)s)"
    )
    asked = parser.parse_args()
    memory.use_one_arena()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), asked.rounds, asked.speed * 1e6)), indent=2))


if __name__ == "__main__":
    main()
