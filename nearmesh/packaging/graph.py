"""Whether an ONNX graph has the inputs and outputs that model.toml says it has. Needs `onnx` (extra `build`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nearmesh.errors import PackageError
from nearmesh.package import Package, TensorSpec, Variant

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

# ONNX's names of element types, in the Open Inference Protocol's words.
DTYPES = {
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
        model = load_model(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise PackageError(f"variant {variant.name!r}: {path} is not an ONNX model: {error}") from None
    graph = model.graph
    if variant.step:
        if not graph.node:
            raise PackageError(
                f"variant {variant.name!r} of step {variant.step!r}: {path} is an ONNX model without nodes"
            )
        _check_external(variant, model)
        return
    _check_external(variant, model)
    constants = {constant.name for constant in graph.initializer}
    inputs = _values(value for value in graph.input if value.name not in constants)
    where = f"variant {variant.name!r}"
    if missing := inputs.keys() - {spec.name for spec in package.inputs}:
        raise PackageError(f"{where}: the graph needs inputs that model.toml lacks: {', '.join(sorted(missing))}")
    _compare(f"{where}: input", package.inputs, inputs)
    _compare(f"{where}: output", package.outputs, _values(graph.output))


def _check_external(variant: Variant, model: ModelProto) -> None:
    """Raises PackageError unless the variant names every file that the graph leaves tensors to."""
    named = {data.name for data in variant.external}
    for location in external_files(model):
        if location not in named:
            raise PackageError(
                f"variant {variant.name!r}: the graph leaves tensors to {location!r}; name it in "
                "[[variants.external]], or save the graph with all of them inside"
            )


def input_names(path: Path) -> tuple[str, ...]:
    """What a caller has to give, in the graph's order; not what has a value in the graph. The file is an ONNX model."""
    from onnx import load_model

    graph = load_model(str(path), load_external_data=False).graph
    given = {tensor.name for tensor in graph.initializer}
    return tuple(info.name for info in graph.input if info.name not in given)


def external_files(model: ModelProto) -> Iterator[str]:
    """Where the tensors lie that are not in the model's own file, each once."""
    from onnx import TensorProto

    told = set()
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                if entry.key == "location" and entry.value not in told:
                    told.add(entry.value)
                    yield entry.value


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(inner)


def _values(infos: Iterable[ValueInfoProto]) -> dict[str, _Value]:
    return {info.name: _value(info) for info in infos}


def _value(info: ValueInfoProto) -> _Value:
    from onnx import TensorProto

    tensor = info.type.tensor_type
    element = TensorProto.DataType.Name(tensor.elem_type)
    known = tensor.HasField("shape")
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return _Value(DTYPES.get(element, element), dims if known else None)


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
