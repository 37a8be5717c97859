"""Which axes count rows, so that requests may share a call: guessed from the names of dimensions, proven by a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nearmesh.packaging.init.facts import Facts, Value
from nearmesh.packaging.init.runtime import Array, CannotRun

Run = Callable[[Mapping[str, Array]], dict[str, Array]]

# As two ways to compute the same may differ: a call of many rows may use other kernels than one of a single row.
RTOL, ATOL = 1e-2, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """By name, the axis that counts rows, -1 for none; without any, `why_not` says what is in the way."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    why_not: str = ""

    def __bool__(self) -> bool:
        return not self.why_not


def none(why_not: str) -> Rows:
    """Requests are served one by one."""
    return Rows(inputs={}, outputs={}, why_not=why_not)


def guess(facts: Facts) -> Rows:
    """By the first dimension of the first input that may have any size there."""
    leads = [value.dims[0] for value in facts.inputs if value.dims and not isinstance(value.dims[0], int)]
    if not leads:
        fixed = next((value for value in facts.inputs if value.dims), None)
        if fixed is None or fixed.dims is None:
            return none("no input has an axis")
        return none(
            f"the graph fixes the first dimension of {fixed.name!r} at {fixed.dims[0]}; export it with a dynamic "
            "one, and requests can share a call"
        )
    lead = leads[0] if isinstance(leads[0], str) else None
    outputs = {value.name: _axis(value, lead) for value in facts.outputs}
    if alone := [name for name, axis in outputs.items() if axis < 0]:
        return none(f"output {alone[0]!r} has no axis that may have any size")
    return Rows(inputs={value.name: _axis(value, lead) for value in facts.inputs}, outputs=outputs)


def _axis(value: Value, lead: str | None) -> int:
    if value.dims is None:
        return 0
    if lead is not None and lead in value.dims:
        return value.dims.index(lead)
    free = [axis for axis, dim in enumerate(value.dims) if not isinstance(dim, int)]
    # The first one, if anything is to be guessed; else the only one, as with the states of recurrent layers.
    return free[0] if free and (free[0] == 0 or len(free) == 1) else -1


def prove(rows: Rows, run: Run, inputs: Mapping[str, Array], answers: Mapping[str, Array]) -> Rows:
    """The guess, if each row of `inputs` gets alone what it got among the others; else none, with the reason."""
    counts = {array.shape[rows.inputs[name]] for name, array in inputs.items() if rows.inputs[name] >= 0}
    if len(counts) != 1:
        return none("the inputs do not have equally many rows")
    (count,) = counts
    for name, answer in answers.items():
        axis = rows.outputs[name]
        if answer.ndim <= axis or answer.shape[axis] != count:
            return none(f"for {count} rows, output {name!r} has shape {list(answer.shape)}")
    try:
        differs = _differs(rows, run, inputs, answers, count)
    except CannotRun as error:
        return none(f"the graph takes no other number of rows than {count} ({error})")
    return none(f"output {differs!r} of a row depends on the other rows of the call") if differs else rows


def _differs(rows: Rows, run: Run, inputs: Mapping[str, Array], answers: Mapping[str, Array], count: int) -> str | None:
    """The output that a row does not get alone as it got it among others."""
    if count == 1:
        twice = run({name: _repeated(array, rows.inputs[name]) for name, array in inputs.items()})
        expected = {name: _repeated(answer, rows.outputs[name]) for name, answer in answers.items()}
        return _first_difference(twice, expected)
    for row in range(count):
        alone = run({name: _row(array, rows.inputs[name], row) for name, array in inputs.items()})
        expected = {name: _row(answer, rows.outputs[name], row) for name, answer in answers.items()}
        if found := _first_difference(alone, expected):
            return found
    return None


def _first_difference(got: Mapping[str, Array], expected: Mapping[str, Array]) -> str | None:
    return next((name for name, answer in expected.items() if not alike(got[name], answer)), None)


def _repeated(array: Array, axis: int) -> Array:
    return np.concatenate([array, array], axis) if axis >= 0 else array


def _row(array: Array, axis: int, row: int) -> Array:
    return np.take(array, [row], axis) if axis >= 0 else array


def alike(got: Array, expected: Array, rtol: float = RTOL, atol: float = ATOL) -> bool:
    """Whether two answers say the same, up to rounding."""
    if got.shape != expected.shape:
        return False
    if expected.dtype.kind != "f":
        return bool((got == expected).all())
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return bool(np.allclose(got, expected, rtol=rtol, atol=atol * scale))
