"""Whether a request's tensors are what the package takes, and what is filled in where it may leave something out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nearmesh import tensors
from nearmesh.errors import InvalidInput, Unsupported
from nearmesh.package import Package, TensorSpec
from nearmesh_agent.engines.base import Array

_NONE: Mapping[str, Array] = {}


def read(package: Package, request: Any, *, held: Mapping[str, Array] = _NONE) -> dict[str, Array]:
    """Every input of the package, from a ModelInferRequest; `held` are those that a sequence keeps on the node.

    Names, dtypes and shapes are checked before any contents are touched. Raises InvalidInput, Unsupported.
    """
    specs = {spec.name: spec for spec in package.inputs}
    _check_names(package, [tensor.name for tensor in request.inputs], specs, held)
    for tensor in request.inputs:
        _check_tensor(specs[tensor.name], tensor.datatype, tensor.shape)
    found = complete(package, {**tensors.decode_request(request), **held})
    _check_rows(package, found)
    return found


def complete(package: Package, given: Mapping[str, Array]) -> dict[str, Array]:
    """`given` with zeros for what is optional or the start of a sequence. Raises InvalidInput if some are missing."""
    starts = {state.input: state for state in package.sequence.state} if package.sequence else {}
    count = rows(package, given)
    found: dict[str, Array] = {}
    missing: list[str] = []
    for spec in package.inputs:
        if spec.name in given:
            found[spec.name] = given[spec.name]
        elif spec.name in starts:
            found[spec.name] = zeros(starts[spec.name].dtype, starts[spec.name].shape)
        elif spec.optional:
            found[spec.name] = zeros(spec.dtype, _default_shape(package, spec, count))
        else:
            missing.append(spec.name)
    if missing:
        needed = [spec.name for spec in package.inputs if not spec.optional and spec.name not in starts]
        raise InvalidInput(f"input {_names(missing)} is missing; {package.name!r} expects {_names(needed)}")
    return found


def _default_shape(package: Package, spec: TensorSpec, count: int) -> list[int]:
    shape = [1 if dim == -1 else dim for dim in spec.shape]
    if package.batching.max_batch and spec.shape[:1] == (-1,):
        shape[0] = count
    return shape


def zeros(dtype: str, shape: Sequence[int]) -> Array:
    """A tensor of zeros, or of empty strings."""
    if dtype == "BYTES":
        return np.full(tuple(shape), b"", dtype=object)
    return np.zeros(tuple(shape), tensors.numpy_dtype(dtype))


def rows(package: Package, found: Mapping[str, Array]) -> int:
    """How many inferences a checked request asks for."""
    if not package.batching.max_batch:
        return 1
    return max((array.shape[0] for array in found.values() if array.ndim), default=1)


def requested_outputs(package: Package, request: Any, *, hidden: Collection[str] = ()) -> list[str]:
    """The outputs to answer with, in the order asked for; all but `hidden` when none are named. Raises InvalidInput."""
    known = [spec.name for spec in package.outputs]
    wanted: list[str] = []
    for output in request.outputs:
        if output.name not in known:
            raise InvalidInput(f"output {output.name!r} is asked for; {package.name!r} has {_names(known)}")
        if output.name in wanted:
            raise InvalidInput(f"output {output.name!r} is asked for twice, expected once")
        _check_output_parameters(output)
        wanted.append(output.name)
    return wanted or [name for name in known if name not in hidden]


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
    """Axis 0 counts rows where the package batches: the same number in every input, and not too many."""
    most = package.batching.max_batch
    if not most:
        return
    counts = {name: array.shape[0] for name, array in found.items() if array.ndim}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InvalidInput(f"inputs differ in rows (axis 0): {shown}; expected the same number in each")
    for name, count in counts.items():
        if not 1 <= count <= most:
            raise InvalidInput(f"input {name!r}: {count} rows (axis 0) given, expected 1 to {most}")


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
