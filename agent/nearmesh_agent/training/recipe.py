"""What trains at a site: the contract that a package's recipe file keeps, and how the file is opened.

A recipe is a Python file that is one of two things. **PyTorch**, for which the mesh brings the training loop:

    def model() -> torch.nn.Module                    its state_dict has the parameters by name
    def loss(outputs, targets) -> torch.Tensor        optional: cross entropy of class numbers, else squared error
    def optimizer(module, settings)                   optional: SGD with `learning_rate` and `momentum`
    def metrics(outputs, targets) -> dict             optional, over NumPy arrays: "accuracy" of class numbers
    def export(module, path)                          for the package's author alone

or **plain**, over NumPy, with a loop of its own:

    def train(arrays, data, settings) -> (arrays, metrics)
    def evaluate(arrays, data, settings) -> metrics
    def outputs(arrays, inputs)                       optional: compared with what the ONNX graph gives
    def metrics(outputs, targets) -> dict             optional: judges the ONNX graph's outputs

`arrays` are the parameters by name, `data` is a `nearmesh_agent.training.data.Data`, and `settings` a dict: what the
package's `[training.settings]` and `run start --set` say, with "seed" and, under fedprox, "proximal-mu". The outputs of
a model with several are a tuple in the graph's order.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from nearmesh_agent.training.data import Data
from nearmesh_agent.training.failures import Diverged, RecipeError

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
Settings = Mapping[str, Any]
Metrics = dict[str, float]

# What the mesh itself calls its metrics.
LOSS, ACCURACY = "loss", "accuracy"


class Recipe(Protocol):
    """A recipe file that has been opened. Each method may raise RecipeError, Diverged, and whatever its code raises."""

    def train(self, arrays: Arrays, data: Data, settings: Settings) -> tuple[Arrays, Metrics]:
        """The parameters after training on `data`, and what is to be said of it."""
        ...

    def evaluate(self, arrays: Arrays, data: Data, settings: Settings) -> Metrics:
        """How good the parameters are on `data`."""
        ...

    def outputs(self, arrays: Arrays, inputs: Mapping[str, Array]) -> list[Array] | None:
        """What the framework's model gives, by the graph's outputs in order; None: it cannot say."""
        ...

    def metrics(self, outputs: list[Array], targets: Array) -> Metrics:
        """How good outputs are, whoever computed them."""
        ...


def open_recipe(path: Path, *, device: str = "cpu", threads: int = 1) -> Recipe:
    """The recipe in a file. Raises RecipeError, NotInstalled where it needs PyTorch and there is none."""
    # Both know this file; here, so that PyTorch is imported for recipes alone that use it.
    from nearmesh_agent.training.plain_recipe import PlainRecipe

    if any(isinstance(node, ast.FunctionDef) and node.name == "model" for node in _parsed(path).body):
        from nearmesh_agent.training.torch_recipe import TorchRecipe, need_torch

        need_torch()
        return TorchRecipe(_module(path), device=device, threads=threads)
    module = _module(path)
    missing = [name for name in ("train", "evaluate") if not callable(getattr(module, name, None))]
    if missing:
        raise RecipeError(f"{path} has neither a function `model` nor {' and '.join(f'`{name}`' for name in missing)}")
    return PlainRecipe(module)


def words(path: Path) -> frozenset[str]:
    """The texts that stand in a recipe: what it may call its metrics, so that no name comes from the data."""
    nodes = list(ast.walk(_parsed(path)))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return frozenset(texts | {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg})


def _parsed(path: Path) -> ast.Module:
    """Looked at before it is run: without PyTorch its import would fail first, and say less."""
    try:
        return ast.parse(path.read_text("utf-8"), str(path))
    except (SyntaxError, ValueError) as error:
        raise RecipeError(f"{path}: {error}") from None


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nearmesh_recipe", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(arrays: Any, expected: Arrays, what: str) -> Arrays:
    """The same names, shapes and dtypes as `expected`, all numbers finite. Raises RecipeError, Diverged."""
    if not isinstance(arrays, Mapping):
        raise RecipeError(f"{what} are {type(arrays).__name__}, expected arrays by name")
    lacking, other = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
    if lacking or other:
        raise RecipeError(f"{what} lack {lacking or 'nothing'} and have {other or 'nothing'} more")
    found = {name: np.asarray(arrays[name]) for name in expected}
    for name, array in found.items():
        wanted = expected[name]
        if array.shape != wanted.shape or array.dtype != wanted.dtype:
            said = f"{array.dtype} {list(array.shape)}, expected {wanted.dtype} {list(wanted.shape)}"
            raise RecipeError(f"{what}: {name!r} is {said}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise Diverged(f"{what}: {name!r} has numbers that are not finite")
    return found


def said_metrics(module: ModuleType, outputs: list[Array], targets: Array) -> Metrics:
    """By the recipe's own `metrics`, else the accuracy where outputs are scores of classes. Raises RecipeError."""
    own = getattr(module, "metrics", None)
    if own is not None:
        return numbers(own(outputs[0] if len(outputs) == 1 else tuple(outputs), targets), "what `metrics` returned")
    if outputs[0].ndim == 2 and outputs[0].shape[1] > 1 and targets.ndim == 1 and targets.dtype == np.int64:
        return {ACCURACY: float((outputs[0].argmax(axis=1) == targets).mean())}
    return {}


def numbers(metrics: Any, what: str) -> Metrics:
    """A dict of numbers, of whatever kind, as floats. Raises RecipeError."""
    try:
        return {str(name): float(value) for name, value in dict(metrics).items()}
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{what} is no dict of numbers: {error}") from None
