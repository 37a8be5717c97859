"""A package whose variants can be made and tried: a tiny classifier that knows its own classes, with all its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MANIFEST = """
name = "classes"
version = "1"
description = "for tests"
licence = "Apache-2.0"
credit = "the project"

[[inputs]]
name = "x"
dtype = "FP32"
shape = [-1, 16]

[[outputs]]
name = "y"
dtype = "FP32"
shape = [-1, 8]

[batching]
max_batch = 8

[[variants]]
name = "fp32"
source = { path = "weights.onnx" }

[[warmup]]
file = "warmup.npz"
"""
QUANTIZE = """
[[quantize]]
variant = "int8"
kind = "int8-static"
calibration = "calibration.npz"

[[quantize]]
variant = "light"
kind = "int8-dynamic"

[[quantize]]
variant = "half"
kind = "fp16"
hardware = "CUDAExecutionProvider"
"""
EVALUATION = """
[evaluation]
file = "evaluation.npz"
metric = "accuracy"

[gate]
largest_loss = 0.05
smallest_agreement = 0.9
"""
HIDDEN = 64


def write_package(folder: Path, *sections: str, cases: int = 60) -> Path:
    """`sections` go to the end of model.toml. Half of the cases lie clearly within their classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(MANIFEST + "".join(sections), "utf-8")
    random = np.random.default_rng(4)
    first = random.normal(0, 0.4, (16, HIDDEN)).astype(np.float32)
    second = random.normal(0, 0.4, (HIDDEN, 8)).astype(np.float32)
    write_classifier(folder / "weights.onnx", first, second)
    x = random.normal(0, 1, (2 * cases, 16)).astype(np.float32)
    y = scores(x, first, second)
    np.savez(folder / "warmup.npz", **{"input.x": x[:2], "output.y": y[:2]})
    np.savez(folder / "evaluation.npz", **{"input.x": x[:cases], "expected.y": y[:cases].argmax(axis=1)})
    np.savez(folder / "calibration.npz", **{"input.x": x[cases:]})
    return folder


def scores(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What the graph computes."""
    return np.maximum(x @ first, 0) @ second


def write_classifier(path: Path, first: np.ndarray, second: np.ndarray) -> None:
    """Two layers."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "second"], ["y"], name="two"),
    ]
    graph = helper.make_graph(
        nodes,
        "classes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
