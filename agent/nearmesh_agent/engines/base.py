"""What the agent asks of a runtime: one loaded variant, arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nearmesh.package import Package

Array = np.ndarray[Any, np.dtype[Any]]


class Engine(Protocol):
    """One variant, loaded. BYTES tensors are object arrays of bytes."""

    @property
    def name(self) -> str:
        """The runtime, as OIP names platforms ("onnxruntime_onnx")."""
        ...

    @property
    def variant(self) -> str:
        """The package's variant that was loaded."""
        ...

    # Why this variant, in a few words; set by who chose it. So is how long opening it alone took: choosing may have
    # taken longer, once.
    variant_why: str
    opened_s: float | None

    @property
    def providers(self) -> tuple[str, ...]:
        """What executes it, best first."""
        ...

    @property
    def instances(self) -> int:
        """Calls of `infer` that may run at a time, and suit the machine."""
        ...

    def infer(self, inputs: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]:
        """Every output of the package. Blocks, and holds no lock of Python's while it computes.

        `alone` says that nothing else computes here at the moment: the call may take the whole machine.
        Raises InvalidInput for inputs that the graph refuses, EngineFailure for anything that fails later.
        """
        ...

    def close(self) -> None:
        """Gives back memory and devices. Safe to repeat; no call of `infer` is running or comes after."""
        ...


class DecoupledEngine(Engine, Protocol):
    """An engine of a model that gives several answers to one request, or none."""

    def stream(self, inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """The answers, one by one; closing the iterator ends the work. Blocks and raises as `infer` does."""
        ...


# Loads the variant of the package in this folder that fits the machine. Blocks.
EngineFactory = Callable[[Path, Package], Engine]
