"""A recipe that trains by functions of its own over NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from nearmesh_agent.training.data import Data
from nearmesh_agent.training.failures import RecipeError
from nearmesh_agent.training.recipe import Array, Arrays, Metrics, Settings, check, numbers, said_metrics


class PlainRecipe:
    """`train` and `evaluate` of a recipe file; `outputs` and `metrics` where it has them."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def train(self, arrays: Arrays, data: Data, settings: Settings) -> tuple[Arrays, Metrics]:
        found = self._module.train(_copies(arrays), data, dict(settings))
        if not isinstance(found, tuple) or len(found) != 2:
            raise RecipeError(f"`train` returned {type(found).__name__}, expected (arrays, metrics)")
        return check(found[0], arrays, "the arrays that `train` returned"), numbers(found[1], "the metrics of `train`")

    def evaluate(self, arrays: Arrays, data: Data, settings: Settings) -> Metrics:
        return numbers(self._module.evaluate(_copies(arrays), data, dict(settings)), "what `evaluate` returned")

    def outputs(self, arrays: Arrays, inputs: Mapping[str, Array]) -> list[Array] | None:
        own = getattr(self._module, "outputs", None)
        if own is None:
            return None
        found = own(_copies(arrays), dict(inputs))
        if isinstance(found, Mapping):
            raise RecipeError("`outputs` returned a dict, expected an array, or one for each output of the graph")
        return [np.asarray(one) for one in (found if isinstance(found, tuple | list) else (found,))]

    def metrics(self, outputs: list[Array], targets: Array) -> Metrics:
        return said_metrics(self._module, outputs, targets)


def _copies(arrays: Arrays) -> Arrays:
    """A recipe may change what it is given; what it began from is still needed."""
    return {name: array.copy() for name, array in arrays.items()}
