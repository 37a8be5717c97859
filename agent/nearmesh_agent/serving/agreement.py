"""Whether a new version's answer to a live request says the same as the standing one's. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nearmesh.package import Package
from nearmesh_agent.engines.base import Array

# Where a package says nothing: a float agrees within a twentieth of itself and of the largest value of its tensor. That
# is wide enough for another number format or a little more training, and far too narrow for other weights.
_WIDE = 0.05


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
    return _close(one, other, check.rtol, check.atol)


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
