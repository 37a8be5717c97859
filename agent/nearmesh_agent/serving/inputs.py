"""Whether a request's tensors are what the package takes, and what is filled in where it may leave something out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearmesh import tensors
from nearmesh.errors import InvalidInput, Unsupported
from nearmesh.package import Package, TensorSpec
from nearmesh_agent.engines.base import Array
from nearmesh_agent.serving.wire import Received

# What a request gets from nowhere else but itself.
NOTHING: Mapping[str, Array] = {}


class Intake:
    """Reads the requests of one package."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._specs = {spec.name: spec for spec in package.inputs}
        self._plain = {spec.name: _plain(package, spec) for spec in package.inputs if spec.dtype not in _CHECKED}

    def read(self, request: Received, *, held: Mapping[str, Array] = NOTHING) -> Mapping[str, Array]:
        """Every input of the package; `held` are those that a sequence keeps on the node.

        Names, dtypes and shapes are checked before any contents are touched. Raises InvalidInput, Unsupported.
        """
        found = None if held else self._quick(request)
        return _aligned(self._careful(request, held) if found is None else found)

    def rows(self, message: Any) -> int:
        """How many rows a request says that it brings, before anything about it has been checked."""
        for tensor in message.inputs:
            plain = self._plain.get(tensor.name)
            if plain is not None and len(tensor.shape) == len(plain.shape):
                return min(max(1, plain.rows(tensor.shape)), max(1, plain.max_rows))
        return 1

    def _quick(self, request: Received) -> dict[str, Array] | None:
        """What nearly all requests are: every input once, in raw contents that fit. None for anything else."""
        tensors_given, raw = request.message.inputs, request.raw
        if len(raw) != len(self._specs) or len(tensors_given) != len(raw):
            return None
        found: dict[str, Array] = {}
        rows = 0
        for tensor, data in zip(tensors_given, raw, strict=True):
            name = tensor.name
            plain = self._plain.get(name)
            if plain is None or tensor.datatype != plain.datatype or tensor.HasField("contents") or tensor.parameters:
                return None
            shape = tuple(tensor.shape)
            if not plain.takes(shape, len(data)):
                return None
            mine = plain.rows(shape)
            if rows and mine and rows != mine:
                return None
            rows = mine or rows
            found[name] = np.frombuffer(data, plain.dtype).reshape(shape)
        return found if len(found) == len(self._specs) else None

    def _careful(self, request: Received, held: Mapping[str, Array]) -> dict[str, Array]:
        """Takes whatever the protocol allows, and says what is wrong with the rest."""
        message = request.message
        _check_names(self._package, [tensor.name for tensor in message.inputs], self._specs, held)
        for tensor in message.inputs:
            _check_tensor(self._specs[tensor.name], tensor.datatype, tensor.shape)
        given = {**tensors.decode("input", message.inputs, request.raw), **held}
        # Before zeros are made for as many rows, and again with those.
        _check_rows(self._package, given)
        found = complete(self._package, given)
        _check_rows(self._package, found)
        _check_axes(self._package, found)
        return found


def _aligned(arrays: dict[str, Array]) -> dict[str, Array]:
    """Tensors that were cut out of a message may begin anywhere; compiled code may count on whole elements."""
    for name, array in arrays.items():
        if not array.flags.aligned:
            arrays[name] = array.copy()
    return arrays


# Their contents may be wrong though their size is right.
_CHECKED = ("BOOL", "BYTES")


@dataclass(frozen=True, slots=True)
class _Plain:
    """What the quick way needs to know of one input."""

    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    # Whether a request's size along it must agree with something else.
    batch_axis: int
    max_rows: int

    def takes(self, shape: tuple[int, ...], size_bytes: int) -> bool:
        if len(shape) != len(self.shape):
            return False
        count = self.dtype.itemsize
        for given, expected in zip(shape, self.shape, strict=True):
            # An empty tensor is for the careful way.
            if given < 1 or expected not in (given, -1):
                return False
            count *= given
        return count == size_bytes and self.rows(shape) <= self.max_rows

    def rows(self, shape: Sequence[int]) -> int:
        """0 where nothing is batched."""
        return shape[self.batch_axis] if self.max_rows and self.batch_axis >= 0 else 0


def _plain(package: Package, spec: TensorSpec) -> _Plain | None:
    """None for inputs with named axes, which have to be compared with each other."""
    if any(spec.axes):
        return None
    return _Plain(spec.dtype, tensors.numpy_dtype(spec.dtype), spec.shape, spec.batch_axis, package.batching.max_batch)


