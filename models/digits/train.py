"""Writes digits.onnx: a network of two layers, trained on the few images that the author of the package has.

    python models/digits/train.py

Scikit-learn trains it, by a fixed seed; the graph is written with `onnx`. Its weights are the initializers that
PARAMETERS names, as layers have them elsewhere ([out, in]), so that who trains further can read and write them by name:
`arrays_of` and `graph_of` are each other's inverse.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from data import authors
from onnx import TensorProto, helper, numpy_helper
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

TARGET = Path(__file__).with_name("digits.onnx")
SEED = 1
HIDDEN, CLASSES, PIXELS = 64, 10, 64
# Ink goes from 0 to 16.
MOST_INK = 16.0
# By name, in order: what training changes.
PARAMETERS = {
    "layer1.weight": (HIDDEN, PIXELS),
    "layer1.bias": (HIDDEN,),
    "layer2.weight": (CLASSES, HIDDEN),
    "layer2.bias": (CLASSES,),
}
# The oldest that every runtime of the last years takes.
OPSET, IR_VERSION = 17, 9


def train(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters by name, FP32."""
    network = MLPClassifier((HIDDEN,), alpha=0.01, learning_rate_init=0.005, max_iter=60, random_state=SEED)
    # Sums that are shared out over cores are rounded by how many there are.
    with threadpool_limits(1), warnings.catch_warnings():
        # It stops after max_iter rounds, as it is told to.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(images / MOST_INK, labels)
    layers = zip(network.coefs_, network.intercepts_, strict=True)
    arrays = [array for weight, bias in layers for array in (weight.T, bias)]
    return {name: np.ascontiguousarray(a, np.float32) for name, a in zip(PARAMETERS, arrays, strict=True)}


def graph_of(arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The network with these parameters. Raises ValueError for others than PARAMETERS."""
    for name, shape in PARAMETERS.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} is {list(arrays[name].shape)}, expected {list(shape)}")
    nodes = [
        helper.make_node("Div", ["pixels", "most_ink"], ["ink"], "scale"),
        helper.make_node("Gemm", ["ink", "layer1.weight", "layer1.bias"], ["seen"], "layer1", transB=1),
        helper.make_node("Relu", ["seen"], ["hidden"], "relu"),
        helper.make_node("Gemm", ["hidden", "layer2.weight", "layer2.bias"], ["logits"], "layer2", transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], "softmax", axis=1),
    ]
    constants = [numpy_helper.from_array(np.float32(MOST_INK), "most_ink")]
    constants += [numpy_helper.from_array(arrays[name].astype(np.float32), name) for name in PARAMETERS]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", PIXELS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", CLASSES])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="nearmesh"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def arrays_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The parameters by name, from a graph that `graph_of` made."""
    found = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    return {name: found[name] for name in PARAMETERS}


if __name__ == "__main__":
    onnx.save(graph_of(train(*authors())), TARGET)
