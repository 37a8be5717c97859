"""A node's serving half in this process, wired as the agent wires it, on a port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nearmesh_agent.config import NodeConfig
from nearmesh_agent.engines.base import EngineFactory
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.server import POLICY, add_servicers
from nearmesh_agent.serving.node import ServingNode
from nearmesh_agent.serving.responses import Place
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import aio as triton

from nearmesh.package import MANIFEST_FILE
from nearmesh.rpc import Gatekeeper
from nearmesh.transport.server import Server
from tests.inference_server import PLACE

_MANIFEST = """
name = "{name}"
version = "{version}"
description = "for tests"
licence = "Apache-2.0"
credit = "the project"
memory_bytes = {memory_bytes}

[[inputs]]
name = "x"
dtype = "FP32"
shape = [-1, {width}]

[[outputs]]
name = "y"
dtype = "FP32"
shape = [-1, {width}]

[[variants]]
name = "fp32"
source = {{ path = "fp32.onnx" }}

[[warmup]]
file = "warmup.npz"
"""


def scaler(
    folder: Path,
    name: str,
    *,
    factor: float = 2.0,
    version: str = "1",
    width: int = 4,
    layers: int = 0,
    memory_bytes: int = 0,
) -> Path:
    """A package whose `y` is `x` times `factor`; each of `layers` adds width x width weights that change nothing."""
    folder.mkdir(parents=True)
    weights = [numpy_helper.from_array(np.eye(width, dtype=np.float32), f"w{i}") for i in range(layers)]
    # Each an array of its own for the runtime: equal ones might be merged.
    weights = [
        numpy_helper.from_array(np.diag(np.full(width, 1 + i * 1e-7, np.float32)), f"w{i}") for i in range(layers)
    ]
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(layers)]
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["h0"]),
        *nodes,
        helper.make_node("Identity", [f"h{layers}"], ["y"]),
    ]
    shape = ["rows", width]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [*weights, numpy_helper.from_array(np.array([factor], np.float32), "factor")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(folder / "fp32.onnx")
    )
    given = np.ones((1, width), np.float32)
    np.savez(folder / "warmup.npz", **{"input.x": given, "output.y": given * factor})
    text = _MANIFEST.format(name=name, version=version, width=width, memory_bytes=memory_bytes)
    (folder / MANIFEST_FILE).write_text(text, "utf-8")
    return folder


@dataclass(slots=True)
class Running:
    node: ServingNode
    channel: grpc.aio.Channel
    client: Any
    # How often `on_change` was called.
    changes: int = 0

    async def add(self, folder: Path, version: str = "") -> None:
        self.node.table.put(await self.node.load(folder, f"sha256:{folder.name}{version}"))

    async def ask(self, model: str, *, version: str = "", width: int = 4, timeout_s: float | None = None) -> float:
        """What a one becomes."""
        tensor = triton.InferInput("x", [1, width], "FP32")
        tensor.set_data_from_numpy(np.ones((1, width), np.float32))
        answer = await self.client.infer(model, [tensor], model_version=version, client_timeout=timeout_s)
        return float(answer.as_numpy("y")[0, 0])

    async def serving(self, name: str = "") -> bool:
        """What grpc.health.v1 says."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def serving_node(config: NodeConfig, engines: EngineFactory | None = None) -> AsyncIterator[Running]:
    """Everything is ended and closed afterwards."""
    running: Running

    def changed() -> None:
        running.changes += 1

    node = ServingNode(
        config, Place(node=PLACE.node, site="s", region="r"), engines or OnnxEngines(threads=1), on_change=changed
    )
    server = Server(Gatekeeper(mesh="test", verifier=None, policy=POLICY, open_door=True), config.max_message_bytes)
    add_servicers(server, node.servicer, node.health)
    address = server.listen_plain("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel, triton.InferenceServerClient(address) as client:
        running = Running(node, channel, client)
        task = asyncio.create_task(node.run())
        try:
            yield running
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop(None)
            await asyncio.gather(*(replica.close() for replica in node.table))
            await node.close()
