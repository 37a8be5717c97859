"""`nearmesh model check`: all that publishing would do but the upload, and the warm-up on this machine."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearmesh.errors import PackageError
from nearmesh.package import Package, TensorSpec, Variant, Warmup
from nearmesh.packaging import parameters
from nearmesh.packaging.build import Artifact, build
from nearmesh.packaging.init.runtime import CannotRun, Runner
from nearmesh.packaging.sources import OnProgress, default_cache, quiet
from nearmesh.packaging.warmup import read_warmup
from nearmesh.tensors import numpy_dtype

Array = npt.NDArray[Any]

# Hardware that every machine has.
_EVERYWHERE = ("any", "CPUExecutionProvider")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A package that may be published, but for what is not filled in."""

    artifact: Artifact
    # Variants that gave what the warm-ups expect.
    proven: tuple[str, ...]
    # Why others, or all, were not tried.
    untried: tuple[str, ...]
    # Of a package that rounds train: how many numbers its parameters are, all of which are in the graph.
    trainable: int = 0


def check(folder: Path, cache: Path | None = None, *, on_progress: OnProgress = quiet) -> Checked:
    """Raises PackageError, DigestMismatch, Unreachable."""
    artifact = build(folder, cache or default_cache(), draft=True, on_progress=on_progress)
    return replace(_tried(artifact), trainable=_trainable(artifact))


def _trainable(artifact: Artifact) -> int:
    """Building has compared the names; 0 where `onnx` is not installed, and nobody did."""
    package = artifact.package
    if package.training is None or package.trained is None or importlib.util.find_spec("onnx") is None:
        return 0
    (graph,) = [file for file in artifact.manifest.files if file.title == package.trained.file]
    path = artifact.blobs[graph.digest]
    assert isinstance(path, Path), "weights are files"
    return parameters.check(path, package.training.parameters)


def _tried(artifact: Artifact) -> Checked:
    package = artifact.package
    made = tuple(f"{v.name} is made and tried by `nearmesh model evaluate`" for v in package.made_variants)
    if package.steps:
        why = "steps are run by an agent: `nearmesh-agent serve`"
        return Checked(artifact=artifact, proven=(), untried=(why, *made))
    if importlib.util.find_spec("onnxruntime") is None:
        why = "there is no ONNX Runtime here: pip install onnxruntime"
        return Checked(artifact=artifact, proven=(), untried=(why, *made))
    here = [variant for variant in package.variants if variant.hardware in _EVERYWHERE]
    others = [f"{v.name} is for {v.hardware}" for v in package.variants if v not in here]
    with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
        for file in artifact.manifest.files:
            _link(artifact.blobs[file.digest], Path(scratch) / file.title)
        for variant in here:
            _prove(package, variant, Path(scratch))
    return Checked(artifact=artifact, proven=tuple(variant.name for variant in here), untried=(*others, *made))


def _link(blob: Path | bytes, target: Path) -> None:
    """ONNX Runtime takes files beside a graph only where they truly lie beside it, which a hard link does."""
    if isinstance(blob, bytes):
        target.write_bytes(blob)
        return
    try:
        target.hardlink_to(blob)
    except OSError:
        # Another file system.
        target.write_bytes(blob.read_bytes())


def _prove(package: Package, variant: Variant, folder: Path) -> None:
    runner = Runner(folder / variant.file)
    for warmup in package.warmup:
        inputs, expected = read_warmup(folder / warmup.file)
        try:
            answers = runner.run(dict(_fed(package, inputs)), list(expected))
        except CannotRun as error:
            raise PackageError(f"variant {variant.name!r} refuses the inputs of {warmup.file}: {error}") from None
        for name, answer in expected.items():
            if said := differs(answers[name], answer, warmup):
                raise PackageError(
                    f"variant {variant.name!r}: output {name!r} is not what {warmup.file} expects: {said}; record the "
                    "warm-up anew, or widen its rtol and atol"
                )


def _fed(package: Package, inputs: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """As a node feeds the graph: inputs that may be left out are zeros, text is text."""
    states = {state.input: state.shape for state in package.sequence.state} if package.sequence else {}
    for spec in package.inputs:
        array = inputs.get(spec.name)
        if array is None:
            array = _zeros(spec, states.get(spec.name, spec.shape))
        yield spec.name, _text(array) if spec.dtype == "BYTES" else array


def _text(array: Array) -> Array:
    """BYTES as ONNX Runtime takes them."""
    return (np.char.decode(array, "utf-8", "replace") if array.dtype.kind == "S" else array).astype(object)


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    sizes = tuple(max(1, dim) if dim < 0 else dim for dim in shape)
    return np.full(sizes, "", object) if spec.dtype == "BYTES" else np.zeros(sizes, numpy_dtype(spec.dtype))


def differs(answer: Array, expected: Array, warmup: Warmup) -> str:
    """How, in words; empty if it does not. As a node judges its warm-up."""
    if answer.shape != expected.shape:
        return f"shape {list(answer.shape)} instead of {list(expected.shape)}"
    if expected.dtype.kind in "SU":
        return "" if _bytes(answer) == _bytes(expected) else "other bytes"
    left, right = answer.astype(np.float64), expected.astype(np.float64)
    if np.allclose(left, right, rtol=warmup.rtol, atol=warmup.atol):
        return ""
    return f"off by up to {np.abs(left - right).max():.3g}"


def _bytes(array: Array) -> list[bytes]:
    return [item.encode() if isinstance(item, str) else bytes(item) for item in array.flat]
