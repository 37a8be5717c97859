"""Functions that a package brings along, as steps of its pipeline: loaded, called, and what they return checked.

The code runs in the node's own process with all of its rights. Only operators publish packages, and a node's setting
`allow_python` can refuse such packages altogether.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from nearmesh import tensors
from nearmesh.errors import EngineFailure, InvalidInput, PackageError
from nearmesh.package import Step
from nearmesh_agent.engines.base import Array

logger = logging.getLogger(__name__)

# Also tells two copies of one version apart that are loaded at a time.
_NUMBERS = itertools.count(1)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_END = object()


class PythonSteps:
    """The functions in one version's folder. Each file is loaded once, so that its functions share what it holds."""

    def __init__(self, folder: Path, *, allowed: bool = True) -> None:
        self._folder, self._allowed = folder, allowed
        self._modules: dict[str, ModuleType] = {}

    def load(self, step: Step) -> PythonStep:
        """The step's function, not yet called. Raises PackageError."""
        assert step.python is not None and step.file is not None
        if not self._allowed:
            raise PackageError(
                f"step {step.name!r} is code of the package ({step.python}), and this node runs none: "
                "its setting `allow_python` is false"
            )
        module = self._modules.get(step.file)
        if module is None:
            module = self._modules[step.file] = _load_module(self._folder, step.file)
        name = step.python.partition(":")[2]
        function = getattr(module, name, None)
        if not callable(function):
            raise PackageError(f"step {step.name!r}: {step.file} has no function {name!r}")
        return PythonStep(step.python, function)

    def close(self) -> None:
        """Forgets the files' modules. Safe to repeat."""
        for module in self._modules.values():
            sys.modules.pop(module.__name__, None)
        self._modules.clear()


class PythonStep:
    """One function: arrays by keyword in, arrays by name out. It is called from several threads at a time."""

    # Known when it has run.
    outputs: tuple[str, ...] | None = None

    def __init__(self, where: str, function: Callable[..., Any]) -> None:
        self._where, self._function = where, function
        parameters = _parameters(where, function)
        # Names of the tensors that it needs, and of those that it takes if they are there.
        self.inputs = tuple(p.name for p in parameters if p.default is p.empty)
        self.optional = tuple(p.name for p in parameters if p.default is not p.empty)

    def place(self, name: str) -> str:
        """Where in the package an input is asked for, for an error's message."""
        return f"argument {name!r} of {self._where}"

    def run(self, arrays: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]:
        """What the function returns. Raises InvalidInput for its ValueError, EngineFailure for anything else."""
        with self._foreign():
            answer = self._function(**_read_only(arrays))
        return self._checked(answer)

    def stream(self, arrays: Mapping[str, Array]) -> Generator[dict[str, Array], None, None]:
        """What the function yields, one by one; closing the iterator closes the function's. Raises as `run` does."""
        with self._foreign():
            answers = self._function(**_read_only(arrays))
        if isinstance(answers, Mapping) or not hasattr(answers, "__iter__"):
            raise EngineFailure(f"{self._where} gave {_kind(answers)}, expected an iterator of dicts of arrays by name")
        with self._foreign():
            answers = iter(answers)
        try:
            while True:
                with self._foreign():
                    answer = next(answers, _END)
                if answer is _END:
                    return
                yield self._checked(answer)
        finally:
            with self._foreign():
                getattr(answers, "close", _nothing)()

    @contextmanager
    def _foreign(self) -> Iterator[None]:
        """Around every line of the package's code: what it raises becomes one of our errors."""
        try:
            yield
        except ValueError as error:
            logger.debug("step refused its input function=%s", self._where, exc_info=True)
            raise InvalidInput(_words(error)) from None
        # A bug of a package becomes an answer here, as one of a servicer does in nearmesh.rpc: it must end neither the
        # thread that computes nor, by sys.exit(), the node.
        except (Exception, SystemExit) as error:
            logger.exception("step failed function=%s", self._where)
            raise EngineFailure(f"{self._where} failed: {type(error).__name__}: {_words(error)}") from None

    def _checked(self, answer: object) -> dict[str, Array]:
        if not isinstance(answer, dict):
            raise EngineFailure(f"{self._where} gave {_kind(answer)}, expected a dict of arrays by name")
        return {self._name(name): self._tensor(name, array) for name, array in answer.items()}

    def _name(self, name: object) -> str:
        if not isinstance(name, str):
            raise EngineFailure(f"{self._where} gave an output named {name!r}, expected a str")
        return name

    def _tensor(self, name: str, array: object) -> Array:
        """The array as the protocol has it: BYTES as objects of bytes."""
        where = f"{self._where} gave the output {name!r}"
        if not isinstance(array, np.ndarray):
            raise EngineFailure(f"{where} as {_kind(array)}, expected a NumPy array")
        try:
            datatype = tensors.datatype_of(array)
        except InvalidInput:
            raise EngineFailure(f"{where} as {array.dtype}, which is no dtype of the protocol") from None
        return _as_bytes(where, array) if datatype == "BYTES" else array


def _load_module(folder: Path, file: str) -> ModuleType:
    """Runs the file under a name of its own, so that versions of a package do not see each other's."""
    if Path(file).name != file:
        raise PackageError(f"{file}: the package's files lie beside model.toml, without folders")
    name = f"_nearmesh_step_{next(_NUMBERS)}_{Path(file).stem}"
    spec = spec_from_loader(name, _Source(name, str(folder / file)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # Where dataclasses and the like look for the module of a class.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    # The package's code again, from a missing import to a bug at the file's top.
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        logger.warning("package code cannot be loaded file=%s", file, exc_info=True)
        raise PackageError(f"{file} cannot be loaded: {type(error).__name__}: {_words(error)}") from None
    return module


class _Source(SourceFileLoader):
    """Without bytecode: none is written into a version's folder, and none that lies there is run."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _parameters(where: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise PackageError(f"{where}: its parameters cannot be told: {error}") from None
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PackageError(f"{where} is async; a step is a plain function, which runs in a thread")
    for parameter in parameters:
        if parameter.kind not in _NAMED:
            raise PackageError(f"{where}: parameter {str(parameter)!r} names no tensor; each needs a name of its own")
    return parameters


def _read_only(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """A request's arrays cannot be written; so that a warm-up finds what a request would, no step's can."""
    views = {name: array.view() for name, array in arrays.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


def _as_bytes(where: str, array: Array) -> Array:
    items = np.empty(array.shape, dtype=object)
    for index, item in enumerate(array.flat):
        if not isinstance(item, bytes | str):
            raise EngineFailure(f"{where} with {_kind(item)} as element {index}, expected bytes or str")
        items.flat[index] = item.encode() if isinstance(item, str) else bytes(item)
    return items


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _nothing() -> None:
    """Stands for the `close` of an iterator that has none."""
