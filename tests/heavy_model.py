"""A package of any size: it adds a constant, and its weights count for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nearmesh.packaging.build import Artifact, build
from tests.integration.adding_model import MODEL_TOML

ADDED = 3.0


def heavy(folder: Path, mib: int, version: str = "1") -> Artifact:
    """The model `heavy`."""
    weights = np.random.default_rng(int(version)).random(mib * 2**18, np.float32)
    held = [numpy_helper.from_array(weights, "w")]
    held += [
        numpy_helper.from_array(np.array([value], np.float32), name) for name, value in (("c", ADDED), ("zero", 0))
    ]
    nodes = [
        helper.make_node("ReduceMean", ["w"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "c"], ["sum"]),
        helper.make_node("Add", ["sum", "nothing"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "heavy", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(MODEL_TOML.format(name="heavy", version=version, add=ADDED))
    onnx.save(model, folder / "weights.onnx")
    given = np.array([1.0, 2.0], np.float32)
    np.savez(folder / "warmup.npz", **{"input.x": given, "output.y": given + np.float32(ADDED)})
    return build(folder, folder / "cache")
