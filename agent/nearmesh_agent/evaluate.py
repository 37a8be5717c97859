"""Answers a file of cases as a node would, and takes the time: what `nearmesh model evaluate` asks of a node's engines.

How many dimensions an array of the file has, beyond those of its input, says what its first axis counts: with as many,
rows, which share calls as a node's requests do; with one more, requests; with two more, sequences and their calls.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh import tensors
from nearmesh.errors import PackageError, WarmupFailed
from nearmesh.package import Package, TensorSpec, load
from nearmesh.packaging.agent_run import write_answers
from nearmesh.packaging.warmup import INPUT
from nearmesh_agent.engines.base import Array, Engine
from nearmesh_agent.engines.factory import OnnxEngines
from nearmesh_agent.serving import warmup
from nearmesh_agent.serving.batch import BatchLayout
from nearmesh_agent.serving.inputs import complete

# Lone calls that are timed, and for how long at most.
_LONE_CALLS, _LONE_S = 40, 3.0
# All cases are answered again until this has passed, so that a handful of them has a rate as well.
_RATE_S = 1.0

Inputs = dict[str, Array]
# The calls of a case: one, or a sequence's.
Case = list[Inputs]


@dataclass(frozen=True, slots=True)
class Cases:
    """What a file has to ask."""

    cases: list[Case]
    # Each is one row of a package that batches, and so is its answer.
    rows: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What came of it."""

    # By output, each case's answer.
    outputs: dict[str, list[Array]]
    ms_p50: float
    rows_per_second: float


def cases_of(package: Package, arrays: Mapping[str, Array]) -> Cases:
    """The file's `arrays`, by the inputs' names, as calls. Raises PackageError."""
    specs = {spec.name: spec for spec in package.inputs}
    for name in arrays:
        if name not in specs:
            raise PackageError(f"the cases have an input {name!r}; model.toml has {', '.join(specs)}")
    count = min(map(len, arrays.values()))
    cases = [[complete(package, call) for call in _calls(package, specs, arrays, number)] for number in range(count)]
    rows = all(array.ndim == len(specs[name].shape) for name, array in arrays.items())
    return Cases(cases, rows and package.batching.max_batch > 0)


def _calls(package: Package, specs: Mapping[str, TensorSpec], arrays: Mapping[str, Array], number: int) -> Case:
    if not package.sequence:
        return [{name: _one(package, specs[name], array, number) for name, array in arrays.items()}]
    for name, array in arrays.items():
        if array.ndim != len(specs[name].shape) + 2:
            raise PackageError(
                f"input.{name} has {array.ndim} dimensions; of a model with a memory it is [sequences, calls, ...], "
                f"with the {len(specs[name].shape)} of a call behind"
            )
    steps = min(array.shape[1] for array in arrays.values())
    # A scalar's entry would be no array any more.
    return [{name: np.asarray(array[number, step]) for name, array in arrays.items()} for step in range(steps)]


def _one(package: Package, spec: TensorSpec, array: Array, number: int) -> Array:
    more = array.ndim - len(spec.shape)
    if more == 1:
        # A scalar's entry would be no array any more.
        return np.asarray(array[number])
    if more or not spec.shape:
        expected = f"{len(spec.shape)} (rows) or {len(spec.shape) + 1} (requests)"
        raise PackageError(f"input.{spec.name} has {array.ndim} dimensions, expected {expected}")
    row = array[number : number + 1]
    return np.moveaxis(row, 0, spec.batch_axis) if package.batching.max_batch and spec.batch_axis > 0 else row


def evaluate(
    engine: Engine, package: Package, asked: Cases, clock: Callable[[], float] = time.perf_counter
) -> Evaluated:
    """Answers all cases, in full calls, as many at a time as the engine suits. Raises what the engine raises."""
    runner, cases = _Runner(engine, package), asked.cases
    ms_p50 = _lone_ms(runner, cases, clock)
    work = list(runner.work(cases))
    with ThreadPoolExecutor(engine.instances) as pool:
        started = clock()
        answers = [answer for answers in pool.map(runner.answer, work) for answer in answers]
        calls = done = sum(len(case) for part in work for case in part)
        while (took_s := clock() - started) < _RATE_S:
            for _ in pool.map(runner.answer, work):
                pass
            done += calls
    shown = [spec for spec in package.outputs if spec.name not in runner.hidden]
    outputs = {spec.name: [answer[spec.name] for answer in answers] for spec in shown}
    if asked.rows:
        outputs = {spec.name: [np.take(a, 0, spec.batch_axis) for a in outputs[spec.name]] for spec in shown}
    return Evaluated(outputs=outputs, ms_p50=ms_p50, rows_per_second=done / took_s)


