"""The first answers of a graph: made-up inputs until it takes some, the batch axes proven, the answers steady."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nearmesh.errors import PackageError
from nearmesh.packaging.init import rows as row_axes
from nearmesh.packaging.init.facts import Facts
from nearmesh.packaging.init.rows import Rows, Run
from nearmesh.packaging.init.runtime import Array, CannotRun
from nearmesh.packaging.init.samples import Attempt, attempts, make

# Enough to tell rows apart.
_ROWS = 2
_REMEDY = "give inputs that it takes: --inputs FILE.npz, with an array input.NAME for each"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a graph was given and what it answered."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rows: Rows


def try_out(facts: Facts, run: Run, given: Mapping[str, Array] | None = None) -> Trial:
    """With `given` inputs, or made-up ones. Raises PackageError when nothing works, or answers are not steady."""
    guess = row_axes.guess(facts)
    found = _with_given(facts, run, given, guess) if given is not None else _with_made(facts, run, guess)
    again = run(found.inputs)
    for name, answer in found.outputs.items():
        # As close as a warm-up has to be: a node must be able to repeat it.
        if not row_axes.alike(again[name], answer, 1e-4, 1e-5):
            raise PackageError(
                f"output {name!r} is another one each time, for the same inputs: no warm-up can prove such a graph; "
                "export it for inference, without dropout or random numbers"
            )
    return found


def _with_given(facts: Facts, run: Run, given: Mapping[str, Array], guess: Rows) -> Trial:
    try:
        answers = run(given)
    except CannotRun as error:
        raise PackageError(f"the graph refuses the inputs given: {error}") from None
    if not _finite(answers):
        raise PackageError("the graph answers the inputs given with numbers that are not finite")
    if any(given[name].ndim <= axis for name, axis in guess.inputs.items()):
        guess = row_axes.none("the inputs given have no rows")
    return Trial(inputs=given, outputs=answers, rows=_proven(facts, guess, run, given, answers))


def _with_made(facts: Facts, run: Run, guess: Rows) -> Trial:
    why = "they would be too large"
    without: Trial | None = None
    for attempt in attempts(facts):
        try:
            found = _made(facts, run, guess, attempt)
        except CannotRun as error:
            why = str(error)
            continue
        if found and any(answer.size for answer in found.outputs.values()):
            return found
        # As of a detector that found nothing: better than no answer at all.
        without = without or found
    if without:
        return without
    raise PackageError(f"the graph takes none of the inputs that were made up ({why}); {_REMEDY}")


def _made(facts: Facts, run: Run, guess: Rows, attempt: Attempt) -> Trial | None:
    """With rows where they can share a call, else with one. None: inputs would be too large. Raises CannotRun."""
    many: Trial | None = None
    if guess:
        try:
            many = _answered(facts, run, guess, attempt, _ROWS)
        except CannotRun:
            # The graph may take one row although its shapes say otherwise.
            many = None
    if many and many.rows:
        return many
    try:
        one = _answered(facts, run, guess, attempt, 1)
    except CannotRun:
        if many is None:
            raise
        return many
    if one and many:
        return Trial(inputs=one.inputs, outputs=one.outputs, rows=many.rows)
    return one


def _answered(facts: Facts, run: Run, guess: Rows, attempt: Attempt, count: int) -> Trial | None:
    inputs = make(facts, attempt, guess.inputs, count)
    if inputs is None:
        return None
    answers = run(inputs)
    if not _finite(answers):
        raise CannotRun("its answers are not finite")
    return Trial(inputs=inputs, outputs=answers, rows=_proven(facts, guess, run, inputs, answers))


def _proven(facts: Facts, guess: Rows, run: Run, inputs: Mapping[str, Array], answers: Mapping[str, Array]) -> Rows:
    return row_axes.prove(facts, guess, run, inputs, answers) if guess else guess


def _finite(answers: Mapping[str, Array]) -> bool:
    return all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in answers.values())
