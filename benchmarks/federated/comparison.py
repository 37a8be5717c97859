"""Each study without a mesh: the same recipe over rounds of averages, on pooled data, and at each site alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.federated.study import Arrays, Data, SiteData, Study, together

# Of the pooled model's accuracy, at least.
OF_POOLED = 0.98
# Models of pooled data, each with its rows in another order; their mean counts.
POOLED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """One site's own model against the federated one, on the other sites' data."""

    site: str
    own: float
    elsewhere: float
    federated_elsewhere: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way to hold data back. Accuracies on what all sites hold back."""

    seed: int
    first: float
    # After each round.
    federated: list[float]
    pooled: float
    alone: list[Alone]

    @property
    def of_pooled(self) -> float:
        return self.federated[-1] / self.pooled

    @property
    def above_all(self) -> bool:
        return all(one.federated_elsewhere > one.elsewhere for one in self.alone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All ways to hold data back."""

    name: str
    splits: list[Split]

    @property
    def of_pooled(self) -> float:
        return statistics.mean(split.of_pooled for split in self.splits)

    def to_json(self) -> dict[str, Any]:
        splits = [asdict(s) | {"of_pooled": s.of_pooled, "above_all": s.above_all} for s in self.splits]
        return {"name": self.name, "of_pooled": self.of_pooled, "splits": splits}


def compare(study: Study, data: Path, settings: Mapping[str, Any]) -> Comparison:
    """In this process. `settings` as the package has them."""
    splits = [
        compare_split(study, study.read(data, seed), study.first(data), settings, seed) for seed in range(study.splits)
    ]
    return Comparison(name=study.name, splits=splits)


def compare_split(
    study: Study, sites: Mapping[str, SiteData], first: Arrays, settings: Mapping[str, Any], seed: int
) -> Split:
    """One way to hold data back."""
    recipe = study.recipe
    judged = _held_back(sites, sites)
    federated, history = first, []
    for number in range(study.rounds):
        told = {**settings, "seed": number}
        federated = averaged(recipe, federated, [site.train for site in sites.values()], told)
        history.append(accuracy(recipe, federated, judged))
    pooled, alone = without_rounds(
        study, sites, first, settings, lambda others: accuracy(recipe, federated, _held_back(sites, others))
    )
    return Split(seed=seed, first=accuracy(recipe, first, judged), federated=history, pooled=pooled, alone=alone)


def without_rounds(
    study: Study,
    sites: Mapping[str, SiteData],
    first: Arrays,
    settings: Mapping[str, Any],
    federated_at: Callable[[Collection[str]], float],
) -> tuple[float, list[Alone]]:
    """Accuracy of the pooled model, and of each site's own; `federated_at` is that of the federated one at some sites.

    All have as many passes over the data as the study's rounds together.
    """
    recipe, longer = study.recipe, {**settings, "epochs": settings["epochs"] * study.rounds}
    rows = together([site.train for site in sites.values()])
    pooled = [recipe.train(first, rows, {**longer, "seed": order})[0] for order in range(POOLED)]
    alone = []
    for name, site in sites.items():
        arrays, _ = recipe.train(first, site.train, longer)
        others = [other for other in sites if other != name]
        alone.append(
            Alone(
                site=name,
                own=accuracy(recipe, arrays, site.held_back),
                elsewhere=accuracy(recipe, arrays, _held_back(sites, others)),
                federated_elsewhere=federated_at(others),
            )
        )
    judged = _held_back(sites, sites)
    return statistics.mean(accuracy(recipe, arrays, judged) for arrays in pooled), alone


def averaged(recipe: ModuleType, arrays: Arrays, parts: list[Data], settings: Mapping[str, Any]) -> Arrays:
    """One round: every site trains, and the mean by examples is what comes next (McMahan et al., 2017)."""
    answers = [recipe.train(arrays, part, settings)[0] for part in parts]
    weights = [len(part.targets) for part in parts]
    return {
        name: np.average([answer[name] for answer in answers], axis=0, weights=weights).astype(array.dtype)
        for name, array in arrays.items()
    }


def accuracy(recipe: ModuleType, arrays: Arrays, data: Data) -> float:
    return float(recipe.evaluate(arrays, data, {})["accuracy"])


def _held_back(sites: Mapping[str, SiteData], names: Collection[str]) -> Data:
    return together([sites[name].held_back for name in names])
