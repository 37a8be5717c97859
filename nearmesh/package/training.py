"""`[training]`: how federated rounds train the model, and how good what they end in has to be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nearmesh.config import Problem, refuse

# What a recipe may be told.
_SETTINGS = (bool, int, float, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingGate:
    """What a model that rounds end in may lose and change, against its parent, and still be published."""

    # Of the metric, at any site, on the data that the site held back.
    largest_site_loss: float = 0.02
    # Of the metric: the mean over the sites, weighted by their examples, has to gain so much.
    smallest_mean_gain: float = 0.0
    # Length (L2 norm) of all that was changed, in lengths of the parent's parameters.
    largest_change: float = 10.0

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if self.largest_site_loss < 0:
            said = f"training.gate.largest_site_loss must be 0 or more, got {self.largest_site_loss:g}"
            yield Problem(("largest_site_loss",), said)
        if self.largest_change <= 0:
            said = f"training.gate.largest_change must be above 0, got {self.largest_change:g}"
            yield Problem(("largest_change",), said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What `nearmesh run start` trains: by which recipe, which of the graph's parameters, and how it is judged."""

    # A Python file of the package: a PyTorch module by `model()`, or functions `train` and `evaluate` over NumPy.
    recipe: str
    # Names of the initializers of the graph that rounds change, which the recipe's parameters are called as well.
    parameters: tuple[str, ...]
    # The variant whose graph is trained. Default: the one that the others are made from.
    variant: str = ""
    # Of a pipeline: the step whose graph it is.
    step: str = ""
    # What the recipe's evaluation calls the figure that is judged; higher is better.
    metric: str = "accuracy"
    # Largest difference between the recipe's outputs and the ONNX graph's.
    tolerance: float = 1e-4
    # What the recipe is told; `nearmesh run start --set NAME=VALUE` tells it otherwise.
    settings: dict[str, Any] = field(default_factory=dict)
    gate: TrainingGate = field(default_factory=TrainingGate)

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if not self.recipe.endswith(".py"):
            yield Problem(("recipe",), f"training.recipe is {self.recipe!r}; expected a Python file of the package")
        if not self.parameters:
            yield Problem(("parameters",), "training.parameters is empty; name the initializers that rounds change")
        for position, name in enumerate(self.parameters):
            if not name or name in self.parameters[:position]:
                said = f"training.parameters: {name!r} is named twice" if name else "training.parameters: a name is ''"
                yield Problem(("parameters", position), said)
        if not self.metric:
            yield Problem(("metric",), "training.metric is empty; name the figure that is judged")
        if self.tolerance <= 0:
            yield Problem(("tolerance",), f"training.tolerance must be above 0, got {self.tolerance:g}")
        for name, value in self.settings.items():
            if not isinstance(value, _SETTINGS) or (isinstance(value, float) and not math.isfinite(value)):
                said = f"training.settings.{name} is {value!r}; expected a text, a finite number, true or false"
                yield Problem(("settings", name), said)
