"""The first versions' graphs: what both studies' have in common. ONNX is loaded only here and in `graph` of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.federated.study import Arrays

OPSET, IR_VERSION = 17, 9


def initializers(arrays: Arrays) -> list[Any]:
    """Parameters by their names."""
    from onnx import numpy_helper

    return [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]


def onnx_model(
    name: str, nodes: Sequence[Any], constants: Sequence[Any], given: tuple[Any, ...], answered: tuple[Any, ...]
) -> Any:
    """A checked model of any number of rows: `given` and `answered` are a name each, and the shape of one row."""
    from onnx import TensorProto, checker, helper

    inputs, outputs = (
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["rows", *shape])]
        for tensor, *shape in (given, answered)
    )
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="nearmesh",
    )
    checker.check_model(model, full_check=True)
    return model
