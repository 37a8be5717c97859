"""Warm-up files: real inputs with the outputs that ONNX Runtime gave on the machine where the package was made."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearmesh.errors import PackageError
from nearmesh.package import Package, TensorSpec, load
from nearmesh.packaging.sources import default_cache, fetch

INPUT, OUTPUT = "input.", "output."

# Of numpy's kinds of arrays, the one that each dtype is; BYTES are bytes or text.
_NUMPY = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}


def record(folder: Path, inputs: Mapping[str, npt.NDArray[Any]], *, decimals: int, cache: Path | None = None) -> Path:
    """Runs the package's first variant on `inputs` and writes its first warm-up file. Needs ONNX Runtime.

    Outputs are rounded to `decimals`, which must lie well within the warm-up's tolerance: it makes the file small.
    """
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        raise PackageError("recording a warm-up needs ONNX Runtime: pip install onnxruntime") from None
    package = load(folder)
    weights = fetch(package.variants[0].source, folder, cache or default_cache())
    names = [spec.name for spec in package.outputs]
    answers = InferenceSession(weights.read_bytes(), providers=["CPUExecutionProvider"]).run(names, dict(inputs))
    arrays = {INPUT + name: array for name, array in inputs.items()}
    arrays |= {OUTPUT + name: _rounded(answer, decimals) for name, answer in zip(names, answers, strict=True)}
    path = folder / package.warmup[0].file
    np.savez_compressed(path, allow_pickle=False, **arrays)
    check_warmup(package, path)
    return path


def _rounded(answer: npt.NDArray[Any], decimals: int) -> npt.NDArray[Any]:
    # + 0 turns -0.0 into 0.0, whose bytes compress with the other zeros.
    return answer.round(decimals) + answer.dtype.type(0) if answer.dtype.kind == "f" else answer


def read_warmup(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """The inputs and the expected outputs by name. Raises PackageError."""
    try:
        # Opened here, since numpy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PackageError(f"{path} is no .npz of plain arrays: {error}") from None
    if unknown := [name for name in arrays if not name.startswith((INPUT, OUTPUT))]:
        raise PackageError(f"{path}: arrays are named input.NAME or output.NAME, not {unknown[0]!r}")
    inputs = {name.removeprefix(INPUT): array for name, array in arrays.items() if name.startswith(INPUT)}
    outputs = {name.removeprefix(OUTPUT): array for name, array in arrays.items() if name.startswith(OUTPUT)}
    return inputs, outputs


def check_warmup(package: Package, path: Path) -> None:
    """Whether the file's arrays are inputs and outputs of the package. Raises PackageError."""
    inputs, outputs = read_warmup(path)
    if not outputs:
        raise PackageError(f"{path} expects no output: a warm-up that cannot fail proves nothing")
    _check_arrays(path, INPUT, package.inputs, inputs)
    _check_arrays(path, OUTPUT, package.outputs, outputs)
    for spec in package.inputs:
        if spec.name not in inputs and not spec.optional:
            raise PackageError(f"{path} lacks the input {spec.name!r}")


def _check_arrays(
    path: Path, prefix: str, specs: tuple[TensorSpec, ...], arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    known = {spec.name: spec for spec in specs}
    for name, array in arrays.items():
        spec = known.get(name)
        if spec is None:
            raise PackageError(f"{path}: {prefix}{name} is not in model.toml, which has {', '.join(known)}")
        if not _is_a(spec, array):
            said, has = f"{spec.dtype} {list(spec.shape)}", f"{array.dtype} {list(array.shape)}"
            raise PackageError(f"{path}: {prefix}{name} is {has}, model.toml says {said}")


def _is_a(spec: TensorSpec, array: npt.NDArray[Any]) -> bool:
    if spec.dtype == "BYTES":
        right_type = array.dtype.kind in "SU"
    else:
        right_type = array.dtype == _NUMPY.get(spec.dtype, spec.dtype.lower())
    right_rank = array.ndim == len(spec.shape)
    return right_type and right_rank and all(w in (-1, got) for w, got in zip(spec.shape, array.shape, strict=True))
