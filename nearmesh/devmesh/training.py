"""What the local mesh has for federated rounds: a package that can be trained, and each node's part of the data."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from nearmesh.devmesh.children import output_of, script
from nearmesh.devmesh.samples import CHECKOUT

# Three sites have images of it, and each lacks some digits; see models/digits.
MODEL = "digits"
# Of the machine, which all three nodes share with what they serve.
CPU_SHARE = 0.3
# What training it takes, by the names that are imported: a mesh without them serves all the same.
MODULES = ("flwr", "onnx", "sklearn", "torch")


def is_possible(modules: Iterable[str] = MODULES) -> bool:
    """Whether this installation can train."""
    return all(importlib.util.find_spec(name) is not None for name in modules)


async def write_data(folders: Sequence[Path]) -> None:
    """A site's data into each folder. Raises ChildFailed."""
    command = [script("python"), str(CHECKOUT / "models" / MODEL / "sites.py"), *map(str, folders)]
    await output_of(command, "the sites' data could not be written")
