"""A small mesh for federated runs: a control plane and three nodes, in whose data one of three kinds is missing."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2

from nearmesh.packaging.release import release
from nearmesh.v1 import node_pb2, run_pb2, run_pb2_grpc
from tests.integration.mesh_processes import ControlPlane, Node, control_plane, node, until
from tests.without_torch import without_torch

MODEL, KINDS, FEATURES = "kinds", 3, 4
# The same model, whose new versions have to answer as their parent did: what is learnt passes the gate and no canary.
STUBBORN = "stubborn"
SITES = ("north", "south", "west")
ENDED = (
    run_pb2.RUN_STATE_SERVED,
    run_pb2.RUN_STATE_REFUSED,
    run_pb2.RUN_STATE_ROLLED_BACK,
    run_pb2.RUN_STATE_STOPPED,
    run_pb2.RUN_STATE_FAILED,
)
# Rounds of Flower take some seconds each, and here all sites share the machine.
RUN_WITHIN_S = 240.0
CENTRES = np.random.default_rng(11).normal(0, 2.0, (KINDS, FEATURES))

TOML = """
name = "MODEL"
version = "1"
description = "Which of three kinds a point is of"
licence = "Apache-2.0"
credit = "the project"
inputs = [{ name = "x", dtype = "FP32", shape = [-1, 4] }]
outputs = [{ name = "scores", dtype = "FP32", shape = [-1, 3] }]
variants = [{ name = "fp32", source = { path = "kinds.onnx" } }]
batching = { max_batch = 8 }
warmup = [{ file = "warmup.npz" }]
[[quantize]]
variant = "int8"
kind = "int8-dynamic"
[evaluation]
file = "evaluation.npz"
[gate]
largest_loss = 0.05
smallest_agreement = 0.9
[training]
recipe = "training.py"
parameters = ["weight", "bias"]
metric = "accuracy"
[training.settings]
epochs = 20
learning_rate = 0.2
[training.gate]
# The parent knows nothing: next to its parameters whatever is learnt is long.
largest_change = 1000.0
[online_check]
smallest_agreement = AGREEMENT
"""

RECIPE = '''"""Softmax regression by gradient descent, over NumPy."""

import numpy as np


def train(arrays, data, settings):
    weight, bias = arrays["weight"].copy(), arrays["bias"].copy()
    x, wanted = data.inputs["x"], np.eye(len(bias), dtype=np.float32)[data.targets]
    for _ in range(settings["epochs"]):
        error = (_scores(weight, bias, x) - wanted) / len(x)
        weight -= settings["learning_rate"] * error.T @ x
        bias -= settings["learning_rate"] * error.sum(0)
    return {"weight": weight, "bias": bias}, {}


def evaluate(arrays, data, settings):
    found = outputs(arrays, data.inputs).argmax(1)
    return {"accuracy": float((found == data.targets).mean())}


def outputs(arrays, inputs):
    return _scores(arrays["weight"], arrays["bias"], inputs["x"])


def _scores(weight, bias, x):
    raised = np.exp(x @ weight.T + bias - (x @ weight.T + bias).max(1, keepdims=True))
    return (raised / raised.sum(1, keepdims=True)).astype(np.float32)
'''


def points(seed: int, count: int, *, without: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """FP32 [count, 4] around three centres, and which of them, INT64 [count]."""
    chance = np.random.default_rng(seed)
    kinds = [kind for kind in range(KINDS) if kind != without]
    which = chance.choice(kinds, count)
    return (CENTRES[which] + chance.normal(0, 1.0, (count, FEATURES))).astype(np.float32), which.astype(np.int64)


def package(folder: Path, model: str = MODEL) -> Path:
    """A version that knows nothing yet: all its parameters are 0 but for a little of one kind."""
    folder.mkdir(parents=True)
    agreement = "1.0" if model == STUBBORN else "0.1"
    (folder / "model.toml").write_text(TOML.replace("MODEL", model).replace("AGREEMENT", agreement))
    (folder / "training.py").write_text(RECIPE)
    onnx.save(_graph(), folder / "kinds.onnx")
    x, kinds = points(1, 300)
    np.savez(folder / "evaluation.npz", **{"input.x": x, "expected.scores": kinds})
    scores = np.tile(np.array([1, 0, 0], np.float32), (4, 1))
    raised = np.exp(scores * 0.1)
    given = {"input.x": x[:4], "output.scores": (raised / raised.sum(1, keepdims=True)).astype(np.float32)}
    np.savez(folder / "warmup.npz", **given)
    return folder


def _graph() -> onnx.ModelProto:
    parameters = [
        numpy_helper.from_array(np.zeros((KINDS, FEATURES), np.float32), "weight"),
        numpy_helper.from_array(np.array([0.1, 0, 0], np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", FEATURES])]
    found = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", KINDS])]
    graph = helper.make_graph(nodes, MODEL, given, found, parameters)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def site_data(folder: Path, lacking: int) -> dict[str, Any]:
    """The `[training]` table of a node, with its own data in which one kind is missing; what is held back has all."""
    folder.mkdir(parents=True)
    for name, seed, count, without in (("train", 20, 400, lacking), ("held_back", 30, 200, None)):
        x, kinds = points(seed + lacking, count, without=without)
        np.savez(folder / f"{name}.npz", **{"input.x": x, "target": kinds})
    return {"allowed": True, "data": {model: {"path": str(folder)} for model in (MODEL, STUBBORN)}}


@dataclass
class FederatedMesh:
    """A control plane and its nodes, and the runs that it is asked for."""

    plane: ControlPlane
    nodes: list[Node]

    def runs(self) -> Any:
        """RunService as a data team calls it."""
        return run_pb2_grpc.RunServiceStub(self.plane.channel("data"))

    async def run(self, run: str) -> Any:
        return await self.runs().Get(run_pb2.GetRunRequest(run=run), timeout=10)

    async def reaches(self, run: str, seen: Callable[[Any], bool], within_s: float = RUN_WITHIN_S) -> Any:
        """The run once `seen` holds of it; a control plane that is away meanwhile is waited for."""

        async def look() -> Any:
            try:
                found = await self.run(run)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                return None
            assert seen(found) or found.state not in ENDED, (run_pb2.RunState.Name(found.state), found.reason)
            return found if seen(found) else None

        return await until(look, within_s=within_s, what=f"{run}: {seen}\n{self.plane.child.last_words(40)}")

    async def ends(self, run: str, state: int = run_pb2.RUN_STATE_SERVED, within_s: float = RUN_WITHIN_S) -> Any:
        return await self.reaches(run, lambda found: found.state == state, within_s)

    async def right(self, of: Node, count: int = 200) -> float:
        """The share of points that a node's answers place rightly."""
        x, kinds = points(99, count)
        stub = of.stub()
        good = 0
        for start in range(0, count, 8):
            rows = x[start : start + 8]
            request = service_pb2.ModelInferRequest(model_name=MODEL)
            request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
            request.raw_input_contents.append(rows.tobytes())
            answer = await stub.ModelInfer(request, timeout=10)
            found = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(-1, KINDS).argmax(1)
            good += int((found == kinds[start : start + 8]).sum())
        return good / count


