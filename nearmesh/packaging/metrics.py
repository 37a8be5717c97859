"""How good outputs are, and how far two variants agree: the metrics that `[evaluation]` may name, in NumPy."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nearmesh.errors import PackageError
from nearmesh.package import Evaluation, Package

Array = npt.NDArray[Any]
# One entry for each case: an array whose first axis counts them, or a list where their shapes differ.
Answers = Array | list[Array]
Metric = Callable[[Mapping[str, Answers], Mapping[str, Array]], float]
Agreeing = Literal["argmax", "cosine", "exact"]

# Vectors that are as near as this say the same.
SAME_DIRECTION = 0.99


def metric_of(evaluation: Evaluation, output: str, folder: Path) -> Metric:
    """The function that gives the metric, from outputs and expected arrays by name. Raises PackageError."""
    if evaluation.code:
        return _own_function(folder / evaluation.code, evaluation.metric.partition(":")[2])
    score = {"accuracy": accuracy, "cosine": mean_cosine, "exact": exact}[evaluation.metric]

    def judged(outputs: Mapping[str, Answers], expected: Mapping[str, Array]) -> float:
        if output not in expected:
            raise PackageError(
                f"{evaluation.file}: the metric {evaluation.metric!r} needs expected.{output}; "
                f"there is {', '.join(f'expected.{name}' for name in expected) or 'none'}"
            )
        return score(outputs[output], expected[output])

    return judged


def _own_function(path: Path, name: str) -> Metric:
    spec = importlib.util.spec_from_file_location(f"nearmesh_metric_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PackageError(f"{path}: no such file; [evaluation] names it as the metric's")
    module = importlib.util.module_from_spec(spec)
    # No folder beside the author's files that he did not make.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, OSError) as error:
        raise PackageError(f"{path}: {error}") from None
    finally:
        sys.dont_write_bytecode = writes
    function = getattr(module, name, None)
    if not callable(function):
        raise PackageError(f"{path} has no function {name!r}; [evaluation] names it")
    return lambda outputs, expected: _number(path, name, function(outputs, expected))


def _number(path: Path, name: str, found: Any) -> float:
    try:
        return float(found)
    except (TypeError, ValueError):
        raise PackageError(f"{path}: {name} returned {found!r}; expected a number, higher is better") from None


def accuracy(outputs: Answers, expected: Array) -> float:
    """Share of the cases whose largest value stands where expected."""
    best = [np.asarray(case).argmax(axis=-1) for case in outputs]
    right = [np.array_equal(np.squeeze(ours), np.squeeze(label)) for ours, label in _pairs(best, expected)]
    return float(np.mean(right))


def mean_cosine(outputs: Answers, expected: Array) -> float:
    """The mean cosine of the cases' vectors with those expected."""
    return float(np.mean([_cosine(ours, theirs) for ours, theirs in _pairs(outputs, expected)]))


def exact(outputs: Answers, expected: Answers) -> float:
    """Share of the cases that are just as expected."""
    return float(np.mean([np.array_equal(_text(a), _text(b)) for a, b in _pairs(outputs, expected)]))


def how_to_agree(package: Package, output: str) -> Agreeing:
    """What says the same: the largest value in the same place, the same direction, or the same bytes."""
    evaluation = package.evaluation
    spec = next(spec for spec in package.outputs if spec.name == output)
    if not spec.dtype.startswith("FP") or (evaluation and evaluation.metric == "exact"):
        return "exact"
    if evaluation and evaluation.metric == "accuracy":
        return "argmax"
    # The labels of a graph are those of its outputs' last axis; a pipeline's may be anybody's.
    ranked = package.labels is not None and not package.steps
    return "argmax" if ranked and (not evaluation or evaluation.metric != "cosine") else "cosine"


def agreement(how: Agreeing, ours: Answers, reference: Answers) -> float:
    """Share of the cases in which both say the same; of outputs with several rankings for a case, of all rankings."""
    pairs = _pairs(ours, reference)
    if how == "exact":
        return exact(ours, reference)
    if how == "cosine":
        return float(np.mean([_shaped_alike(a, b) and _cosine(a, b) >= SAME_DIRECTION for a, b in pairs]))
    same = [
        (a.argmax(axis=-1) == b.argmax(axis=-1)).ravel() if _shaped_alike(a, b) else np.zeros(1, bool) for a, b in pairs
    ]
    return float(np.mean(np.concatenate(same)))


def broken(ours: Answers, reference: Answers) -> int:
    """How many numbers are NaN, or infinite where the reference's are not."""
    return sum(_broken(np.asarray(a), np.asarray(b)) for a, b in _pairs(ours, reference))


def _broken(ours: Array, reference: Array) -> int:
    if ours.dtype.kind != "f":
        return 0
    infinite = np.isinf(ours)
    if reference.shape == ours.shape and reference.dtype.kind == "f":
        infinite &= ~np.isinf(reference)
    return int(np.count_nonzero(np.isnan(ours)) + np.count_nonzero(infinite))


def _pairs(ours: Answers, theirs: Answers) -> Sequence[tuple[Array, Array]]:
    if len(ours) != len(theirs):
        raise PackageError(f"{len(ours)} answers cannot be judged by {len(theirs)} that were expected")
    return list(zip(ours, theirs, strict=True))


def _shaped_alike(one: Array, other: Array) -> bool:
    return np.shape(one) == np.shape(other)


def _cosine(one: Array, other: Array) -> float:
    a, b = np.asarray(one, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not lengths:
        # Two that are all zeros say the same.
        return float(not a.any() and not b.any())
    return float(a @ b) / lengths


def _text(array: Array) -> Array:
    """Texts as bytes, however they are kept."""
    array = np.asarray(array)
    if array.dtype.kind not in "OSU":
        return array
    items = [item.encode() if isinstance(item, str) else bytes(item) for item in array.flat]
    return np.array(items, object).reshape(array.shape)
