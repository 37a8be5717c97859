"""One session of ONNX Runtime: opened with exactly the providers asked for, its tensors and errors in our own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from nearmesh.errors import ConfigError, EngineFailure, InvalidInput, PackageError
from nearmesh_agent.engines.base import Array
from nearmesh_agent.engines.choice import GPU
from nearmesh_agent.engines.cores import eight_bits_overflow

# An execution provider, alone or with its options, as ONNX Runtime takes them.
Provider = str | tuple[str, dict[str, str]]

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


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input or output as the graph has it."""

    # OIP's name of the type, or ONNX Runtime's where OIP has none.
    dtype: str
    # A dimension of any size is a name or None. Empty for a scalar, and for an unknown rank.
    shape: tuple[int | str | None, ...]


class Session:
    """Runs one graph. Thread-safe: ONNX Runtime's session is, and nothing else is kept."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = _tensors(session.get_inputs())
        self.outputs = _tensors(session.get_outputs())
        # Inputs that have a value of their own in the graph.
        self.defaults = _tensors(session.get_overridable_initializers())
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self._text = {name for name, tensor in (self.inputs | self.defaults).items() if tensor.dtype == "BYTES"}

    @classmethod
    def open(cls, path: Path, providers: Sequence[Provider], *, threads: int = 0, spinning: bool = False) -> Session:
        """Loads the graph. `threads` of 0 leaves their number to ONNX Runtime.

        With `spinning`, a call's threads wait busily for each other, which is fast, but not for the next call, which
        would take the cores that gRPC needs in between. Raises ConfigError for a provider that this build of ONNX
        Runtime lacks, EngineFailure for one that did not start, PackageError for a graph that is broken.
        """
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        _check_available(names)
        try:
            session = onnxruntime.InferenceSession(
                str(path), _options(threads, spinning=spinning), providers=list(providers)
            )
        except _LOAD_ERRORS as error:
            raise PackageError(f"{path.name}: ONNX Runtime cannot load it: {error}") from None
        # Without this a device that fails later would be swapped for the CPU in silence.
        session.disable_fallback()
        _check_started(names, session.get_providers())
        return cls(session)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The named outputs. Raises InvalidInput for inputs that the graph refuses, else EngineFailure."""
        feed = {name: _to_text(name, array) if name in self._text else array for name, array in inputs.items()}
        try:
            found = self._session.run(outputs, feed)
        except native.InvalidArgument as error:
            raise InvalidInput(f"the model refuses the input: {_reason(error)}") from None
        except _RUN_ERRORS as error:
            raise EngineFailure(f"ONNX Runtime failed: {_reason(error)}") from None
        return {name: _from_text(array) for name, array in zip(outputs, found, strict=True)}


def _tensors(found: Sequence[Any]) -> dict[str, GraphTensor]:
    return {item.name: GraphTensor(_DATATYPES.get(item.type, item.type), tuple(item.shape)) for item in found}


def _options(threads: int, *, spinning: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Errors come back as exceptions; what a caller got wrong does not belong into the node's log.
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    # Without it, sums of products of 8 bits overflow on such processors, and answers are wrong.
    options.add_session_config_entry("session.x64quantprecision", "1" if eight_bits_overflow() else "0")
    if spinning:
        # Until the next call they sleep.
        options.add_session_config_entry("session.force_spinning_stop", "1")
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
            hint = "; are the libraries of CUDA, cuDNN or TensorRT missing?" if provider in GPU else ""
            raise EngineFailure(
                f"provider {provider!r} is asked for and did not start; running are {', '.join(got)}{hint}"
            )


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
    if not isinstance(array, np.ndarray):
        # A sequence or a map, as some exporters end their graphs with.
        raise EngineFailure(f"the graph gave a {type(array).__name__} where a tensor was expected")
    if array.dtype.kind not in "OU":
        return array
    data = np.empty(array.shape, dtype=object)
    for index, item in enumerate(array.flat):
        data.flat[index] = item.encode()
    return data


def _reason(error: Exception) -> str:
    """ONNX Runtime heads its messages with its own name, a number and a status; the rest is for people."""
    return str(error).rpartition(" : ")[2].strip() or type(error).__name__
