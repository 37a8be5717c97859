"""What the agent asks of a runtime: one loaded variant, arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    @property
    def providers(self) -> tuple[str, ...]:
        """What executes it, best first."""
        ...

    @property
    def thread_safe(self) -> bool:
        """Whether `infer` may run in several threads at a time; otherwise the replica has one instance."""
        ...

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output of the package. Blocks, and holds no lock of Python's while it computes.

        Raises InvalidInput for inputs that the graph refuses, EngineFailure for anything that fails later.
        """
        ...

    def close(self) -> None:
        """Gives back memory and devices. Safe to repeat; no call of `infer` is running or comes after."""
        ...


# Loads the variant of the package in this folder that fits the machine. Blocks.
EngineFactory = Callable[[Path, Package], Engine]
