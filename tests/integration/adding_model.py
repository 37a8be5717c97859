"""Packages made on the spot: one that adds a constant, which tells versions apart, and one that takes its time."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from nearmesh.packaging.build import Artifact, build

# What all versions of `tuned` have in common.
BODY = np.random.default_rng(3).bytes(8_000_000)

MODEL_TOML = """
name = "{name}"
version = "{version}"
description = "adds {add}"
licence = "Apache-2.0"
credit = "the project"
inputs = [{{ name = "x", dtype = "FP32", shape = [-1] }}]
outputs = [{{ name = "y", dtype = "FP32", shape = [-1] }}]
variants = [{{ name = "fp32", source = {{ path = "weights.onnx" }} }}]
warmup = [{{ file = "warmup.npz" }}]
"""


def adding(
    folder: Path, name: str, version: str, add: float, *, expected: float | None = None, more: str = ""
) -> Artifact:
    """A version that adds `add`; its warm-up expects `expected`, so that it is proven wrong where the two differ."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(MODEL_TOML.format(name=name, version=version, add=add) + more)
    (folder / "weights.onnx").write_bytes(_graph(f"{name} {version}", add))
    given = np.array([1.0, 2.0], np.float32)
    promised = given + np.float32(add if expected is None else expected)
    np.savez(folder / "warmup.npz", **{"input.x": given, "output.y": promised})
    return build(folder, folder / "cache")


def _graph(name: str, add: float) -> bytes:
    """The name is in the bytes, so that no two versions share a blob."""
    constant = helper.make_tensor("c", TensorProto.FLOAT, [1], [add])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], name, ends[:1], ends[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def tuned(folder: Path, version: str, name: str = "tuned", body: bytes = BODY) -> Artifact:
    """A model whose large body is that of every version, with a head of its own."""
    adding(folder, name, version, 1.0)
    weights = folder / "weights.onnx"
    model = onnx.load(weights)
    head = np.random.default_rng(list(version.encode())).bytes(150_000)
    model.metadata_props.add(key="body", value=base64.b64encode(body).decode())
    model.metadata_props.add(key="head", value=base64.b64encode(head).decode())
    onnx.save(model, weights)
    return build(folder, folder / "cache")


def counting(folder: Path, name: str, *, warm: int = 3) -> Artifact:
    """y = x, reached by counting up to it: a request that takes as long as its caller likes; its warm-up is `warm`."""
    folder.mkdir(parents=True, exist_ok=True)
    toml = MODEL_TOML.format(name=name, version="1", add="one again and again").replace("FP32", "INT64")
    (folder / "model.toml").write_text(toml.replace("shape = [-1]", "shape = [1]"))
    (folder / "weights.onnx").write_bytes(_loop())
    arrays = {"input.x": np.array([warm], np.int64), "output.y": np.array([warm], np.int64)}
    np.savez(folder / "warmup.npz", **arrays)
    return build(folder, folder / "cache")


def _loop() -> bytes:
    def value(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["sum", "one"], ["sum_out"])],
        "body",
        [value("round", TensorProto.INT64), value("go", TensorProto.BOOL), value("sum", TensorProto.INT64, 1)],
        [value("go_on", TensorProto.BOOL), value("sum_out", TensorProto.INT64, 1)],
        [one],
    )
    nodes = [
        helper.make_node("Squeeze", ["x"], ["times"]),
        helper.make_node("Loop", ["times", "yes", "zero"], ["y"], body=body),
    ]
    start = [
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
    ]
    ends = [value(name, TensorProto.INT64, 1) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "counting", ends[:1], ends[1:], start)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


@dataclass(frozen=True, slots=True)
class Tampered:
    """An artifact whose blobs are not all what its manifest says."""

    artifact: Artifact
    blobs: Mapping[str, Path | bytes]

    @property
    def manifest(self):
        return self.artifact.manifest

    @property
    def manifest_bytes(self) -> bytes:
        return self.artifact.manifest_bytes


def tampered(artifact: Artifact) -> Tampered:
    """The same manifest with weights of which one bit is another."""
    weights = next(file for file in artifact.manifest.files if file.title == "fp32.onnx")
    blob = artifact.blobs[weights.digest]
    assert isinstance(blob, Path)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    return Tampered(artifact, {**artifact.blobs, weights.digest: bytes(data)})
