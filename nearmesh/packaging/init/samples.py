"""Inputs that a graph is likely to take: made up, the same each time, and bounded where the graph says by what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nearmesh.packaging.init.facts import Dim, Facts, Value
from nearmesh.packaging.init.runtime import Array
from nearmesh.tensors import numpy_dtype

# Of dimensions of any size that are not rows, in the order in which they are tried: tokens, pixels, samples of sound.
SIZES = (16, 32, 64, 224, 512, 576, 1)
# Of numbers that are no index and are compared with nothing.
_STYLES = ("spread", "small", "nothing")
_SEED = 20260101
# Beyond it, an input would be a file of its own.
_MOST_ELEMENTS = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Attempt:
    """How inputs are made up: the size of what may have any, and which kind of values."""

    size: int
    style: str


def attempts(facts: Facts) -> Iterator[Attempt]:
    """What to try, the likeliest first."""
    free = any(not isinstance(dim, int) for value in facts.inputs for dim in value.dims or ())
    for size in SIZES if free else SIZES[:1]:
        for style in _STYLES:
            yield Attempt(size, style)


def make(facts: Facts, attempt: Attempt, rows: Mapping[str, int], count: int) -> dict[str, Array] | None:
    """One array for each input; `rows` has the axis that counts rows, of which there are `count`. None: too large."""
    found = {}
    for position, value in enumerate(facts.inputs):
        shape = shape_of(value, attempt.size, rows.get(value.name, -1), count)
        if int(np.prod(shape)) > _MOST_ELEMENTS:
            return None
        # One for each input, so that what one of them is has no bearing on the others.
        rng = np.random.default_rng((_SEED, position))
        # NumPy makes a bare number of an array without axes.
        found[value.name] = np.asarray(_array(facts, value, shape, attempt.style, rng))
    return found


def shape_of(value: Value, size: int, row_axis: int, count: int) -> tuple[int, ...]:
    """The sizes of one input; an unknown rank is taken for one axis."""
    dims: tuple[Dim, ...] = value.dims if value.dims is not None else (None,)
    sizes = [dim if isinstance(dim, int) else size for dim in dims]
    if 0 <= row_axis < len(sizes) and not isinstance(dims[row_axis], int):
        sizes[row_axis] = count
    return tuple(sizes)


def _array(facts: Facts, value: Value, shape: tuple[int, ...], style: str, rng: np.random.Generator) -> Array:
    if value.dtype == "BYTES":
        return np.full(shape, "a" if style == "spread" else "", dtype=object)
    dtype = numpy_dtype(value.dtype)
    if value.dtype == "BOOL":
        return np.full(shape, style != "nothing", dtype)
    if dtype.kind == "f":
        return np.asarray(_FLOATS[style](rng, shape), dtype)
    if compared := facts.compared.get(value.name):
        return np.full(shape, compared[0], dtype)
    if table := facts.tables.get(value.name):
        return np.asarray(rng.integers(0, table, shape), dtype) if style == "spread" else np.zeros(shape, dtype)
    # Ones mask nothing out, as zeros do.
    return np.full(shape, 0 if style == "nothing" else 1, dtype)


_FLOATS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "spread": lambda rng, shape: np.clip(rng.standard_normal(shape), -3, 3),
    "small": lambda rng, shape: rng.uniform(0, 1, shape),
    "nothing": lambda _rng, shape: np.zeros(shape),
}
