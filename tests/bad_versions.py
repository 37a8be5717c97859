"""Versions of one model that are good, or bad in a way of their own, once they have passed their warm-up.

Each adds a number to `x`, by a function of the package: what goes wrong goes wrong as it would in a native runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

Kind = Literal["good", "wrong", "slow", "raising", "hanging", "aborting", "dying", "stuck", "refusing"]

# What comes before the answer of a version, for any request but the warm-up's.
_BEFORE: dict[Kind, str] = {
    "good": "pass",
    "wrong": "x = x + 100",
    "slow": "time.sleep({slow_s})",
    "raising": "raise RuntimeError('broken on purpose')",
    "hanging": "threading.Event().wait()",
    "aborting": "os.abort()",
    "dying": "pass",
    "stuck": "pass",
    "refusing": "raise ValueError('not as I like it')",
}

# What comes first of all, when it is loaded. A thread that never came back would keep the test's own process.
_FIRST: dict[Kind, str] = {"dying": "os.abort()", "stuck": "time.sleep(5)"}

_TOML = """
name = "{name}"
version = "{version}"
description = "adds {add}; {kind}"
licence = "Apache-2.0"
credit = "the project"
memory_bytes = {memory_bytes}
inputs = [{{ name = "x", dtype = "FP32", shape = [-1] }}]
outputs = [{{ name = "y", dtype = "FP32", shape = [-1] }}]
steps = [{{ name = "add", python = "steps.py:add" }}]
warmup = [{{ file = "warmup.npz" }}]
instances = 2
"""

_STEPS = """
import os
import threading
import time

import numpy as np

{first}


def add(x):
    if x[0] != {warm}:
        {before}
    return {{"y": x + np.float32({add})}}
"""

# No request of a test begins with it.
_WARM = 77.0


def version(
    folder: Path,
    version: str,
    kind: Kind = "good",
    *,
    name: str = "m",
    add: float = 1.0,
    slow_s: float = 0.2,
    memory_bytes: int = 0,
    expected: float | None = None,
    more: str = "",
) -> Path:
    """Writes the package; its warm-up expects `expected` to be added, by default what is.

    A `dying` one ends the process that loads it, an `aborting` one the process that asks it anything; a `stuck` one
    takes seconds to load.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = _TOML.format(name=name, version=version, add=add, kind=kind, memory_bytes=memory_bytes)
    (folder / "model.toml").write_text(text + more)
    first = _FIRST.get(kind, "")
    before = _BEFORE[kind].format(slow_s=slow_s)
    (folder / "steps.py").write_text(_STEPS.format(first=first, before=before, add=add, warm=_WARM))
    given = np.array([_WARM], np.float32)
    promised = given + np.float32(add if expected is None else expected)
    np.savez(folder / "warmup.npz", **{"input.x": given, "output.y": promised})
    return folder
