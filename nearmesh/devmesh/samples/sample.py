"""What a sample is: inputs for one model, and a check that reads the answer and refuses a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearmesh.package import read_labels

Array = npt.NDArray[Any]

# The root of this checkout: labels stand in models/, and the project's own files are inputs too.
CHECKOUT = Path(__file__).parents[3]


class WrongAnswer(Exception):
    """A model's answer is not the known one; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request with a known answer."""

    model: str
    # What it is, for people.
    name: str
    inputs: Mapping[str, Array]
    # Takes the outputs by name, gives the answer in words. Raises WrongAnswer.
    check: Callable[[Mapping[str, Array]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSample:
    """The calls of one sequence, in order, with a known answer over all of them."""

    model: str
    name: str
    calls: tuple[Mapping[str, Array], ...]
    # Takes each call's outputs by name, in order, gives the answer in words. Raises WrongAnswer.
    check: Callable[[Sequence[Mapping[str, Array]]], str]


def output(outputs: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    """The output of that name, if it has that shape (-1: any) and holds numbers. Raises WrongAnswer."""
    if name not in outputs:
        raise WrongAnswer(f"no output {name!r} among {sorted(outputs)}")
    array = outputs[name]
    if array.ndim != len(shape) or any(want not in (-1, got) for want, got in zip(shape, array.shape, strict=True)):
        raise WrongAnswer(f"output {name!r} has shape {list(array.shape)}, expected {list(shape)}")
    if not np.isfinite(array).all():
        raise WrongAnswer(f"output {name!r} holds values that are not finite")
    return array


def labels(root: Path, model: str) -> tuple[str, ...]:
    """The labels of one of the checkout's models. Raises PackageError."""
    return read_labels(root / "models" / model / "labels.txt")
