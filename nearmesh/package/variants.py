"""`[[variants]]`, `[[quantize]]`, `[[assets]]`: the builds that are given, those made of them, what functions read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearmesh.config import Problem, refuse
from nearmesh.package.source import Source

Engine = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
# How a variant is made from another one.
Making = Literal["fp16", "int8-dynamic", "int8-static", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalData:
    """A file beside the weights, to which the ONNX file leaves some or all of its tensors."""

    # As the ONNX file names it; no folders.
    name: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file that the functions of a pipeline read, such as a tokenizer; they find it beside their own."""

    # Among the published files; no folders.
    name: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One build of the version for a kind of hardware."""

    name: str
    source: Source
    # "any", or an ONNX Runtime execution provider that the node must have.
    hardware: str = "any"
    # What executes it. TensorRT's engine is built on the node from the ONNX file, while ONNX Runtime serves.
    engine: Engine = "onnxruntime"
    # Of a pipeline: the step whose weights these are.
    step: str = ""
    # What the ONNX file leaves to files beside it, as those above 2 GiB do.
    external: tuple[ExternalData, ...] = ()

    def __post_init__(self) -> None:
        if self.external and self.engine != "onnxruntime":
            # Its plans are kept by the digest of the one file that they were built from.
            said = f"variant {self.name!r}: a {self.engine} engine is built from one file, without `external` ones"
            refuse([Problem(("external",), said)])

    @property
    def file(self) -> str:
        """The name of the weights among the package's published files."""
        return f"{self.step}.{self.name}.onnx" if self.step else f"{self.name}.onnx"

    @property
    def sources(self) -> dict[str, Source]:
        """By the name among the published files, where each of the variant's files comes from."""
        return {self.file: self.source} | {data.name: data.source for data in self.external}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """A variant that `nearmesh model quantize` makes from another one."""

    # Its name.
    variant: str
    # What is done: half precision; weights in 8 bits, with activations scaled as they come or calibrated; or a plan.
    kind: Making
    # The variant that it is made from: one of [[variants]], or of the [[quantize]] before. Default: the last of
    # [[variants]].
    of: str = ""
    # For int8-static: an .npz with arrays input.NAME, whose first axis counts samples.
    calibration: str | None = None
    # "any", or an ONNX Runtime execution provider that a node must have to take it.
    hardware: str = "any"
    # Names of nodes of the graph that stay as they are.
    skip: tuple[str, ...] = ()
    # Of a pipeline: the step whose graph it is made from.
    step: str = ""

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if self.kind == "int8-static" and not self.calibration:
            said = f"{self.variant!r} is int8-static, which needs `calibration`, an .npz with arrays input.NAME"
            yield Problem(("kind",), said)
        if self.kind != "int8-static" and self.calibration is not None:
            yield Problem(("calibration",), f"{self.variant!r} is {self.kind}; only int8-static is calibrated")
        if self.of == self.variant:
            yield Problem(("of",), f"{self.variant!r} cannot be made from itself")

    @property
    def engine(self) -> Engine:
        """What executes it."""
        return self.kind if self.kind in ("tensorrt", "tensorrt-rtx") else "onnxruntime"

    @property
    def made(self) -> Variant:
        """As a variant, whose file lies among the published ones once it was made."""
        name = f"{self.step}.{self.variant}.onnx" if self.step else f"{self.variant}.onnx"
        return Variant(
            name=self.variant, source=Source(path=name), hardware=self.hardware, engine=self.engine, step=self.step
        )
