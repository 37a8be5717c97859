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
from nearmesh.packaging.init.samples import attempts, make

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
    return Trial(inputs=given, outputs=answers, rows=row_axes.prove(guess, run, given, answers) if guess else guess)


def _with_made(facts: Facts, run: Run, guess: Rows) -> Trial:
    why = "no inputs were tried"
    without: Trial | None = None
    for attempt in attempts(facts):
        # More rows first: a graph may take one alone although its shapes say otherwise.
        for count in (_ROWS, 1) if guess else (1,):
            inputs = make(facts, attempt, guess.inputs, count)
            if inputs is None:
                continue
            try:
                answers = run(inputs)
            except CannotRun as error:
                why = str(error)
                continue
            if not _finite(answers):
                why = "its answers are not finite"
                continue
            found = Trial(inputs=inputs, outputs=answers, rows=_proven(guess, run, inputs, answers, count))
            if any(answer.size for answer in answers.values()):
                return found
            # As of a detector that found nothing: better than no answer at all.
            without = without or found
    if without:
        return without
    raise PackageError(f"the graph takes none of the inputs that were made up ({why}); {_REMEDY}")


def _proven(guess: Rows, run: Run, inputs: Mapping[str, Array], answers: Mapping[str, Array], count: int) -> Rows:
    if guess and count < _ROWS:
        return row_axes.none("the graph takes one row at a time")
    return row_axes.prove(guess, run, inputs, answers) if guess else guess


def _finite(answers: Mapping[str, Array]) -> bool:
    return all(array.dtype.kind != "f" or bool(np.isfinite(array).all()) for array in answers.values())
