"""Which shapes a TensorRT plan is built for: its optimization profile, from what the package says and shows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nearmesh.errors import EngineFailure
from nearmesh.package import UNREADABLE_ARCHIVE, Package
from nearmesh_agent.engines.onnx.session import GraphTensor

Shape = tuple[int, ...]


class Span(NamedTuple):
    """The shapes that one input may have: `least` to `most` in each dimension, fastest at `usual`."""

    least: Shape
    usual: Shape
    most: Shape

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a plan takes an input of this shape."""
        return len(shape) == len(self.most) and all(
            low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)
        )


Profile = Mapping[str, Span]


def package_profile(package: Package, shown: Sequence[Mapping[str, Shape]]) -> dict[str, Span]:
    """One span for each input: rows from 1 to `max_batch`, free dimensions as in the warm-ups' shapes, `shown`.

    Raises EngineFailure where an input has a free dimension that no warm-up shows.
    """
    batching = package.batching
    rows = (1, max(batching.preferred_batch_sizes, default=batching.max_batch), batching.max_batch)
    spans = {}
    for spec in package.inputs:
        # An optional input that is left out has 1 for each dimension of any size.
        left_out = tuple(max(dim, 1) for dim in spec.shape)
        shapes = [shapes.get(spec.name, left_out if spec.optional else ()) for shapes in shown]
        columns = [
            rows
            if batching.max_batch and axis == spec.batch_axis
            else _sizes(spec.name, axis, dim, [shape[axis] for shape in shapes if len(shape) == len(spec.shape)])
            for axis, dim in enumerate(spec.shape)
        ]
        spans[spec.name] = _span(columns)
    return spans


def step_profile(inputs: Mapping[str, GraphTensor], max_rows: int) -> dict[str, Span]:
    """For a pipeline's graph, whose inputs no warm-up shows: axis 0 may be free, up to `max_rows`, and no other.

    Raises EngineFailure where another is, or `max_rows` is 0 and axis 0 is.
    """
    spans = {}
    for name, tensor in inputs.items():
        columns = [
            (1, max_rows, max_rows)
            if axis == 0 and max_rows and not isinstance(dim, int)
            else _sizes(name, axis, dim if isinstance(dim, int) else -1, [])
            for axis, dim in enumerate(tensor.shape)
        ]
        spans[name] = _span(columns)
    return spans


def warmup_shapes(folder: Path, package: Package) -> list[dict[str, Shape]]:
    """The inputs' shapes in each of the package's warm-ups. Raises EngineFailure for one that cannot be read."""
    found = []
    for warmup in package.warmup:
        try:
            with np.load(folder / warmup.file, allow_pickle=False) as archive:
                given = {name: archive[name].shape for name in archive.files if name.startswith("input.")}
        except UNREADABLE_ARCHIVE as error:
            raise EngineFailure(f"{warmup.file} shows no shapes: {error}") from None
        found.append({name.removeprefix("input."): shape for name, shape in given.items()})
    return found


def provider_shapes(profile: Profile) -> dict[str, str]:
    """The profile as options of ONNX Runtime's TensorRT provider; empty where nothing is free.

    Without it the provider builds anew whenever a request shows it a new shape, while that request waits.
    """
    if not any(span.least != span.most for span in profile.values()):
        return {}
    parts = {"min": "least", "opt": "usual", "max": "most"}
    return {
        f"trt_profile_{option}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, getattr(span, part)))}" for name, span in profile.items()
        )
        for option, part in parts.items()
    }


def _sizes(name: str, axis: int, dim: int, shown: Sequence[int]) -> tuple[int, int, int]:
    if dim != -1:
        return dim, dim, dim
    if not shown:
        raise EngineFailure(f"dimension {axis} of input {name!r} may have any size, and no warm-up shows which it has")
    return max(1, min(shown)), max(1, statistics.median_high(shown)), max(1, *shown)


def _span(columns: Sequence[tuple[int, int, int]]) -> Span:
    least, usual, most = (tuple(column[part] for column in columns) for part in range(3))
    return Span(least, usual, most)
