"""A graph as a step of a pipeline: its rows in calls of a size that it bears."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from nearmesh.errors import EngineFailure, InvalidInput
from nearmesh.package import Step
from nearmesh_agent.engines.base import Array, Engine


class Graph(Engine, Protocol):
    """An engine over one graph; `infer` takes and gives arrays by the graph's own names."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the graph needs."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `infer` gives."""
        ...


class GraphStep:
    """One graph. With `max_rows`, axis 0 of every output and of every input that has axes counts rows."""

    optional: tuple[str, ...] = ()

    def __init__(self, step: Step, engine: Graph) -> None:
        self._engine, self._max_rows = engine, step.max_rows
        self.inputs: tuple[str, ...] = engine.input_names
        self.outputs: tuple[str, ...] | None = engine.output_names

    def place(self, name: str) -> str:
        """Where in the package an input is asked for, for an error's message."""
        return f"input {name!r} of its graph"

    def run(self, arrays: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]:
        """Every output of the graph, for all rows. Raises InvalidInput, EngineFailure."""
        rows = _rows(arrays) if self._max_rows else None
        if rows == 0:
            return self._without_rows(arrays)
        if rows is None or rows <= self._max_rows:
            return self._engine.infer(arrays, alone=alone)
        found: dict[str, Array] = {}
        for start in range(0, rows, self._max_rows):
            part = slice(start, min(rows, start + self._max_rows))
            answer = self._engine.infer(_cut(arrays, part), alone=alone)
            for name, array in answer.items():
                if name not in found:
                    # All at once, since the parts beside their concatenation would take twice the memory.
                    found[name] = np.empty((rows, *array.shape[1:]), array.dtype)
                _fill(name, found[name], part, array)
        return found

    def _without_rows(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs without rows still have a dtype and other dimensions, which a row of zeros brings to light."""
        row = {name: _zeros(array) if array.ndim else array for name, array in arrays.items()}
        return {name: array[:0] for name, array in self._engine.infer(row).items()}


def _rows(arrays: Mapping[str, Array]) -> int | None:
    """Rows of all inputs together; None if none has axes. Raises InvalidInput if they differ."""
    counts = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InvalidInput(f"inputs differ in rows (axis 0): {shown}; expected the same number in each")
    return next(iter(counts.values()), None)


def _cut(arrays: Mapping[str, Array], part: slice) -> dict[str, Array]:
    return {name: array[part] if array.ndim else array for name, array in arrays.items()}


def _zeros(array: Array) -> Array:
    return np.full((1, *array.shape[1:]), b"" if array.dtype == object else 0, array.dtype)


def _fill(name: str, whole: Array, part: slice, array: Array) -> None:
    expected = (part.stop - part.start, *whole.shape[1:])
    if array.shape != expected:
        raise EngineFailure(
            f"output {name!r} has shape {list(array.shape)} for one part of the rows, expected {list(expected)}; "
            "with max_rows, axis 0 counts rows and the other sizes do not depend on them"
        )
    whole[part] = array
