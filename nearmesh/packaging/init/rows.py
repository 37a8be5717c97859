"""Which axes count rows, so that requests may share a call: guessed from the names of dimensions, proven by a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    # A guess has none: where rows come out, a run shows.
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
    return Rows(inputs={value.name: _axis(value, lead) for value in facts.inputs}, outputs={})


def _axis(value: Value, lead: str | None) -> int:
    if value.dims is None:
        return 0
    if lead is not None and lead in value.dims:
        return value.dims.index(lead)
    free = [axis for axis, dim in enumerate(value.dims) if not isinstance(dim, int)]
    # The first one, if anything is to be guessed; else the only one, as with the states of recurrent layers.
    return free[0] if free and (free[0] == 0 or len(free) == 1) else -1


def prove(facts: Facts, rows: Rows, run: Run, inputs: Mapping[str, Array], answers: Mapping[str, Array]) -> Rows:
    """The guess, if each row of `inputs` gets alone what it got among the others; else none, with the reason."""
    counts = {array.shape[rows.inputs[name]] for name, array in inputs.items() if rows.inputs[name] >= 0}
    if len(counts) != 1:
        return none("the inputs do not have equally many rows")
    (count,) = counts
    try:
        calls = list(_other_calls(rows, run, inputs, count))
    except CannotRun as error:
        return none(f"the graph takes no other number of rows than {count} ({error})")
    found: dict[str, int] = {}
    for value in facts.outputs:
        axis = _row_axis(answers[value.name], calls[0].answers[value.name], count, calls[0].rows)
        if axis is None:
            return none(f"output {value.name!r} has no axis that counts rows")
        if value.dims is not None and isinstance(value.dims[axis], int):
            return none(f"the graph says that output {value.name!r} always has {value.dims[axis]} rows")
        found[value.name] = axis
    for call in calls:
        for name, answer in answers.items():
            if not alike(call.answers[name], call.expected(answer, found[name])):
                return none(f"output {name!r} of a row depends on the other rows of the call")
    return Rows(inputs=rows.inputs, outputs=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """Another call with the same rows: one of them alone, or, where there is but one, that one twice."""

    rows: int
    answers: Mapping[str, Array]
    # Which row it was; None for twice the only one.
    row: int | None

    def expected(self, answer: Array, axis: int) -> Array:
        """What the first call's answer says about this one's."""
        return _repeated(answer, axis) if self.row is None else _row(answer, axis, self.row)


def _other_calls(rows: Rows, run: Run, inputs: Mapping[str, Array], count: int) -> Iterator[_Call]:
    if count == 1:
        twice = {name: _repeated(array, rows.inputs[name]) for name, array in inputs.items()}
        yield _Call(rows=2, answers=run(twice), row=None)
        return
    for row in range(count):
        alone = {name: _row(array, rows.inputs[name], row) for name, array in inputs.items()}
        yield _Call(rows=1, answers=run(alone), row=row)


def _row_axis(answer: Array, other: Array, count: int, other_count: int) -> int | None:
    """The one axis whose size follows the number of rows."""
    if answer.ndim != other.ndim:
        return None
    differing = [axis for axis in range(answer.ndim) if answer.shape[axis] != other.shape[axis]]
    if len(differing) != 1:
        return None
    sizes = answer.shape[differing[0]], other.shape[differing[0]]
    return differing[0] if sizes == (count, other_count) else None


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
