"""Model packages of a few nodes, made on the spot: what tests of serving stand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from nearmesh.package import Batching, Package, Sequence, Source, State, TensorSpec, Variant, Warmup

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

# One array of shape [2, 3] for each dtype, with its extremes.
SAMPLES: dict[str, np.ndarray] = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    "UINT8": np.array([[0, 1, 2], [253, 254, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 2], [3, 4, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2], [3, 4, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2], [3, 4, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, -1, 0], [1, 2, 127]], np.int8),
    "INT16": np.array([[-32768, -1, 0], [1, 2, 32767]], np.int16),
    "INT32": np.array([[-(2**31), -1, 0], [1, 2, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), -1, 0], [1, 2, 2**63 - 1]], np.int64),
    "FP16": np.array([[0, -1.5, 65504], [6e-8, np.inf, -0.0]], np.float16),
    "FP32": np.array([[0, -1.5, 3e38], [1e-45, np.inf, -0.0]], np.float32),
    "FP64": np.array([[0, -1.5, 1e308], [5e-324, np.inf, -0.0]], np.float64),
    "BYTES": np.array([[b"", b"a", b"two words"], ["Grüße".encode(), b"\0", b"z" * 300]], object),
}


def spec(name: str, dtype: str, *shape: int, optional: bool = False) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, optional=optional)  # type: ignore[arg-type]


def package(name: str, inputs: list[TensorSpec], outputs: list[TensorSpec], **more: Any) -> Package:
    """A manifest with one variant, `fp32`."""
    return Package(
        **{
            "name": name,
            "version": "1",
            "description": "for tests",
            "licence": "Apache-2.0",
            "credit": "the project",
            "inputs": tuple(inputs),
            "outputs": tuple(outputs),
            "variants": (Variant(name="fp32", source=Source(path="fp32.onnx")),),
            **more,
        }
    )


def write_graph(folder: Path, described: Package, nodes: list[Any]) -> Package:
    """Writes `nodes` between the package's inputs and outputs; dimensions of any size get names of their own."""
    info = {
        what: [
            helper.make_tensor_value_info(
                item.name,
                ONNX_TYPES[item.dtype],
                [f"{item.name}_{axis}" if dim == -1 else dim for axis, dim in enumerate(item.shape)],
            )
            for item in items
        ]
        for what, items in (("inputs", described.inputs), ("outputs", described.outputs))
    }
    graph = helper.make_graph(nodes, described.name, info["inputs"], info["outputs"])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "fp32.onnx"))
    return described


def identity(folder: Path, dtype: str) -> Package:
    """`y` is `x`, [-1, 3] of one dtype."""
    described = package(f"identity-{dtype.lower()}", [spec("x", dtype, -1, 3)], [spec("y", dtype, -1, 3)])
    return write_graph(folder, described, [helper.make_node("Identity", ["x"], ["y"])])


def adder(folder: Path, **more: Any) -> Package:
    """`total` = `left` + `right` and `less` = `left` - `right`, [-1, 4], up to 8 rows; `right` may be left out."""
    described = package(
        "adder",
        [spec("left", "FP32", -1, 4), spec("right", "FP32", -1, 4, optional=True)],
        [spec("total", "FP32", -1, 4), spec("less", "FP32", -1, 4)],
        **{"batching": Batching(max_batch=8), **more},
    )
    nodes = [
        helper.make_node("Add", ["left", "right"], ["total"]),
        helper.make_node("Sub", ["left", "right"], ["less"]),
    ]
    return write_graph(folder, described, nodes)


def accumulator(folder: Path, *, version: str = "1", idle_s: float = 60.0) -> Package:
    """`sum` is all of a sequence's `x` so far; the node keeps `before` <- `after`."""
    described = package(
        "accumulator",
        [spec("x", "FP32", 1), spec("before", "FP32", 1)],
        [spec("sum", "FP32", 1), spec("after", "FP32", 1)],
        sequence=Sequence(state=(State(input="before", output="after", shape=(1,)),), idle_s=idle_s),
        version=version,
    )
    nodes = [
        helper.make_node("Add", ["x", "before"], ["after"]),
        helper.make_node("Identity", ["after"], ["sum"]),
    ]
    return write_graph(folder, described, nodes)


def write_warmup(folder: Path, file: str = "warmup.npz", **arrays: np.ndarray) -> Warmup:
    """A warm-up from arrays named `input_NAME` and `output_NAME`."""
    np.savez(folder / file, **{name.replace("_", ".", 1): array for name, array in arrays.items()})
    return Warmup(file=file)
