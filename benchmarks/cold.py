"""What the first request of a model costs that is not in memory, against ONNX Runtime alone doing the same.

`python -m benchmarks.cold` makes a convolutional net with 14 MB of weights, and in turns (a) opens it with ONNX Runtime
and runs it once, (b) asks an agent for it over gRPC that has it on disk only. It prints JSON: milliseconds of each, as
medians and in full, and the ratio of the medians. Half a minute on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import onnx
import onnxruntime
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.server import POLICY, add_servicers
from nearmesh_agent.serving import memory
from nearmesh_agent.serving.node import LOADER_THREADS, ServingNode
from nearmesh_agent.serving.responses import Place
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.package import MANIFEST_FILE
from nearmesh.rpc import Gatekeeper
from nearmesh.transport.server import Server

# Six 3 x 3 convolutions of 256 channels: 14.2 MB of weights.
LAYERS, CHANNELS, SIZE = 6, 256, 8
ROUNDS = 15

_MANIFEST = f"""
name = "conv"
version = "1"
description = "convolutions, for a benchmark"
licence = "Apache-2.0"
credit = "the project"
inputs = [{{ name = "x", dtype = "FP32", shape = [1, {CHANNELS}, {SIZE}, {SIZE}] }}]
outputs = [{{ name = "y", dtype = "FP32", shape = [1, {CHANNELS}, {SIZE}, {SIZE}] }}]
variants = [{{ name = "fp32", source = {{ path = "fp32.onnx" }} }}]
warmup = [{{ file = "warmup.npz" }}]
"""


def write_package(folder: Path) -> np.ndarray:
    """Returns the input of its warm-up."""
    chance = np.random.default_rng(1)
    shape = [1, CHANNELS, SIZE, SIZE]
    scale = np.sqrt(2 / (9 * CHANNELS))
    weights = [
        numpy_helper.from_array((chance.normal(size=(CHANNELS, CHANNELS, 3, 3)) * scale).astype(np.float32), f"w{i}")
        for i in range(LAYERS)
    ]
    nodes = []
    for i in range(LAYERS):
        nodes.append(helper.make_node("Conv", [f"h{i}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"h{i + 1}"]))
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "fp32.onnx"))
    given = chance.normal(size=shape).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(folder / "fp32.onnx")).run(None, {"x": given})[0]
    np.savez(folder / "warmup.npz", **{"input.x": given, "output.y": expected})
    (folder / MANIFEST_FILE).write_text(_MANIFEST, "utf-8")
    return given


def bare_ms(path: Path, given: np.ndarray) -> float:
    """A session opened and run once; blocks."""
    memory.give_back()
    started_s = time.perf_counter()
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": given})
    return (time.perf_counter() - started_s) * 1000


async def measure(folder: Path, rounds: int) -> dict[str, object]:
    given = write_package(folder)
    config = NodeConfig(data=folder)
    node = ServingNode(config, Place(node="n", site="s", region="r"), OnnxEngines())
    server = Server(Gatekeeper(mesh="bench", verifier=None, policy=POLICY, open_door=True), config.max_message_bytes)
    add_servicers(server, node.servicer, node.health)
    address = server.listen_plain("127.0.0.1:0")
    replica = await node.load(folder, "sha256:" + "1" * 64)
    node.table.put(replica)
    await server.start()
    request = service_pb2.ModelInferRequest(model_name="conv", raw_input_contents=[given.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=given.shape)
    bare: list[float] = []
    cold: list[float] = []
    loads: list[float] = []
    warm: list[float] = []
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

            async def ask_ms() -> float:
                started_s = time.perf_counter()
                await stub.ModelInfer(request)
                return (time.perf_counter() - started_s) * 1000

            await ask_ms()
            for _ in range(rounds):
                await replica.deactivate()
                bare.append(await asyncio.to_thread(bare_ms, folder / "fp32.onnx", given))
                await asyncio.to_thread(memory.give_back)
                cold.append(await ask_ms())
                loads.append(replica.load_s * 1000)
                warm.append(await ask_ms())
    finally:
        await server.stop(None)
        await replica.close()
        await node.close()
        await asyncio.to_thread(_end_loads)
    medians = {name: statistics.median(values) for name, values in (("bare", bare), ("cold", cold), ("load", loads))}
    return {
        "ratio": medians["cold"] / medians["bare"],
        "bare_ms": medians["bare"],
        "cold_ms": medians["cold"],
        "load_ms": medians["load"],
        "warm_ms": statistics.median(warm),
        "rounds": {"bare_ms": bare, "cold_ms": cold},
    }


def _end_loads() -> None:
    """A second session that is still being made reads its file."""
    for thread in threading.enumerate():
        if thread.name.startswith(LOADER_THREADS):
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each way (default %(default)s)")
    rounds = parser.parse_args().rounds
    memory.use_one_arena()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), rounds)), indent=2))


if __name__ == "__main__":
    main()
