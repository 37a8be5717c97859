"""ONNX Runtime as an engine: which variant fits the machine, and that the graph is what model.toml says it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from nearmesh.errors import ConfigError, EngineFailure, InvalidInput, PackageError
from nearmesh.package import Package, TensorSpec, Variant
from nearmesh_agent.engines.base import Array, Engine

CPU = "CPUExecutionProvider"

_LOAD_ERRORS = (
    native.Fail,
    native.EPFail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
    native.EngineError,
    RuntimeError,
)
_RUN_ERRORS = (
    native.Fail,
    native.EPFail,
    native.EngineError,
    native.DeviceReset,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
    ValueError,
)

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxEngines:
    """An EngineFactory: loads a package's first variant that this node's providers can run."""

    # Execution providers, best first; each must be there. The CPU runs what the others cannot.
    providers: tuple[str, ...] = (CPU,)
    # Cores for one engine call; 0: the machine's, shared out between the package's instances.
    threads: int = 0

    def __call__(self, folder: Path, package: Package) -> Engine:
        variant = choose_variant(package, self.providers)
        cores = os.cpu_count() or 1
        # 0 instances are as many as there are cores.
        threads = self.threads or max(1, cores // (package.instances or cores))
        return OnnxEngine.load(
            folder / variant.file, package, variant=variant.name, providers=self.providers, threads=threads
        )


def choose_variant(package: Package, providers: Sequence[str]) -> Variant:
    """The first variant, in the package's own order, whose hardware is among `providers`. Raises PackageError."""
    for variant in package.variants:
        if variant.hardware == "any" or variant.hardware in providers:
            return variant
    wanted = ", ".join(f"{variant.name} ({variant.hardware})" for variant in package.variants)
    raise PackageError(
        f"no variant of {package.name!r} runs here: it has {wanted}; the node has {', '.join(providers)}"
    )


class OnnxEngine:
    """One ONNX Runtime session. `infer` is thread-safe: the session is, and nothing else is kept."""

    name = "onnxruntime_onnx"
    thread_safe = True

    def __init__(self, session: Any, package: Package, variant: str) -> None:
        self._session = session
        self._outputs = [spec.name for spec in package.outputs]
        self._text_inputs = {spec.name for spec in package.inputs if spec.dtype == "BYTES"}
        self.variant = variant
        self.providers: tuple[str, ...] = tuple(session.get_providers())

    @classmethod
    def load(
        cls,
        path: Path,
        package: Package,
        *,
        variant: str = "",
        providers: Sequence[str] | None = None,
        threads: int = 0,
    ) -> OnnxEngine:
        """Opens `path` with exactly the providers asked for (the CPU when none are), and checks it against `package`.

        `threads` of 0 leaves their number to ONNX Runtime. Raises ConfigError for a provider that this build of ONNX
        Runtime lacks, EngineFailure for one that did not start, PackageError for a graph that is broken or is not the
        one that the package describes.
        """
        wanted = tuple(providers or (CPU,))
        _check_available(wanted)
        try:
            session = onnxruntime.InferenceSession(str(path), _options(threads), providers=list(wanted))
        except _LOAD_ERRORS as error:
            raise PackageError(f"{path.name}: ONNX Runtime cannot load it: {error}") from None
        # Without this a device that fails later would be swapped for the CPU in silence.
        session.disable_fallback()
        _check_started(wanted, session.get_providers())
        _check_graph(path.name, session, package)
        return cls(session, package, variant or path.stem)

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        feed = {name: _to_text(name, array) if name in self._text_inputs else array for name, array in inputs.items()}
        try:
            found = self._session.run(self._outputs, feed)
        except native.InvalidArgument as error:
            raise InvalidInput(f"the model refuses the input: {_reason(error)}") from None
        except _RUN_ERRORS as error:
            raise EngineFailure(f"ONNX Runtime failed: {_reason(error)}") from None
        return {name: _from_text(array) for name, array in zip(self._outputs, found, strict=True)}

    def close(self) -> None:
        self._session = None


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Errors come back as exceptions; what a caller got wrong does not belong into the node's log.
    options.log_severity_level = 4
    # Spinning threads take the cores that gRPC needs between calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _check_available(wanted: Sequence[str]) -> None:
    available = onnxruntime.get_available_providers()
    for provider in wanted:
        if provider not in available:
            raise ConfigError(
                f"provider {provider!r} is asked for; this build of ONNX Runtime has {', '.join(available)}"
            )


def _check_started(wanted: Sequence[str], got: Sequence[str]) -> None:
    for provider in wanted:
        if provider not in got:
            raise EngineFailure(f"provider {provider!r} is asked for and did not start; running are {', '.join(got)}")


def _check_graph(file: str, session: Any, package: Package) -> None:
    inputs = {found.name: found for found in session.get_inputs()}
    outputs = {found.name: found for found in session.get_outputs()}
    optional = {found.name: found for found in session.get_overridable_initializers()}
    for spec in package.inputs:
        _check_tensor(file, "input", spec, inputs | optional)
    for spec in package.outputs:
        _check_tensor(file, "output", spec, outputs)
    missing = inputs.keys() - {spec.name for spec in package.inputs}
    if missing:
        raise PackageError(f"{file}: its inputs {sorted(missing)} are not in model.toml")


def _check_tensor(file: str, what: str, spec: TensorSpec, found: Mapping[str, Any]) -> None:
    tensor = found.get(spec.name)
    if tensor is None:
        raise PackageError(f"{file}: model.toml has the {what} {spec.name!r}, the graph has {sorted(found)}")
    datatype = _DATATYPES.get(tensor.type, tensor.type)
    if datatype != spec.dtype:
        raise PackageError(f"{file}: {what} {spec.name!r} is {spec.dtype} in model.toml, {datatype} in the graph")
    if not _fits(what, spec.shape, tensor.shape):
        raise PackageError(
            f"{file}: {what} {spec.name!r} has shape {list(spec.shape)} in model.toml, {tensor.shape} in the graph"
        )


def _fits(what: str, shape: Sequence[int], graph: Sequence[Any]) -> bool:
    """Whether every input that model.toml allows is one that the graph takes; dimensions with a name take any size."""
    if not graph:
        # ONNX Runtime shows an unknown rank as it shows a scalar.
        return True
    if len(shape) != len(graph):
        return False
    fixed = [(dim, size) for dim, size in zip(shape, graph, strict=True) if isinstance(size, int)]
    if what == "output":
        return all(dim in (size, -1) for dim, size in fixed)
    return all(dim == size for dim, size in fixed)


def _to_text(name: str, array: Array) -> Array:
    """ONNX strings are text: ONNX Runtime takes str alone, and would take bytes for their Python notation."""
    text = np.empty(array.shape, dtype=object)
    for index, item in enumerate(array.flat):
        try:
            text.flat[index] = item if isinstance(item, str) else bytes(item).decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"tensor {name!r}: element {index} is not UTF-8 ({error.reason} at byte {error.start}), "
                "expected text, since the model's input is a string"
            ) from None
    return text


def _from_text(array: Array) -> Array:
    if array.dtype.kind not in "OU":
        return array
    data = np.empty(array.shape, dtype=object)
    for index, item in enumerate(array.flat):
        data.flat[index] = item.encode()
    return data


def _reason(error: Exception) -> str:
    """ONNX Runtime heads its messages with its own name, a number and a status; the rest is for people."""
    return str(error).rpartition(" : ")[2].strip() or type(error).__name__