def _lone_ms(runner: _Runner, cases: Sequence[Case], clock: Callable[[], float]) -> float:
    """The median of lone calls, after one that allocates and plans."""
    runner.answer([cases[0]])
    taken: list[float] = []
    until = clock() + _LONE_S
    for number in range(_LONE_CALLS):
        case = cases[number % len(cases)]
        started = clock()
        runner.answer([case])
        taken.append((clock() - started) / len(case))
        if clock() >= until:
            break
    return statistics.median(taken) * 1000


class _Runner:
    """Calls an engine for cases. Thread-safe as the engine is."""

    def __init__(self, engine: Engine, package: Package) -> None:
        self._engine, self._package = engine, package
        self._layout = BatchLayout(package)
        self._state = package.sequence.state if package.sequence else ()
        # What a sequence keeps on the node is not among its answers.
        self.hidden = {state.output for state in self._state}

    def work(self, cases: Sequence[Case]) -> Iterator[list[Case]]:
        """Cases that share a call: neighbours that are alike, up to the largest batch."""
        part: list[Case] = []
        kind: Any = None
        for case in cases:
            mine = object() if self._state else self._layout.kind(case[0])
            if part and (mine != kind or len(part) >= self._layout.max_rows):
                yield part
                part = []
            part, kind = [*part, case], mine
        yield part

    def answer(self, part: list[Case]) -> list[dict[str, Array]]:
        """Each case's outputs."""
        if self._state:
            return [self._sequence(case) for case in part]
        requests = [case[0] for case in part]
        outputs = self._engine.infer(self._layout.join(requests))
        rows = [self._layout.rows(request) for request in requests]
        return [dict(share) for share in self._layout.split(outputs, requests, rows)]

    def _sequence(self, case: Case) -> dict[str, Array]:
        held = {s.input: np.zeros(s.shape, tensors.numpy_dtype(s.dtype)) for s in self._state}
        answers: list[dict[str, Array]] = []
        for call in case:
            outputs = self._engine.infer(call | held)
            held = {state.input: outputs[state.output] for state in self._state}
            answers.append({name: array for name, array in outputs.items() if name not in self.hidden})
        return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}


def warmup_differences(engine: Engine, folder: Path, package: Package) -> tuple[dict[str, float], str]:
    """By output, by how much answers are beyond the warm-ups' tolerance; and why they are wrong, if they are."""
    found: dict[str, float] = {}
    for case, given, expected in warmup.cases(folder, package):
        answers = engine.infer(given)
        for name in expected:
            try:
                beyond = warmup.beyond(case, name, answers, expected[name])
            except WarmupFailed as error:
                return found, error.message
            if beyond:
                found[name] = max(found.get(name, 0.0), beyond)
    return found, ""


def of_folder(folder: Path, cases: Path, answers: Path, variants: Mapping[str, str]) -> dict[str, Any]:
    """Runs these variants of a package in `folder`, and writes what they answered; returns how fast they were.

    Raises MeshError.
    """
    package = load(folder)
    with np.load(cases, allow_pickle=False) as archive:
        arrays = {
            name.removeprefix(INPUT): warmup.as_tensor(archive[name])
            for name in archive.files
            if name.startswith(INPUT)
        }
    engine = OnnxEngines(variants=variants)(folder, package)
    try:
        difference, failed = warmup_differences(engine, folder, package)
        found = evaluate(engine, package, cases_of(package, arrays))
    finally:
        engine.close()
    write_answers(answers, found.outputs)
    return {
        "ms_p50": found.ms_p50,
        "rows_per_second": found.rows_per_second,
        "warmup_difference": difference,
        "warmup_failed": failed,
    }
