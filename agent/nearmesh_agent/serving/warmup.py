"""Whether a freshly loaded version gives the outputs that its package promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from nearmesh.errors import PackageError, WarmupFailed
from nearmesh.package import UNREADABLE_ARCHIVE, Package, Warmup, unreadable
from nearmesh_agent.engines.base import Array
from nearmesh_agent.serving.inputs import complete

_INPUT, _OUTPUT = "input.", "output."
NO_ALLOWANCE: Mapping[str, float] = {}


def cases(folder: Path, package: Package) -> Iterator[tuple[Warmup, dict[str, Array], dict[str, Array]]]:
    """Each warm-up with its inputs, completed as a request's are, and its expected outputs. Raises PackageError."""
    for warmup in package.warmup:
        arrays = _read(folder / warmup.file)
        given = {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)}
        expected = {name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)}
        if not expected:
            raise PackageError(f"{warmup.file} has no array named {_OUTPUT}NAME, so it proves nothing")
        yield warmup, complete(package, given), expected


def check(
    warmup: Warmup,
    outputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    allowance: Mapping[str, float] = NO_ALLOWANCE,
) -> None:
    """Raises WarmupFailed, which names the tensor and the largest difference, unless all outputs are close enough.

    By `allowance` an output may be further off than the package's tolerance says: what quantizing has cost there.
    """
    for name, array in expected.items():
        further = beyond(warmup, name, outputs, array)
        if further > allowance.get(name, 0.0):
            left, right = outputs[name].astype(np.float64), array.astype(np.float64)
            raise WarmupFailed(
                f"{_where(warmup, name)} differs from what is expected by up to {np.abs(left - right).max():.6g} "
                f"(rtol {warmup.rtol:g}, atol {warmup.atol:g}"
                + (f", and {allowance[name]:.3g} that the variant may differ)" if name in allowance else ")")
            )


def beyond(warmup: Warmup, name: str, outputs: Mapping[str, Array], expected: Array) -> float:
    """By how much the worst value is further off than the package's tolerance; 0 if none is.

    Raises WarmupFailed where no tolerance would help: no such output, another shape, other bytes, NaN.
    """
    where = _where(warmup, name)
    if name not in outputs:
        raise WarmupFailed(f"{warmup.file}: output {name!r} is expected, the model has {sorted(outputs)}")
    got = outputs[name]
    if got.shape != expected.shape:
        raise WarmupFailed(f"{where} has shape {list(got.shape)}, expected {list(expected.shape)}")
    if got.dtype == object or expected.dtype == object:
        if got.tolist() != expected.tolist():
            raise WarmupFailed(f"{where} is not the expected bytes")
        return 0.0
    left, right = got.astype(np.float64), expected.astype(np.float64)
    # A NaN is close to nothing, not even to a NaN that was expected; infinities only to themselves.
    if np.allclose(left, right, rtol=warmup.rtol, atol=warmup.atol):
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.where(left == right, 0.0, np.abs(left - right))
        further = difference - warmup.atol - warmup.rtol * np.abs(right)
    if not np.isfinite(difference).all():
        nan = int(np.count_nonzero(np.isnan(left)))
        raise WarmupFailed(
            f"{where} differs from what is expected by up to {np.nanmax(difference, initial=0.0):.6g} "
            f"(rtol {warmup.rtol:g}, atol {warmup.atol:g})" + (f"; {nan} of {left.size} values are NaN" if nan else "")
        )
    return float(further.max(initial=0.0))


def _where(warmup: Warmup, name: str) -> str:
    return f"{warmup.file}: output {name!r}"


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: as_tensor(archive[name]) for name in archive.files}
    except UNREADABLE_ARCHIVE as error:
        raise PackageError(f"{path.name} is not an .npz archive of arrays: {unreadable(error)}") from None


def as_tensor(array: Array) -> Array:
    """BYTES stand in the archive as fixed-width strings, since it may hold no Python objects."""
    if array.dtype.kind not in "SU":
        return array
    items = np.empty(array.shape, dtype=object)
    for index, item in enumerate(array.flat):
        items.flat[index] = item.encode() if isinstance(item, str) else bytes(item)
    return items