def asking(**more: Any) -> Any:
    """Two quick rounds, taken into serving by a short rollout."""
    promote = run_pb2.PromoteOptions(steps=[0.5], step_s=1.0, step_requests=1)
    asked = {"model": MODEL, "rounds": 2, "min_sites": 2, "round_timeout_s": 60.0, "auto_promote": True}
    return run_pb2.StartRunRequest(**{**asked, "promote": promote, **more})


@asynccontextmanager
async def federated_mesh(
    folder: Path, models: Sequence[str] = (MODEL,), superlink: Callable[[ControlPlane, str], str] = lambda *_: ""
) -> AsyncIterator[FederatedMesh]:
    """Running, with version 1 of each package served by every node; `superlink` is where a site's SuperNode goes."""
    async with AsyncExitStack() as stack:
        stack.enter_context(without_torch(folder / "without"))
        plane = await stack.enter_async_context(control_plane(folder / "plane"))
        nodes = []
        for number, name in enumerate(SITES):
            training = site_data(folder / f"data-{name}", number) | {"superlink": superlink(plane, name)}
            nodes.append(await stack.enter_async_context(node(plane, folder / name, f"node-{name}", training=training)))
        async with plane.operator() as operator:
            for model in models:
                made = release(package(folder / f"package-{model}", model), folder / "cache")
                await operator.publish(made)
                await operator.deploy(model, "1")
        for one, model in itertools.product(nodes, models):
            await one.says(model, lambda replica: replica.status.state == node_pb2.REPLICA_STATE_READY)
        yield FederatedMesh(plane, nodes)
