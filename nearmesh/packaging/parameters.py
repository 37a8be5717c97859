"""A graph's parameters by the names of its initializers: read out, and written back into a copy of the graph.

Nothing is guessed: an array goes where its name, shape and dtype say, and everything that does not fit is named at
once. The same graph and the same arrays give the same bytes. Tensors that lie in files beside the graph are read and
written there, without the rest of these files ever being in memory. Needs `onnx` (extra `build`).
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nearmesh.errors import PackageError
from nearmesh.packaging.graph import external_files

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

Array = npt.NDArray[Any]

# What rounds can average, in the byte order of ONNX files.
TRAINABLE: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype("<f4"), "DOUBLE": np.dtype("<f8"), "FLOAT16": np.dtype("<f2")}
# Where a tensor of the model's own file may have its numbers; `raw_data` alone is written.
_FIELDS = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")


def read(path: Path, names: Collection[str]) -> dict[str, Array]:
    """The graph's initializers of these names, in the order asked for; 16 bits stay 16 bits.

    Raises PackageError that names all of them that are not there, or are no numbers to be averaged.
    """
    graph = _Graph.open(path)
    _refuse(path, graph.problems(names))
    return {name: graph.read(name) for name in names}


def check(path: Path, names: Collection[str]) -> int:
    """How many numbers the initializers of these names have, together. Raises PackageError as `read` does."""
    graph = _Graph.open(path)
    _refuse(path, graph.problems(names))
    return sum(_count(graph.tensors[name]) for name in names)


def write(path: Path, arrays: Mapping[str, Array], target: Path) -> None:
    """A copy of the graph, with the arrays as its initializers of these names; all others stay as they are.

    Files beside the graph are copied beside `target`, under the names that the graph knows them by. Raises PackageError
    that names every array that is not just like the initializer that it replaces.
    """
    graph = _Graph.open(path)
    problems = [*graph.problems(arrays), *graph.differences(arrays), *graph.shared(arrays)]
    if graph.external and path.resolve().parent == target.resolve().parent:
        problems.append(f"{graph.external[0]} lies beside both {path.name} and {target.name}; choose another folder")
    _refuse(path, problems)
    for name in graph.external:
        shutil.copyfile(path.parent / name, target.parent / name)
    for name, array in arrays.items():
        graph.write(name, array, target.parent)
    _save(graph.model, target)


def _refuse(path: Path, problems: Collection[str]) -> None:
    if problems:
        raise PackageError("\n".join(f"{path}: {problem}" for problem in problems))


@dataclass(frozen=True, slots=True)
class _Graph:
    """A model whose external tensors are where they were."""

    path: Path
    model: ModelProto
    tensors: Mapping[str, TensorProto]
    # Names of the files beside it.
    external: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> _Graph:
        """Raises PackageError."""
        if importlib.util.find_spec("onnx") is None:
            raise PackageError("reading a graph's parameters needs onnx: pip install 'nearmesh[build]'")
        from google.protobuf.message import DecodeError
        from onnx import load_model

        try:
            model = load_model(str(path), load_external_data=False)
        except (OSError, DecodeError, ValueError) as error:
            raise PackageError(f"{path} is not an ONNX model: {error}") from None
        external = tuple(external_files(model))
        for name in external:
            if Path(name).name != name or not (path.parent / name).is_file():
                raise PackageError(f"{path}: the graph leaves tensors to {name!r}, which is no file beside it")
        return cls(path, model, {tensor.name: tensor for tensor in model.graph.initializer}, external)

    def problems(self, names: Collection[str]) -> list[str]:
        """What keeps initializers of these names from being read."""
        return [problem for name in names for problem in self._problems(name)]

    def _problems(self, name: str) -> Iterator[str]:
        tensor = self.tensors.get(name)
        if tensor is None:
            close = difflib.get_close_matches(name, self.tensors, n=1)
            near = f"did you mean {close[0]!r}?" if close else f"it has {_some(sorted(self.tensors))}"
            yield f"the graph has no initializer {name!r}; {near}"
        elif (element := element_of(tensor)) not in TRAINABLE:
            yield f"initializer {name!r} is {element}; parameters are {', '.join(TRAINABLE)}"
        elif self._size(tensor) != (needed := _count(tensor) * _dtype(tensor).itemsize):
            yield f"initializer {name!r} has {self._size(tensor)} bytes; its shape {list(tensor.dims)} needs {needed}"

    def differences(self, arrays: Mapping[str, Array]) -> Iterator[str]:
        """Between arrays and the initializers that they would replace."""
        for name, array in arrays.items():
            tensor = self.tensors.get(name)
            if tensor is None or element_of(tensor) not in TRAINABLE:
                continue
            if array.shape != (shape := tuple(tensor.dims)):
                yield f"array {name!r} has shape {list(array.shape)}, the initializer {list(shape)}"
            if array.dtype != _dtype(tensor):
                yield f"array {name!r} is {array.dtype}, the initializer {_dtype(tensor)}"

    def shared(self, arrays: Mapping[str, Array]) -> Iterator[str]:
        """Initializers whose bytes in a file beside the graph are those of others, too: with one, all would change."""
        ranges = {name: _range(tensor) for name, tensor in self.tensors.items() if _is_external(tensor)}
        for name in filter(ranges.__contains__, arrays):
            file, start, size = ranges[name]
            for other, (its_file, its_start, its_size) in ranges.items():
                if other != name and its_file == file and its_start < start + size and start < its_start + its_size:
                    yield f"initializers {name!r} and {other!r} share bytes of {file!r}; save the graph without that"

    def read(self, name: str) -> Array:
        tensor = self.tensors[name]
        dtype, shape = _dtype(tensor), tuple(tensor.dims)
        if _is_external(tensor):
            file, start, _ = _range(tensor)
            found = np.fromfile(self.path.parent / file, dtype, _count(tensor), offset=start)
        elif tensor.raw_data:
            found = np.frombuffer(tensor.raw_data, dtype).copy()
        else:
            from onnx import numpy_helper

            found = numpy_helper.to_array(tensor)
        return found.reshape(shape).astype(dtype.newbyteorder("="), copy=False)

    def write(self, name: str, array: Array, folder: Path) -> None:
        """Into the model, or into the file in `folder` that has the tensor."""
        tensor = self.tensors[name]
        data = np.ascontiguousarray(array, _dtype(tensor))
        if not _is_external(tensor):
            for field in _FIELDS:
                tensor.ClearField(field)
            tensor.raw_data = data.tobytes()
            return
        file, start, _ = _range(tensor)
        with (folder / file).open("r+b") as held:
            held.seek(start)
            held.write(data.data)
        # It was of the bytes before.
        for position, entry in reversed(list(enumerate(tensor.external_data))):
            if entry.key == "checksum":
                del tensor.external_data[position]

    def _size(self, tensor: TensorProto) -> int:
        """Bytes that are there for it."""
        if _is_external(tensor):
            file, start, size = _range(tensor)
            return min(size, max(0, (self.path.parent / file).stat().st_size - start))
        # Halves lie in fields of 32 bits, one each.
        each = len(tensor.float_data) + len(tensor.double_data) + len(tensor.int32_data)
        return len(tensor.raw_data) or each * _dtype(tensor).itemsize


def element_of(tensor: TensorProto) -> str:
    """What its numbers are, as ONNX calls it."""
    from onnx import TensorProto

    return TensorProto.DataType.Name(tensor.data_type)


def _dtype(tensor: TensorProto) -> np.dtype[Any]:
    return TRAINABLE[element_of(tensor)]


def _count(tensor: TensorProto) -> int:
    return math.prod(tensor.dims)


def _is_external(tensor: TensorProto) -> bool:
    from onnx import TensorProto

    return tensor.data_location == TensorProto.EXTERNAL


def _range(tensor: TensorProto) -> tuple[str, int, int]:
    """The file that has the tensor, where it begins there, and its bytes."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    bits = TRAINABLE.get(element_of(tensor))
    size = int(said.get("length") or (_count(tensor) * bits.itemsize if bits else 0))
    return said["location"], int(said.get("offset") or 0), size


def _some(names: list[str]) -> str:
    """So many that a message is still read."""
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"


def _save(model: ModelProto, target: Path) -> None:
    """All or nothing, and always the same bytes."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            file.write(model.SerializeToString(deterministic=True))
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).chmod(0o644)
    Path(file.name).replace(target)
