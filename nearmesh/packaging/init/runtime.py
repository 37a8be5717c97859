"""ONNX Runtime here: whether it takes a file, with a remedy where it does not, and what the file answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearmesh.errors import PackageError

Array = npt.NDArray[Any]

_OPSET = re.compile(r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", re.DOTALL)
_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_OPERATOR = re.compile(r"(?:Could not find an implementation for|No Op registered for|Fatal error:) (\S+)")
# ONNX Runtime promises nothing for older ones.
OLDEST_OPSET = 7


class CannotRun(Exception):
    """The graph refused these inputs."""


class Runner:
    """One graph on the CPU."""

    def __init__(self, path: Path) -> None:
        """Raises PackageError that says what to do about a file that ONNX Runtime does not take."""
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as native
        except ImportError:
            raise PackageError("running the graph needs ONNX Runtime: pip install onnxruntime") from None
        self._errors: tuple[type[Exception], ...] = (
            native.Fail,
            native.InvalidArgument,
            native.InvalidGraph,
            native.InvalidProtobuf,
            native.NoSuchFile,
            native.NotImplemented,
            native.RuntimeException,
            RuntimeError,
            ValueError,
        )
        options = onnxruntime.SessionOptions()
        # Errors come back as exceptions; warnings about old ways of writing graphs are no news to the author.
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            raise PackageError(f"{path}: {why_not(str(error), onnxruntime.__version__)}") from None

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Raises CannotRun."""
        try:
            found = self._session.run(list(outputs), dict(inputs))
        except self._errors as error:
            raise CannotRun(" ".join(str(error).split())) from None
        return {name: np.asarray(array) for name, array in zip(outputs, found, strict=True)}


def why_not(said: str, version: str) -> str:
    """ONNX Runtime's words about a file that it does not load, with a remedy where there is one."""
    if found := _OPSET.search(said):
        opset, domain, newest = found[1], found[2].rstrip("."), found[3]
        return (
            f"it uses opset {opset} of {domain}, ONNX Runtime {version} knows {newest} at most: export it for opset "
            f"{newest}, convert it with onnx.version_converter, or use a newer ONNX Runtime, on the nodes too"
        )
    if found := _IR.search(said):
        return (
            f"it is written in IR version {found[1]}, ONNX Runtime {version} reads {found[2]} at most: set its "
            f"ir_version to {found[2]} and save it again, or use a newer ONNX Runtime, on the nodes too"
        )
    if found := _OPERATOR.search(said):
        return (
            f"ONNX Runtime {version} has no operator {found[1]} for the CPU: export without it, or for another "
            f"opset ({' '.join(said.split())})"
        )
    return f"ONNX Runtime {version} does not load it: {' '.join(said.split())}"
