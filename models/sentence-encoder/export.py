"""Writes encoder.onnx: all-MiniLM-L6-v2 as a graph whose tensors lie in the safetensors file of the wheel.

    python models/sentence-encoder/export.py

A safetensors file is a list of tensors, by name, shape and place, and then their plain bytes; ONNX takes tensors from
any file by place and length. So the graph (BERT's encoder, the mean over a text's tokens, length 1) is some 30 kB and
names the bytes where they are: the weights are those that its authors published, not a bit is converted.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nearmesh.package import load
from nearmesh.packaging.sources import default_cache, fetch

FOLDER = Path(__file__).parent
TARGET = FOLDER / "encoder.onnx"
WEIGHTS = "model.safetensors"

# As config.json of the model has them.
LAYERS, HIDDEN, HEADS = 6, 384, 12
HEAD = HIDDEN // HEADS
EPSILON = 1e-12
# Added to the scores of tokens that are none: the softmax makes nothing of them.
NOT_A_TOKEN = -10_000.0
# The oldest that has LayerNormalization.
OPSET, IR_VERSION = 17, 9
ELEMENT_TYPES = {"F32": TensorProto.FLOAT}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass
class Graph:
    """Nodes and constants as they come; each method adds one and returns the name of what it gives."""

    # Of the safetensors file: by name, dtype, shape and place.
    tensors: Mapping[str, Mapping[str, Any]]
    # Where its tensors' bytes begin.
    begin: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def add(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str) -> str:
        """A tensor of the safetensors file."""
        found = self.tensors[name]
        start, end = found["data_offsets"]
        tensor = TensorProto(name=name, data_type=ELEMENT_TYPES[found["dtype"]], dims=found["shape"])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", self.begin + start), ("length", end - start)):
            tensor.external_data.add(key=key, value=str(value))
        self.constants.setdefault(name, tensor)
        return name

    def linear(self, inputs: str, layer: str, name: str) -> str:
        """As torch has it: the weight is [out, in]."""
        weight = self.add("Transpose", [self.weight(f"{layer}.weight")], f"{name}/weight", perm=[1, 0])
        product = self.add("MatMul", [inputs, weight], f"{name}/product")
        return self.add("Add", [product, self.weight(f"{layer}.bias")], name)

    def norm(self, inputs: str, layer: str, name: str) -> str:
        scale, bias = self.weight(f"{layer}.weight"), self.weight(f"{layer}.bias")
        return self.add("LayerNormalization", [inputs, scale, bias], name, axis=-1, epsilon=EPSILON)

    def gelu(self, inputs: str, name: str) -> str:
        """x/2 (1 + erf(x / sqrt 2)), in the order that ONNX Runtime knows as one operator."""
        scaled = self.add("Div", [inputs, self.constant("root_two", 2**0.5)], f"{name}/scaled")
        share = self.add("Erf", [scaled], f"{name}/erf")
        share = self.add("Add", [share, self.constant("one", 1)], f"{name}/share")
        product = self.add("Mul", [inputs, share], f"{name}/product")
        return self.add("Mul", [product, self.constant("half", 0.5)], name)

    def heads(self, inputs: str, name: str, perm: list[int]) -> str:
        """[rows, tokens, HIDDEN] as [rows, HEADS, ...]."""
        shape = self.constant("by_head", [0, 0, HEADS, HEAD], np.int64)
        return self.add("Transpose", [self.add("Reshape", [inputs, shape], f"{name}/by_head")], name, perm=perm)


def embeddings(graph: Graph) -> str:
    """Word, place and kind of each token, added up."""
    word = graph.add("Gather", [graph.weight("embeddings.word_embeddings.weight"), "input_ids"], "word")
    kind = graph.add("Gather", [graph.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"], "kind")
    count = graph.add("Shape", ["input_ids"], "count", start=1, end=2)
    places = graph.weight("embeddings.position_embeddings.weight")
    zero, axis = graph.constant("zero", [0], np.int64), graph.constant("first", [0], np.int64)
    place = graph.add("Slice", [places, zero, count, axis], "place")
    total = graph.add("Add", [graph.add("Add", [word, kind], "word_and_kind"), place], "embedded/total")
    return graph.norm(total, "embeddings.LayerNorm", "embedded")


def not_tokens(graph: Graph) -> str:
    """What is added to attention scores, [rows, 1, 1, tokens]: nothing, or NOT_A_TOKEN where the mask is 0."""
    mask = graph.add("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    missing = graph.add("Sub", [graph.constant("one", 1), mask], "missing")
    lowered = graph.add("Mul", [missing, graph.constant("not_a_token", NOT_A_TOKEN)], "lowered")
    return graph.add("Unsqueeze", [lowered, graph.constant("inner", [1, 2], np.int64)], "lowered/by_head")


def layer(graph: Graph, hidden: str, lowered: str, number: int) -> str:
    """One of the encoder's layers."""
    own, name = f"encoder.layer.{number}", f"layer{number}"
    attention = f"{own}.attention.self"
    query = graph.heads(graph.linear(hidden, f"{attention}.query", f"{name}/query"), f"{name}/queries", [0, 2, 1, 3])
    key = graph.heads(graph.linear(hidden, f"{attention}.key", f"{name}/key"), f"{name}/keys", [0, 2, 3, 1])
    value = graph.heads(graph.linear(hidden, f"{attention}.value", f"{name}/value"), f"{name}/values", [0, 2, 1, 3])
    scores = graph.add("MatMul", [query, key], f"{name}/scores")
    scores = graph.add("Div", [scores, graph.constant("root_head", HEAD**0.5)], f"{name}/scores/scaled")
    scores = graph.add("Add", [scores, lowered], f"{name}/scores/masked")
    shares = graph.add("Softmax", [scores], f"{name}/shares", axis=-1)
    heard = graph.add("MatMul", [shares, value], f"{name}/heard")
    heard = graph.add("Transpose", [heard], f"{name}/heard/by_token", perm=[0, 2, 1, 3])
    heard = graph.add(
        "Reshape", [heard, graph.constant("together", [0, 0, HIDDEN], np.int64)], f"{name}/heard/together"
    )
    heard = graph.linear(heard, f"{own}.attention.output.dense", f"{name}/attention")
    heard = graph.add("Add", [heard, hidden], f"{name}/attention/total")
    heard = graph.norm(heard, f"{own}.attention.output.LayerNorm", f"{name}/attended")
    wide = graph.gelu(graph.linear(heard, f"{own}.intermediate.dense", f"{name}/wide"), f"{name}/gelu")
    narrow = graph.linear(wide, f"{own}.output.dense", f"{name}/narrow")
    total = graph.add("Add", [narrow, heard], f"{name}/total")
    return graph.norm(total, f"{own}.output.LayerNorm", name)


