"""The three networks that are served, with random weights: what they compute means nothing, what it costs does.

Each has the cost of one that people run: a small MLP, MobileNetV2 of width 1.0 with its normalisation folded into the
convolutions (Sandler et al. 2018, table 2), and an encoder of the shape of all-MiniLM-L6-v2 with mean pooling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The batch axis of every input and output.
BATCH = "N"
# LayerNormalization came with 17; IR 8 is what goes with it.
OPSET, IR_VERSION = 17, 8

PIXELS = 224
# Expansion, channels out, blocks, stride of the first one.
MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
TOKENS, VOCABULARY, HIDDEN, LAYERS, HEADS, FEED_FORWARD = 128, 30_522, 384, 6, 12, 1536
# By how much less what is not clipped varies.
LINEAR = 4
# What is added to the scores of tokens that the mask leaves out.
MASKED = -1e4


class Graph:
    """A network under construction; every method that adds a node returns the name of what it computes."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: type[np.generic] = np.float32) -> str:
        """A weight or a parameter of that value."""
        name = f"constant_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        """Random, with the variance that keeps activations of a ReLU network at one size (He et al. 2015)."""
        return self.constant(self._random.standard_normal(shape) * math.sqrt(2 / fan_in))

    def bias(self, size: int) -> str:
        return self.constant(self._random.standard_normal(size) * 0.01)

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output, named `output` if that is given."""
        name = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def linear(self, values: str, size_in: int, size_out: int) -> str:
        """A product with a matrix, and a bias."""
        product = self.add("MatMul", values, self.weight(size_in, size_out, fan_in=size_in * 2))
        return self.add("Add", product, self.bias(size_out))

    def finish(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The whole model, checked."""
        graph = helper.make_graph(self._nodes, self._name, inputs, outputs, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def _value(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [BATCH, *shape])


def tiny() -> onnx.ModelProto:
    """64 numbers to 10, over one hidden layer of 128."""
    graph = Graph("tiny", seed=11)
    hidden = graph.add("Relu", graph.add("Gemm", "x", graph.weight(64, 128, fan_in=64), graph.bias(128)))
    graph.add("Gemm", hidden, graph.weight(128, 10, fan_in=128), graph.bias(10), output="y")
    return graph.finish([_value("x", TensorProto.FLOAT, 64)], [_value("y", TensorProto.FLOAT, 10)])


def image() -> onnx.ModelProto:
    """A picture of 224 x 224 to 1000 classes."""
    graph = Graph("image", seed=12)
    values, channels = _convolution(graph, "pixels", (3, 32), kernel=3, stride=2), 32
    for expansion, channels_out, blocks, stride in MOBILENET_STAGES:
        for block in range(blocks):
            step = stride if block == 0 else 1
            values = _bottleneck(graph, values, (channels, channels_out), expansion, step)
            channels = channels_out
    values = _convolution(graph, values, (channels, 1280), kernel=1)
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", values), axis=1)
    graph.add("Gemm", pooled, graph.weight(1280, 1000, fan_in=1280), graph.bias(1000), output="scores")
    pixels = _value("pixels", TensorProto.FLOAT, 3, PIXELS, PIXELS)
    return graph.finish([pixels], [_value("scores", TensorProto.FLOAT, 1000)])


def _bottleneck(graph: Graph, values: str, channels: tuple[int, int], expansion: int, stride: int) -> str:
    """Widen, filter each channel, narrow; with a way around where the shape stays."""
    narrow, narrow_out = channels
    wide = narrow * expansion
    inner = values if expansion == 1 else _convolution(graph, values, (narrow, wide), kernel=1)
    inner = _convolution(graph, inner, (wide, wide), kernel=3, stride=stride, groups=wide)
    inner = _convolution(graph, inner, (wide, narrow_out), kernel=1, clipped=False)
    return graph.add("Add", values, inner) if stride == 1 and narrow == narrow_out else inner


def _convolution(
    graph: Graph,
    values: str,
    channels: tuple[int, int],
    *,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    clipped: bool = True,
) -> str:
    per_group = channels[0] // groups
    fan_in = per_group * kernel * kernel
    # What is not clipped adds to what goes around it: as large as before, the sums would grow into the clipping, and
    # every picture would get about the same answer.
    weight = graph.weight(channels[1], per_group, kernel, kernel, fan_in=fan_in if clipped else fan_in * LINEAR)
    filtered = graph.add(
        "Conv",
        values,
        weight,
        graph.bias(channels[1]),
        group=groups,
        kernel_shape=[kernel, kernel],
        pads=[kernel // 2] * 4,
        strides=[stride, stride],
    )
    return graph.add("Clip", filtered, graph.constant(0), graph.constant(6)) if clipped else filtered


def encoder() -> onnx.ModelProto:
    """128 tokens and their mask to one embedding of 384 numbers."""
    graph = Graph("encoder", seed=13)
    words = graph.add("Gather", graph.weight(VOCABULARY, HIDDEN, fan_in=HIDDEN), "input_ids")
    values = _normalised(graph, graph.add("Add", words, graph.weight(TOKENS, HIDDEN, fan_in=HIDDEN)))
    mask = graph.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden_out = graph.add("Mul", graph.add("Sub", graph.constant(1), mask), graph.constant(MASKED))
    hidden_out = graph.add("Unsqueeze", hidden_out, graph.constant([1, 2], np.int64))
    for _ in range(LAYERS):
        values = _normalised(graph, graph.add("Add", values, _attention(graph, values, hidden_out)))
        values = _normalised(graph, graph.add("Add", values, _feed_forward(graph, values)))
    _mean(graph, values, mask)
    tokens = [_value(name, TensorProto.INT64, TOKENS) for name in ("input_ids", "attention_mask")]
    return graph.finish(tokens, [_value("embedding", TensorProto.FLOAT, HIDDEN)])


def _normalised(graph: Graph, values: str) -> str:
    scale, shift = graph.constant(np.ones(HIDDEN)), graph.constant(np.zeros(HIDDEN))
    return graph.add("LayerNormalization", values, scale, shift, axis=-1, epsilon=1e-12)


def _attention(graph: Graph, values: str, hidden_out: str) -> str:
    head = HIDDEN // HEADS
    shape = graph.constant([0, TOKENS, HEADS, head], np.int64)

    def heads(order: list[int]) -> str:
        return graph.add("Transpose", graph.add("Reshape", graph.linear(values, HIDDEN, HIDDEN), shape), perm=order)

    query, key, value = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    scores = graph.add("Mul", graph.add("MatMul", query, key), graph.constant(head**-0.5))
    attention = graph.add("Softmax", graph.add("Add", scores, hidden_out), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", attention, value), perm=[0, 2, 1, 3])
    together = graph.add("Reshape", mixed, graph.constant([0, TOKENS, HIDDEN], np.int64))
    return graph.linear(together, HIDDEN, HIDDEN)


def _feed_forward(graph: Graph, values: str) -> str:
    """With GELU in its exact form, which this opset spells out."""
    inner = graph.linear(values, HIDDEN, FEED_FORWARD)
    error = graph.add("Erf", graph.add("Mul", inner, graph.constant(0.5**0.5)))
    halved = graph.add("Mul", inner, graph.constant(0.5))
    return graph.linear(graph.add("Mul", halved, graph.add("Add", error, graph.constant(1))), FEED_FORWARD, HIDDEN)


def _mean(graph: Graph, values: str, mask: str) -> None:
    """Over the tokens that the mask has."""
    counted = graph.add("Mul", values, graph.add("Unsqueeze", mask, graph.constant([2], np.int64)))
    axis = graph.constant([1], np.int64)
    total = graph.add("ReduceSum", counted, axis, keepdims=0)
    graph.add("Div", total, graph.add("ReduceSum", mask, axis, keepdims=1), output="embedding")
