"""Warm-up files: real inputs with the outputs that the model gave on the machine where the package was made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearmesh.errors import PackageError
from nearmesh.package import UNREADABLE_ARCHIVE, Package, TensorSpec, load, unreadable
from nearmesh.packaging.layout import lay_out, published_files
from nearmesh.packaging.sources import default_cache

Arrays = Mapping[str, npt.NDArray[Any]]
# Answers inputs with the outputs of the package that lies in a folder as a node has it.
Run = Callable[[Path, Package, Arrays], Arrays]

INPUT, OUTPUT = "input.", "output."

# Of numpy's kinds of arrays, the one that each dtype is; BYTES are bytes or text.
_NUMPY = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}


def record(folder: Path, inputs: Arrays, *, decimals: int, cache: Path | None = None, run: Run | None = None) -> Path:
    """Runs the package on `inputs` and writes its first warm-up file.

    Without `run`, ONNX Runtime runs the package's first variant; the steps of a pipeline need the agent's engines:
    `lambda folder, package, inputs: OnnxEngines()(folder, package).infer(inputs)`. Outputs are rounded to `decimals`,
    which must lie well within the warm-up's tolerance: it makes the file small.
    """
    package = load(folder)
    if run is None and package.steps:
        raise PackageError(f"{package.name!r} has steps, which the agent's engines run: give record() a `run`")
    answers = _answers(package, folder, inputs, run or _run_graph, cache or default_cache())
    arrays = {INPUT + name: to_plain(name, array) for name, array in inputs.items()}
    arrays |= {OUTPUT + name: to_plain(name, _rounded(array, decimals)) for name, array in answers.items()}
    path = folder / package.warmup[0].file
    np.savez_compressed(path, allow_pickle=False, **arrays)
    check_warmup(package, path)
    return path


def _answers(package: Package, folder: Path, inputs: Arrays, run: Run, cache: Path) -> Arrays:
    """What a node would answer. The warm-ups, which are being made, may be missing."""
    files = published_files(package, folder, cache, without=[warmup.file for warmup in package.warmup])
    with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
        lay_out(files, Path(scratch))
        return run(Path(scratch), package, inputs)


def _run_graph(folder: Path, package: Package, inputs: Arrays) -> Arrays:
    try:
        from onnxruntime import InferenceSession
    except ImportError:
        raise PackageError("recording a warm-up needs ONNX Runtime: pip install onnxruntime") from None
    weights = (folder / package.variants[0].file).read_bytes()
    names = [spec.name for spec in package.outputs]
    answers = InferenceSession(weights, providers=["CPUExecutionProvider"]).run(names, dict(inputs))
    return dict(zip(names, answers, strict=True))


def to_plain(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """BYTES as fixed-width bytes, since an archive holds no Python objects. Raises PackageError where they change."""
    if array.dtype != object:
        return array
    items = [item.encode() if isinstance(item, str) else bytes(item) for item in array.flat]
    if any(item.endswith(b"\0") for item in items):
        raise PackageError(f"{name!r} has an element that ends in a zero byte, which NumPy's archives do not keep")
    width = max(map(len, items), default=0)
    return np.array(items, dtype=f"S{max(1, width)}").reshape(array.shape)


def _rounded(answer: npt.NDArray[Any], decimals: int) -> npt.NDArray[Any]:
    # + 0 turns -0.0 into 0.0, whose bytes compress with the other zeros.
    return answer.round(decimals) + answer.dtype.type(0) if answer.dtype.kind == "f" else answer


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of an .npz by its name. Raises PackageError."""
    try:
        # Opened here, since numpy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE_ARCHIVE as error:
        raise PackageError(f"{path} is no .npz of plain arrays: {unreadable(error)}") from None


def read_warmup(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """The inputs and the expected outputs by name. Raises PackageError."""
    arrays = read_arrays(path)
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