def complete(package: Package, given: Mapping[str, Array]) -> dict[str, Array]:
    """`given` with zeros for what is optional or the start of a sequence. Raises InvalidInput if some are missing."""
    starts = {state.input: state for state in package.sequence.state} if package.sequence else {}
    count = max(_rows(package, given).values(), default=1)
    found: dict[str, Array] = {}
    missing: list[str] = []
    for spec in package.inputs:
        if spec.name in given:
            found[spec.name] = given[spec.name]
        elif spec.name in starts:
            state = starts[spec.name]
            found[spec.name] = zeros(state.dtype, _default_shape(package, spec, state.shape, count))
        elif spec.optional:
            found[spec.name] = zeros(spec.dtype, _default_shape(package, spec, spec.shape, count))
        else:
            missing.append(spec.name)
    if missing:
        needed = [spec.name for spec in package.inputs if not spec.optional and spec.name not in starts]
        raise InvalidInput(f"input {_names(missing)} is missing; {package.name!r} expects {_names(needed)}")
    return found


def _default_shape(package: Package, spec: TensorSpec, dims: Sequence[int], count: int) -> list[int]:
    """`dims` of one row, for `count` rows where the tensor takes any number."""
    shape = [1 if dim == -1 else dim for dim in dims]
    if package.batching.max_batch and spec.batch_axis >= 0 and spec.shape[spec.batch_axis] == -1:
        shape[spec.batch_axis] = count
    return shape


def zeros(dtype: str, shape: Sequence[int]) -> Array:
    """A tensor of zeros, or of empty strings."""
    if dtype == "BYTES":
        return np.full(tuple(shape), b"", dtype=object)
    return np.zeros(tuple(shape), tensors.numpy_dtype(dtype))


def _rows(package: Package, found: Mapping[str, Array]) -> dict[str, int]:
    """How many rows each tensor brings that has some."""
    if not package.batching.max_batch:
        return {}
    return {
        spec.name: found[spec.name].shape[spec.batch_axis]
        for spec in package.inputs
        if spec.batch_axis >= 0 and spec.name in found
    }


def requested_outputs(package: Package, request: Any, *, hidden: Collection[str] = ()) -> list[str]:
    """The outputs to answer with, in the order asked for; all but `hidden` when none are named. Raises InvalidInput."""
    known = [spec.name for spec in package.outputs]
    if not request.outputs:
        return [name for name in known if name not in hidden] if hidden else known
    wanted: list[str] = []
    for output in request.outputs:
        if output.name not in known:
            raise InvalidInput(f"output {output.name!r} is asked for; {package.name!r} has {_names(known)}")
        if output.name in wanted:
            raise InvalidInput(f"output {output.name!r} is asked for twice, expected once")
        _check_output_parameters(output)
        wanted.append(output.name)
    return wanted


def _check_output_parameters(output: Any) -> None:
    if "classification" in output.parameters:
        raise Unsupported(f"output {output.name!r}: classification is not offered; ask for the tensor and rank it")
    if "shared_memory_region" in output.parameters:
        raise Unsupported(f"output {output.name!r}: shared memory is not offered; outputs come in the message")


def _check_names(
    package: Package, names: Sequence[str], specs: Mapping[str, TensorSpec], held: Mapping[str, Array]
) -> None:
    seen: set[str] = set()
    for name in names:
        if name not in specs:
            raise InvalidInput(f"input {name!r} is given; {package.name!r} expects {_names(specs)}")
        if name in held:
            raise InvalidInput(f"input {name!r} is given; within a sequence the node keeps it")
        if name in seen:
            raise InvalidInput(f"input {name!r} is given twice, expected once")
        seen.add(name)


def _check_tensor(spec: TensorSpec, datatype: str, shape: Sequence[int]) -> None:
    if datatype != spec.dtype:
        raise InvalidInput(f"input {spec.name!r}: datatype {datatype!r} given, expected {spec.dtype}")
    fits = len(shape) == len(spec.shape) and all(size in (dim, -1) for dim, size in zip(shape, spec.shape, strict=True))
    if not fits:
        shown = f"{list(shape)}" if len(shape) <= tensors.MAX_RANK else f"of {len(shape)} dimensions"
        raise InvalidInput(
            f"input {spec.name!r}: shape {shown} given, expected {list(spec.shape)}"
            + (" (-1 is any size)" if -1 in spec.shape else "")
        )


def _check_rows(package: Package, found: Mapping[str, Array]) -> None:
    """Where the package batches: the same number of rows in every input that has some, and not too many."""
    counts = _rows(package, found)
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InvalidInput(f"inputs differ in rows: {shown}; expected the same number in each")
    for name, count in counts.items():
        if not 1 <= count <= package.batching.max_batch:
            raise InvalidInput(f"input {name!r}: {count} rows given, expected 1 to {package.batching.max_batch}")


def _check_axes(package: Package, found: Mapping[str, Array]) -> None:
    """Dimensions that share a name have one size."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec in package.inputs:
        for name, size in zip(spec.axes, found[spec.name].shape, strict=False):
            known = sizes.setdefault(name, (size, spec.name)) if name else (size, "")
            if known[0] != size:
                raise InvalidInput(
                    f"input {spec.name!r} has {size} along {name!r}, {known[1]!r} has {known[0]}; expected one size"
                )


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
