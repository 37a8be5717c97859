"""A package's steps as one engine: they run in order inside one request and hand tensors to each other by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nearmesh import tensors
from nearmesh.errors import EngineFailure, InvalidInput, PackageError
from nearmesh.package import Package, Step, TensorSpec
from nearmesh_agent.engines.base import Array
from nearmesh_agent.engines.cores import usable_cores
from nearmesh_agent.engines.pipeline.graph_step import Graph, GraphStep
from nearmesh_agent.engines.pipeline.python_step import PythonStep, PythonSteps
from nearmesh_agent.engines.pipeline.retrieve_step import Retriever, RetrieveStep


class _Runner(Protocol):
    """What carries out a step, by the step's own names of tensors."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def optional(self) -> tuple[str, ...]: ...

    # None: known when it has run.
    @property
    def outputs(self) -> tuple[str, ...] | None: ...

    def place(self, name: str) -> str: ...

    def run(self, arrays: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]: ...


@dataclass(frozen=True, slots=True)
class _Stage:
    """A step with what carries it out, by the pipeline's names of tensors."""

    step: Step
    runner: _Runner

    def take(self, found: Mapping[str, Array]) -> dict[str, Array]:
        """What the step reads, from what there is. Raises EngineFailure."""
        for own in self.runner.inputs:
            if self.source(own) not in found:
                raise EngineFailure(self.lacks(own, found))
        names = (*self.runner.inputs, *self.runner.optional)
        return {own: found[self.source(own)] for own in names if self.source(own) in found}

    def give(self, answer: Mapping[str, Array]) -> dict[str, Array]:
        """What the step wrote. Raises EngineFailure if it left out what model.toml says it writes."""
        for own in self.step.outputs:
            if own not in answer:
                raise EngineFailure(f"it wrote no {own!r}, which model.toml lists; it wrote {_names(answer)}")
        return {self.step.outputs.get(own, own): array for own, array in answer.items()}

    def source(self, own: str) -> str:
        return self.step.inputs.get(own, own)

    def lacks(self, own: str, found: Mapping[str, object]) -> str:
        return f"there is no {self.source(own)!r} for {self.runner.place(own)}; there is {_names(found)}"

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors on the way say which step it was."""
        try:
            yield
        except (InvalidInput, EngineFailure) as error:
            raise type(error)(f"step {self.step.name!r}: {error.message}") from None


class Pipeline:
    """All steps of a package, loaded. Thread-safe as far as the package's own functions are."""

    name = "nearmesh_pipeline"

    def __init__(
        self, package: Package, stages: Sequence[_Stage], graphs: Mapping[str, Graph], resources: ExitStack
    ) -> None:
        self._package, self._stages, self._resources = package, stages, resources
        self.variant = ",".join(f"{step}:{graph.variant}" for step, graph in graphs.items())
        self.variant_why = ""
        self.opened_s: float | None = None
        self.providers = tuple(dict.fromkeys(name for graph in graphs.values() for name in graph.providers))
        own = package.instances or usable_cores()
        self.instances: int = min((graph.instances for graph in graphs.values()), default=own)

    @classmethod
    def load(
        cls,
        folder: Path,
        package: Package,
        graph: Callable[[Step], Graph],
        *,
        allow_python: bool = True,
        retriever: Retriever | None = None,
    ) -> Pipeline:
        """Loads every step, graphs by `graph`, and checks that each finds what it reads; nothing is run.

        Without a `retriever`, as where a package is made, steps that retrieve give their sample.

        Raises PackageError, and whatever `graph` raises; then everything that was loaded is closed again.
        """
        with ExitStack() as resources:
            code = PythonSteps(folder, allowed=allow_python)
            resources.callback(code.close)
            graphs: dict[str, Graph] = {}
            stages: list[_Stage] = []
            for step in package.steps:
                if step.python is not None:
                    stages.append(_Stage(step, code.load(step)))
                    continue
                if step.retrieve is not None:
                    stages.append(_Stage(step, RetrieveStep(step.name, step.retrieve, retriever)))
                    continue
                graphs[step.name] = graph(step)
                resources.callback(graphs[step.name].close)
                stages.append(_Stage(step, GraphStep(step, graphs[step.name])))
            _check_wiring(package, stages)
            return cls(package, stages, graphs, resources.pop_all())

    def infer(self, inputs: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]:
        """Every output of the package; of a decoupled one, all answers of `stream`, joined along axis 0."""
        if self._package.decoupled:
            return _joined(self._package.outputs, list(self.stream(inputs)))
        return self._answer(self._run(self._stages, inputs, alone=alone))

    def stream(self, inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """The answers of a decoupled package, one by one; closing the iterator ends the last step's function."""
        last = self._stages[-1]
        assert isinstance(last.runner, PythonStep), "a decoupled package ends with a function"
        written = self._run(self._stages[:-1], inputs)
        with last.named():
            answers = last.runner.stream(last.take({**inputs, **written}))
        with closing(answers):
            while True:
                with last.named():
                    answer = next(answers, None)
                    more = last.give(answer) if answer is not None else {}
                if answer is None:
                    return
                yield self._answer(written | more)

    def close(self) -> None:
        self._resources.close()

    def _run(self, stages: Sequence[_Stage], inputs: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]:
        """What the stages wrote, by the pipeline's names; of tensors of one name, the last."""
        written: dict[str, Array] = {}
        for stage in stages:
            with stage.named():
                taken = stage.take({**inputs, **written})
                written |= stage.give(stage.runner.run(taken, alone=alone))
        return written

    def _answer(self, written: Mapping[str, Array]) -> dict[str, Array]:
        return {spec.name: _checked(spec, written) for spec in self._package.outputs}


def _check_wiring(package: Package, stages: Sequence[_Stage]) -> None:
    """Whether each step finds what it reads, as far as that can be told before functions ran. Raises PackageError."""
    found: dict[str, object] = dict.fromkeys(spec.name for spec in package.inputs)
    written: set[str] = set()
    # A function may have written anything.
    open_ended = False
    for stage in stages:
        where = f"step {stage.step.name!r}"
        _check_renamed(f"{where}: `inputs`", stage.step.inputs, (*stage.runner.inputs, *stage.runner.optional))
        for own in stage.runner.inputs:
            if stage.source(own) not in found and not open_ended:
                raise PackageError(f"{where}: {stage.lacks(own, found)}")
        if stage.runner.outputs is not None:
            _check_renamed(f"{where}: `outputs`", stage.step.outputs, stage.runner.outputs)
        else:
            open_ended = True
        own_names = stage.runner.outputs if stage.runner.outputs is not None else tuple(stage.step.outputs)
        written |= {stage.step.outputs.get(own, own) for own in own_names}
        found |= dict.fromkeys(written)
    for spec in package.outputs:
        if spec.name not in written and not open_ended:
            raise PackageError(f"no step writes the output {spec.name!r}; written are {_names(written)}")


def _check_renamed(what: str, renamed: Mapping[str, str], has: Sequence[str]) -> None:
    for own in renamed:
        if own not in has:
            raise PackageError(f"{what} lists {own!r}, the step has {_names(has)}")


def _checked(spec: TensorSpec, written: Mapping[str, Array]) -> Array:
    """The output, if it is what model.toml says. Raises EngineFailure."""
    array = written.get(spec.name)
    if array is None:
        raise EngineFailure(f"no step wrote the output {spec.name!r}; written are {_names(written)}")
    datatype = _datatype(array)
    fits = array.ndim == len(spec.shape) and all(
        said in (-1, size) for said, size in zip(spec.shape, array.shape, strict=True)
    )
    if datatype != spec.dtype or not fits:
        raise EngineFailure(
            f"output {spec.name!r} came as {datatype} {list(array.shape)}, "
            f"model.toml says {spec.dtype} {list(spec.shape)}"
        )
    return array


def _datatype(array: Array) -> str:
    try:
        return tensors.datatype_of(array)
    except InvalidInput:
        return str(array.dtype)


def _joined(specs: Sequence[TensorSpec], answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Several answers as one. Raises EngineFailure for those that differ in more than their first size."""
    if not answers:
        empty = {spec.name: [0, *(max(size, 0) for size in spec.shape[1:])] for spec in specs}
        return {spec.name: np.empty(empty[spec.name], tensors.numpy_dtype(spec.dtype)) for spec in specs}
    try:
        return {spec.name: np.concatenate([answer[spec.name] for answer in answers]) for spec in specs}
    except ValueError as error:
        raise EngineFailure(f"{len(answers)} answers cannot be joined along axis 0: {error}") from None


def _names(names: Mapping[str, object] | Sequence[str] | set[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "nothing"