def pooled(graph: Graph, hidden: str) -> str:
    """The mean over a text's tokens, scaled to length 1; a row without tokens is all zeros."""
    mask = graph.add("Unsqueeze", ["mask", graph.constant("last", [-1], np.int64)], "mask/by_token")
    tokens = graph.add("ReduceSum", [mask, graph.constant("over_tokens", [1], np.int64)], "tokens", keepdims=0)
    tokens = graph.add("Max", [tokens, graph.constant("least_count", 1e-9)], "tokens/least")
    kept = graph.add("Mul", [hidden, mask], "kept")
    total = graph.add("ReduceSum", [kept, "over_tokens"], "kept/total", keepdims=0)
    mean = graph.add("Div", [total, tokens], "mean")
    length = graph.add("ReduceL2", [mean], "length", axes=[-1], keepdims=1)
    length = graph.add("Max", [length, graph.constant("least_length", 1e-12)], "length/least")
    return graph.add("Div", [mean, length], "embedding")


def export(weights: Path) -> onnx.ModelProto:
    """The graph over the tensors of a safetensors file."""
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(size))
    graph = Graph(tensors, 8 + size)
    hidden, lowered = embeddings(graph), not_tokens(graph)
    for number in range(LAYERS):
        hidden = layer(graph, hidden, lowered, number)
    pooled(graph, hidden)
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in INPUTS]
    answer = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["rows", HIDDEN])]
    made = helper.make_graph(graph.nodes, "sentence-encoder", ids, answer, list(graph.constants.values()))
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="nearmesh"
    )


def weights_file() -> Path:
    """The safetensors file, verified, by way of the cache."""
    (source,) = [data.source for data in load(FOLDER).variants[0].external if data.name == WEIGHTS]
    return fetch(source, FOLDER, default_cache())


if __name__ == "__main__":
    TARGET.write_bytes(export(weights_file()).SerializeToString(deterministic=True))
