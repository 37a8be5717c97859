"""One study: a package, the sites, and where each site's data lie; and how recipes and data are read here."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nearmesh.package import load
from nearmesh.packaging.warmup import record

PACKAGES = Path(__file__).with_name("packages")
# Of each site's rows, those that nothing is trained on.
HELD_BACK = 0.25

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Data:
    """As a recipe gets it."""

    inputs: Mapping[str, np.ndarray]
    targets: np.ndarray


@dataclass(frozen=True, slots=True)
class SiteData:
    """What one site trains on, and what it holds back."""

    train: Data
    held_back: Data


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is trained, and by whom."""

    # Of the package, too.
    name: str
    title: str
    sites: tuple[str, ...]
    rounds: int
    # Seeds of other ways to hold data back, in which the comparison is made too.
    splits: int
    # By site and seed; seed 0 is how the data lie in the sites' folders.
    read: Callable[[Path, int], dict[str, SiteData]]
    # Writes sites/SITE in a folder; gives each site's [training.data.NAME].
    write_sites: Callable[[Path, Path], dict[str, dict[str, Any]]]
    # The first version's parameters, and its graph.
    first: Callable[[Path], Arrays]
    graph: Callable[[Arrays], Any]
    # What the publisher has: rows for each set, inputs by name and targets.
    sets: Callable[[Path], dict[str, Data]]

    @property
    def recipe(self) -> ModuleType:
        return recipe(self.name)

    def make_package(self, data: Path, into: Path) -> Path:
        """A folder that can be published. `data` is the folder with the study's data."""
        import onnx

        folder = shutil.copytree(PACKAGES / self.name, into, ignore=shutil.ignore_patterns("__pycache__"))
        onnx.save(self.graph(self.first(data)), str(folder / f"{self.name}.onnx"))
        (output,) = [spec.name for spec in load(folder).outputs]
        sets = self.sets(data)
        for name, rows in sets.items():
            inputs = {f"input.{key}": array for key, array in rows.inputs.items()}
            np.savez(folder / f"{name}.npz", **inputs, **{f"expected.{output}": rows.targets})
        first = {key: array[:8] for key, array in sets["evaluation"].inputs.items()}
        record(folder, first, decimals=6)
        return folder


def recipe(package: str) -> ModuleType:
    """A package's training.py, as a module of its own."""
    path = PACKAGES / package / "training.py"
    spec = importlib.util.spec_from_file_location(f"recipe_{package.replace('-', '_')}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parted(inputs: Mapping[str, np.ndarray], targets: np.ndarray, seed: int) -> SiteData:
    """Rows for training, and those held back; the seed says which."""
    mask = np.zeros(len(targets), bool)
    mask[np.random.default_rng(seed).permutation(len(mask))[: round(HELD_BACK * len(mask))]] = True
    return SiteData(
        Data({name: array[~mask] for name, array in inputs.items()}, targets[~mask]),
        Data({name: array[mask] for name, array in inputs.items()}, targets[mask]),
    )


def together(parts: list[Data]) -> Data:
    """As if all of it lay in one place."""
    return Data(
        {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs},
        np.concatenate([part.targets for part in parts]),
    )
