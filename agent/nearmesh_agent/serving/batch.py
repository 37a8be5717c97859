"""How requests become one engine call and its outputs become answers again, for one package.

Rows are counted along each tensor's `batch_axis`; along axes that the package lets be padded, shorter requests are
filled up to the longest, and outputs are cut back to each request's own length.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nearmesh.errors import EngineFailure
from nearmesh.package import Package, TensorSpec
from nearmesh_agent.engines.base import Array

# A tensor without rows is part of what makes requests alike up to this size; a larger one is not compared.
_MAX_SHARED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Side:
    """One tensor, as the batch sees it."""

    name: str
    # -1: no rows.
    axis: int
    # Padded axes, with the name that an input and an output share.
    padded: tuple[tuple[int, str], ...]
    pad_value: float


class BatchLayout:
    """Of one package. All methods are pure."""

    def __init__(self, package: Package) -> None:
        self.max_rows = package.batching.max_batch
        # Whether a row is always of one size, so that its time is as well.
        self.fixed = all(
            dim >= 0 or axis == spec.batch_axis for spec in package.inputs for axis, dim in enumerate(spec.shape)
        )
        pad = set(package.batching.pad)
        self._inputs = [_side(spec, pad) for spec in package.inputs]
        self._outputs = [_side(spec, pad) for spec in package.outputs]
        # Most models: rows along the first axis, nothing to pad.
        self._plain = all(side.axis == 0 and not side.padded for side in (*self._inputs, *self._outputs))

    def rows(self, inputs: Mapping[str, Array]) -> int:
        """How many rows a checked request brings."""
        if self.max_rows:
            for side in self._inputs:
                array = inputs[side.name]
                if 0 <= side.axis < array.ndim:
                    return int(array.shape[side.axis])
        return 1

    def kind(self, inputs: Mapping[str, Array]) -> Hashable:
        """Equal for requests that may share a call; unlike any other's when this one shares with none."""
        if not self.max_rows:
            return object()
        if self._plain:
            return tuple([inputs[side.name].shape[1:] for side in self._inputs])
        return tuple([_alike(side, inputs[side.name]) for side in self._inputs])

    def join(self, requests: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
        """The inputs of the call that serves `requests`, all of one kind."""
        if len(requests) == 1:
            return requests[0]
        return {side.name: _joined(side, [request[side.name] for request in requests]) for side in self._inputs}

    def split(
        self, outputs: Mapping[str, Array], requests: Sequence[Mapping[str, Array]], rows: Sequence[int]
    ) -> list[Mapping[str, Array]]:
        """Each request's share of a call's outputs: views where it can be. Raises EngineFailure if it does not add up.

        `requests` are those that were joined, with their `rows`.
        """
        if len(requests) == 1:
            return [outputs]
        total = sum(rows)
        for side in self._outputs:
            found = outputs[side.name]
            if found.ndim <= side.axis or found.shape[side.axis] != total:
                raise EngineFailure(
                    f"output {side.name!r} has shape {list(found.shape)} for {total} rows; expected them along axis "
                    f"{side.axis}, so the package's `batching` is wrong for this model"
                )
        shares: list[Mapping[str, Array]] = []
        start = 0
        for request, count in zip(requests, rows, strict=True):
            end = start + count
            if self._plain:
                shares.append({side.name: outputs[side.name][start:end] for side in self._outputs})
            else:
                lengths = self._lengths(request)
                shares.append({s.name: _share(s, outputs[s.name], start, end, lengths) for s in self._outputs})
            start = end
        return shares

    def _lengths(self, request: Mapping[str, Array]) -> dict[str, int]:
        return {name: request[side.name].shape[axis] for side in self._inputs for axis, name in side.padded}


def _side(spec: TensorSpec, pad: set[str]) -> _Side:
    padded = tuple((axis, name) for axis, name in enumerate(spec.axes) if name in pad)
    return _Side(spec.name, spec.batch_axis, padded, spec.pad_value)


def _alike(side: _Side, array: Array) -> Hashable:
    if side.axis < 0:
        return (array.shape, _value(array)) if array.nbytes <= _MAX_SHARED_BYTES else object()
    shape = list(array.shape)
    shape[side.axis] = -1
    for axis, _ in side.padded:
        # Lengths within a factor of two: filling up costs at most as much again as the request itself.
        shape[axis] = -2 - (shape[axis] - 1).bit_length()
    return tuple(shape)


def _value(array: Array) -> Hashable:
    """Equal for equal arrays of one shape. An array of objects holds only where its strings are."""
    return tuple(array.ravel().tolist()) if array.dtype == object else array.tobytes()


def _joined(side: _Side, arrays: list[Array]) -> Array:
    if side.axis < 0:
        return arrays[0]
    if side.padded:
        longest = {axis: max(array.shape[axis] for array in arrays) for axis, _ in side.padded}
        arrays = [_filled(side, array, longest) for array in arrays]
    return np.concatenate(arrays, axis=side.axis)


def _filled(side: _Side, array: Array, longest: Mapping[int, int]) -> Array:
    shape = tuple([longest.get(axis, size) for axis, size in enumerate(array.shape)])
    if shape == array.shape:
        return array
    filled = np.full(shape, b"" if array.dtype == object else side.pad_value, array.dtype)
    filled[tuple([slice(size) for size in array.shape])] = array
    return filled


def _share(side: _Side, array: Array, start: int, end: int, lengths: Mapping[str, int]) -> Array:
    where = [slice(None)] * array.ndim
    where[side.axis] = slice(start, end)
    for axis, name in side.padded:
        where[axis] = slice(lengths.get(name))
    return array[tuple(where)]
