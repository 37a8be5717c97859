"""Runs a package's cases as a node would: by the agent's own program, on this machine, in a process of its own.

So a variant is measured by the very code that will serve it, and one that crashes its runtime crashes nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh.errors import PackageError
from nearmesh.packaging.killed import check_not_killed
from nearmesh.packaging.metrics import Answers
from nearmesh.packaging.warmup import OUTPUT
from nearmesh.process import leashed

PROGRAM = "nearmesh-agent"
# Cases that are not answered by then hang.
_LIMIT_S = 3600.0
# Ends each text in the file, since NumPy's fixed width drops zero bytes at the end.
_END = b"\x01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one variant did."""

    outputs: Mapping[str, Answers]
    ms_p50: float = 0.0
    rows_per_second: float = 0.0
    # By output, by how much warm-ups' answers were further from those expected than their tolerance.
    warmup_difference: dict[str, float] = field(default_factory=dict)
    # Why the warm-up's answers are no nearer or further, but wrong; empty if they are not.
    warmup_failed: str = ""


def by_agent(folder: Path, variants: Mapping[str, str], cases: Path) -> Ran:
    """The package in `folder`, as a node has it, on the cases of a file; `variants` names one for each step.

    Raises PackageError, Killed.
    """
    program = Path(sys.executable).with_name(PROGRAM)
    if not program.is_file():
        raise PackageError(
            f"variants are tried by a node's own program, and {program} is not there: pip install 'nearmesh-agent[cpu]'"
        )
    with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
        answers = Path(scratch) / "answers.npz"
        chosen = [part for step, name in variants.items() for part in ("--variant", f"{step}:{name}" if step else name)]
        command = [str(program), "--log-level", "warning", "evaluate", str(folder), str(cases), str(answers), *chosen]
        try:
            done = subprocess.run(leashed(command), capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PackageError(f"{PROGRAM}: {error}") from None
        check_not_killed(PROGRAM, done.returncode)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            raise PackageError(said[-1].removeprefix("Error: ") if said else f"{PROGRAM} ended with {done.returncode}")
        return Ran(outputs=read_answers(answers), **json.loads(done.stdout))


def write_answers(path: Path, outputs: Mapping[str, list[Any]]) -> None:
    """Each output's arrays, one a case: together where all have one shape and dtype, else one by one."""
    arrays: dict[str, Any] = {}
    for name, cases in outputs.items():
        plain = [_plain(case) for case in cases]
        if len({(case.shape, case.dtype) for case in plain}) == 1:
            arrays[f"{OUTPUT}{name}"] = np.stack(plain)
        else:
            arrays |= {f"{number:09d}.{OUTPUT}{name}": case for number, case in enumerate(plain)}
    np.savez(path, allow_pickle=False, **arrays)


def read_answers(path: Path) -> dict[str, Answers]:
    """What `write_answers` wrote."""
    found: dict[str, Answers] = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            array = _texts(archive[name])
            if name.startswith(OUTPUT):
                found[name.removeprefix(OUTPUT)] = array
                continue
            cases = found.setdefault(name.partition(OUTPUT)[2], [])
            assert isinstance(cases, list), "an output is written in one of both ways"
            cases.append(array)
    return found


def _plain(array: Any) -> Any:
    if array.dtype != object:
        return array
    return np.array([bytes(item) + _END for item in array.flat] or [_END], np.bytes_)[: array.size].reshape(array.shape)


def _texts(array: Any) -> Any:
    if array.dtype.kind != "S":
        return array
    items = np.empty(array.shape, object)
    for index, item in enumerate(array.flat):
        items.flat[index] = bytes(item).removesuffix(_END)
    return items
