"""A package that rounds can train, as small as one can be: y = x @ weight + bias, published as its author would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nearmesh.packaging.agent_run import Ran
from nearmesh.packaging.sets import read_set

WEIGHT = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
BIAS = np.zeros(3, np.float32)

MODEL_TOML = """\
# A comment of the author's.
name = "linear"
version = "1.0"
description = "x @ weight + bias"
licence = "Apache-2.0"
credit = "the project"

[[inputs]]
name = "x"
dtype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
dtype = "FP32"
shape = [-1, 3]

[batching]
max_batch = 8

[[variants]]
name = "fp32"
source = { path = "made/by/the/author.onnx" }

[[warmup]]
file = "warmup.npz"

[training]
recipe = "training.py"
parameters = ["weight", "bias"]

[training.settings]
epochs = 3

[training.gate]
largest_change = 3.0
"""
EVALUATED = """
[evaluation]
file = "cases.npz"
"""


def trainable(folder: Path, more: str = EVALUATED) -> Path:
    """The author's folder."""
    (folder / "made" / "by" / "the").mkdir(parents=True)
    (folder / "model.toml").write_text(MODEL_TOML + more, "utf-8")
    (folder / "training.py").write_text("def train(arrays, data, settings): ...\n", "utf-8")
    write_graph(folder / "made" / "by" / "the" / "author.onnx")
    x = np.array([[1, 2], [3, 4]], np.float32)
    np.savez(folder / "warmup.npz", **{"input.x": x, "output.y": x @ WEIGHT + BIAS})
    cases = np.array([[2, 1], [0, 3]], np.float32)
    np.savez(folder / "cases.npz", **{"input.x": cases, "expected.y": np.array([0, 1])})
    return folder


def write_graph(path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])
    constants = [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(BIAS, "bias")]
    graph = helper.make_graph([node], "linear", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def by_numpy(folder: Path, variants: Mapping[str, str], cases: Path) -> Ran:
    """In place of `nearmesh-agent evaluate`: answers by the parameters of the variant's graph, row by row or request by
    request."""
    graph = onnx.load(str(folder / f"{variants['']}.onnx")).graph
    arrays = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    inputs, _ = read_set(cases)
    x = inputs["x"] if inputs["x"].ndim == 3 else inputs["x"][:, None]
    return Ran(outputs={"y": [one @ arrays["weight"] + arrays["bias"] for one in x]}, ms_p50=1.0, rows_per_second=9.0)
