"""Whether a new version's answer to a live request says the same as the standing one's. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nearmesh.package import Package
from nearmesh_agent.engines.base import Array

# Where a package says nothing: a float agrees within a twentieth of itself and of the largest value of its tensor. That
# is wide enough for another number format or a little more training, and far too narrow for other weights.
_WIDE = 0.05
# NumPy's kinds of what has a direction.
_NUMBERS = set("fiub")


def agrees(standing: Mapping[str, Array], trial: Mapping[str, Array], package: Package) -> bool:
    """By the check of `package`, which is that of the version on trial.

    Where it has none, every output of the standing version has to be there, with the same dtype and shape, floats
    widely close and all others equal.
    """
    check = package.online_check
    if check is None:
        return all(name in trial and _widely(array, trial[name]) for name, array in standing.items())
    name = check.output or package.outputs[0].name
    one, other = standing.get(name), trial.get(name)
    if one is None or other is None or one.shape != other.shape:
        return False
    if check.agree == "argmax":
        return _same_choice(one, other) >= check.smallest_agreement
    if check.agree == "cosine":
        return not {one.dtype.kind, other.dtype.kind} - _NUMBERS and _smallest_cosine(one, other) >= 1 - check.atol
    return _close(one, other, check.rtol, check.atol)


def _smallest_cosine(one: Array, other: Array) -> float:
    """Of the rows (axis 0), each with all its values; two that are all zeros are alike."""
    if not one.size:
        return 1.0
    a, b = (array.reshape(len(array) if array.ndim else 1, -1).astype(np.float64) for array in (one, other))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where(both_zero, 1.0, np.where(lengths > 0, (a * b).sum(axis=1) / lengths, 0.0))
    # A NaN stays one, and is above nothing.
    return float(cosines.min())


def _same_choice(one: Array, other: Array) -> float:
    """Of the rows (all axes but the last), the share whose largest value is at the same place."""
    if not one.size:
        return 1.0
    if not one.ndim:
        return float(one == other)
    return float(np.mean(one.argmax(axis=-1) == other.argmax(axis=-1)))


def _widely(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    finite = np.abs(one[np.isfinite(one)]) if one.dtype.kind == "f" else None
    return _close(one, other, _WIDE, _WIDE * float(finite.max(initial=0.0)) if finite is not None else 0.0)


def _close(one: Array, other: Array, rtol: float, atol: float) -> bool:
    """Only floats can be close to each other; all else is equal or not."""
    if one.dtype.kind != "f" or other.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    # In double precision: half floats would overflow. A NaN is as good as the same NaN.
    with np.errstate(invalid="ignore"):
        return bool(np.allclose(other.astype(np.float64), one.astype(np.float64), rtol, atol, equal_nan=True))
