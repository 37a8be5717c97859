"""What an ONNX file says of itself: its real inputs and outputs, opsets, files beside it, and hints at values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nearmesh.errors import PackageError
from nearmesh.package import DType
from nearmesh.packaging.graph import DTYPES, external_files
from nearmesh.packaging.parameters import TRAINABLE, element_of
from nearmesh.packaging.sources.instead import what_came_instead

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, ValueInfoProto

# A number, a name for any size, or None for any size without a name.
Dim = int | str | None

# What hands on whole numbers as they are, in another shape or type.
_HANDS_ON = {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Transpose"}
# By the position of an index among the inputs of ONNX Runtime's own embedding: the position of its table.
_EMBEDDING = {0: 2, 1: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One input or output; `dims` is None where the graph does not say its rank."""

    name: str
    dtype: DType
    dims: tuple[Dim, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of one ONNX file."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    # By domain, where "" is ONNX's own.
    opsets: Mapping[str, int]
    ir_version: int
    description: str
    # Where tensors lie that are not in the file itself, as paths from its folder.
    external: tuple[str, ...]
    # By input: how many entries the smallest table has that its values look things up in.
    tables: Mapping[str, int]
    # By input: the whole numbers that the graph compares its values with.
    compared: Mapping[str, tuple[int, ...]]
    # Initializers that rounds of training could change: those with axes, of a floating-point type.
    parameters: tuple[str, ...] = ()


def read(path: Path) -> Facts:
    """Raises PackageError."""
    model = load(path)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    given = weights.keys() | {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = tuple(_value("input", info) for info in graph.input if info.name not in given)
    uses = _Uses(graph, weights)
    return Facts(
        inputs=inputs,
        outputs=tuple(_value("output", info) for info in graph.output),
        opsets={"" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import},
        ir_version=model.ir_version,
        description=" ".join((model.doc_string or graph.doc_string).split()),
        external=tuple(external_files(model)),
        tables={value.name: size for value in inputs if (size := min(uses.tables(value.name), default=0))},
        parameters=tuple(t.name for t in graph.initializer if t.dims and element_of(t) in TRAINABLE),
        compared={value.name: found for value in inputs if (found := tuple(uses.compared(value.name)))},
    )


def load(path: Path, *, with_external: bool = False) -> ModelProto:
    """The file as `onnx` reads it. Raises PackageError."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise PackageError("reading an ONNX file needs onnx: pip install 'nearmesh[build]'") from None
    if instead := what_came_instead(path):
        raise PackageError(f"{path} is {instead}")
    try:
        model = onnx.load_model(str(path), load_external_data=with_external)
    except (DecodeError, ValueError) as error:
        raise PackageError(f"{path} is not an ONNX model: {error}") from None
    except (onnx.checker.ValidationError, FileNotFoundError) as error:
        raise PackageError(f"{path}: what it keeps in files beside it cannot be read: {error}") from None
    if not model.graph.node:
        raise PackageError(f"{path} is not an ONNX model, or one without nodes")
    return model


def _value(what: str, info: ValueInfoProto) -> Value:
    from onnx import TensorProto

    if not info.type.HasField("tensor_type"):
        kind = info.type.WhichOneof("value") or "nothing known"
        remedy = "; of scikit-learn's classifiers: convert with options={'zipmap': False}" if what == "output" else ""
        raise PackageError(f"{what} {info.name!r} is {kind}; the mesh carries tensors only{remedy}")
    tensor = info.type.tensor_type
    element = TensorProto.DataType.Name(tensor.elem_type)
    if element not in DTYPES:
        served = ", ".join(sorted(DTYPES.values()))
        raise PackageError(f"{what} {info.name!r} has elements of type {element}; the mesh carries {served}")
    dims = tuple(_dim(dim) for dim in tensor.shape.dim)
    return Value(name=info.name, dtype=cast(DType, DTYPES[element]), dims=dims if tensor.HasField("shape") else None)


def _dim(dim: TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        # Some exporters write -1 for any size.
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


class _Uses:
    """Who reads which value, in the outer graph."""

    def __init__(self, graph: GraphProto, weights: Mapping[str, TensorProto]) -> None:
        self._sizes = {name: tuple(tensor.dims) for name, tensor in weights.items()}
        self._constants = dict(weights)
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._constants[node.output[0]] = attribute.t
                        self._sizes[node.output[0]] = tuple(attribute.t.dims)

    def tables(self, name: str) -> Iterator[int]:
        """Of the tables that the value is an index into, how many entries each has."""
        for value, node in self._readings(name):
            if node.op_type == "Gather" and node.input[1] == value:
                axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
                yield from self._entries(node.input[0], axis)
            if node.op_type == "EmbedLayerNormalization":
                for position, table in _EMBEDDING.items():
                    if node.input[position] == value and table < len(node.input):
                        yield from self._entries(node.input[table], 0)

    def _entries(self, table: str, axis: int) -> Iterable[int]:
        size = self._sizes.get(table, ())
        return (size[axis],) if -len(size) <= axis < len(size) else ()

    def compared(self, name: str) -> Iterator[int]:
        """The whole numbers that the value is compared with."""
        from onnx import numpy_helper

        for value, node in self._readings(name):
            other = node.input[1 - list(node.input).index(value)] if node.op_type == "Equal" else ""
            constant = self._constants.get(other)
            if constant is not None and sum(constant.dims) <= 1 and constant.data_location == 0:
                numbers = numpy_helper.to_array(constant).reshape(-1)
                if numbers.dtype.kind in "iuf":
                    yield from (int(one) for one in numbers if float(one).is_integer())

    def _readings(self, name: str) -> Iterator[tuple[str, NodeProto]]:
        """Every node that reads the value, or what only hands it on."""
        seen, waiting = {name}, [name]
        while waiting:
            value = waiting.pop()
            for node in self._readers.get(value, ()):
                yield value, node
                if node.op_type in _HANDS_ON and node.input[0] == value and node.output[0] not in seen:
                    seen.add(node.output[0])
                    waiting.append(node.output[0])
