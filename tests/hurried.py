"""One of the mesh's programs with other times than its own, for tests that would only wait for those to pass.

    python -m tests.hurried nearmesh_agent.island.RETURN_AFTER_S=2 nearmesh-agent --config node.toml

What is proven of them is proven by tests that leave them as they are.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from nearmesh.devmesh.children import script

MODULES = {"nearmesh-agent": "nearmesh_agent.main", "nearmesh-controlplane": "nearmesh_controlplane.main"}


def command(program: str, times: Mapping[str, float]) -> list[str]:
    """The beginning of the program's command line, with `times` in the place of those constants of its modules."""
    if not times:
        return [script(program)]
    return [script("python"), "-m", "tests.hurried", *(f"{name}={time_s}" for name, time_s in times.items()), program]


def main() -> None:
    words = sys.argv[1:]
    while "=" in words[0]:
        place, _, time_s = words.pop(0).partition("=")
        name, _, constant = place.rpartition(".")
        module: Any = importlib.import_module(name)
        # Of a constant that has another name by now, nothing would be said, and the test would wait again.
        assert isinstance(getattr(module, constant), float), place
        setattr(module, constant, float(time_s))
    sys.argv = words
    importlib.import_module(MODULES[words[0]]).main()


if __name__ == "__main__":
    main()
