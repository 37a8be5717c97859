"""Whether an ONNX graph has the inputs and outputs that model.toml says it has. Needs `onnx` (extra `build`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nearmesh.errors import PackageError
from nearmesh.package import Package, TensorSpec, Variant

if TYPE_CHECKING:
    from onnx import ValueInfoProto

# ONNX's names of element types, in the Open Inference Protocol's words.
_DTYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "STRING": "BYTES",
}


@dataclass(frozen=True, slots=True)
class _Value:
    """One input or output of a graph; the shape is unknown, or has -1 for a symbolic dimension."""

    dtype: str
    shape: tuple[int, ...] | None


def check_graph(package: Package, variant: Variant, path: Path) -> None:
    """Compares names, dtypes and shapes, if `onnx` is installed. Raises PackageError that shows both sides.

    The graph of a pipeline's step only has to be one: what it is fed with, functions beside it may have made.
    """
    if importlib.util.find_spec("onnx") is None:
        return
    from google.protobuf.message import DecodeError
    from onnx import load_model

    try:
        graph = load_model(str(path), load_external_data=False).graph
    except (DecodeError, ValueError) as error:
        raise PackageError(f"variant {variant.name!r}: {path} is not an ONNX model: {error}") from None
    if variant.step:
        if not graph.node:
            raise PackageError(
                f"variant {variant.name!r} of step {variant.step!r}: {path} is an ONNX model without nodes"
            )
        return
    constants = {constant.name for constant in graph.initializer}
    inputs = _values(value for value in graph.input if value.name not in constants)
    where = f"variant {variant.name!r}"
    if missing := inputs.keys() - {spec.name for spec in package.inputs}:
        raise PackageError(f"{where}: the graph needs inputs that model.toml lacks: {', '.join(sorted(missing))}")
    _compare(f"{where}: input", package.inputs, inputs)
    _compare(f"{where}: output", package.outputs, _values(graph.output))


def _values(infos: Iterable[ValueInfoProto]) -> dict[str, _Value]:
    return {info.name: _value(info) for info in infos}


def _value(info: ValueInfoProto) -> _Value:
    from onnx import TensorProto

    tensor = info.type.tensor_type
    element = TensorProto.DataType.Name(tensor.elem_type)
    known = tensor.HasField("shape")
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return _Value(_DTYPES.get(element, element), dims if known else None)


def _compare(what: str, specs: Iterable[TensorSpec], values: Mapping[str, _Value]) -> None:
    for spec in specs:
        value = values.get(spec.name)
        if value is None:
            raise PackageError(f"{what} {spec.name!r} is not in the graph, which has {', '.join(sorted(values))}")
        if value.dtype != spec.dtype:
            raise PackageError(f"{what} {spec.name!r}: model.toml says {spec.dtype}, the graph {value.dtype}")
        if value.shape is not None and not _fits(spec.shape, value.shape):
            said, has = list(spec.shape), list(value.shape)
            raise PackageError(f"{what} {spec.name!r}: model.toml says shape {said}, the graph {has}")


def _fits(said: tuple[int, ...], has: tuple[int, ...]) -> bool:
    """A symbolic dimension of the graph allows any; a fixed one wants just that."""
    return len(said) == len(has) and all(there in (-1, here) for here, there in zip(said, has, strict=True))
