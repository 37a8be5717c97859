"""The cases that variants are calibrated and tried on: a file beside model.toml, or one that a script makes.

A file that is not there is made by `make_NAME.py` beside model.toml, if there is one: it is run by this interpreter, in
the package's folder, with the path to write as its only argument. What it made is kept in the cache, under the digests
of the folder's Python files and the versions of what they may have used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearmesh.errors import PackageError
from nearmesh.oci import digest_file
from nearmesh.package import UNREADABLE_ARCHIVE, unreadable
from nearmesh.packaging.warmup import INPUT
from nearmesh.process import leashed

EXPECTED = "expected."

# Beyond its own code, what a script draws and computes with.
_USED = ("numpy", "pillow", "onnxruntime")
# A script that is not done by then hangs.
_SCRIPT_LIMIT_S = 900.0
_LAST_LINES = 3

Arrays = Mapping[str, npt.NDArray[Any]]


def set_file(name: str, folder: Path, cache: Path) -> Path:
    """The file of that name: beside model.toml, or made by its script. Raises PackageError."""
    if (folder / name).is_file():
        return folder / name
    script = folder / f"make_{Path(name).stem}.py"
    if not script.is_file():
        raise PackageError(
            f"{folder / name}: no such file, nor {script.name}, which would make it; model.toml names it"
        )
    kept = cache / "sets" / f"{_key(name, folder)}.npz"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Inside the cache, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(prefix=".set-", dir=cache) as scratch:
            fresh = Path(scratch) / "set.npz"
            _run(script, fresh)
            fresh.replace(kept)
    return kept


def _key(name: str, folder: Path) -> str:
    code = {path.name: digest_file(path) for path in sorted(folder.glob("*.py"))}
    said = json.dumps([name, code, {used: version_of(used) for used in _USED}], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def version_of(distribution: str) -> str:
    """Of an installed distribution; empty where it is not there."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _run(script: Path, target: Path) -> None:
    command = leashed([sys.executable, "-B", script.name, str(target)])
    try:
        done = subprocess.run(
            command, cwd=script.parent, capture_output=True, text=True, timeout=_SCRIPT_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{script}: {error}") from None
    if done.returncode != 0 or not target.is_file():
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise PackageError(f"{script} did not write the file that it was told to: {said or 'it says nothing'}")


def read_set(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """The inputs and what is expected, by name: as many cases along the first axis of each. Raises PackageError."""
    try:
        # Opened here, since numpy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE_ARCHIVE as error:
        raise PackageError(f"{path} is no .npz of plain arrays: {unreadable(error)}") from None
    if unknown := [name for name in arrays if not name.startswith((INPUT, EXPECTED))]:
        raise PackageError(f"{path}: arrays are named input.NAME or expected.NAME, not {unknown[0]!r}")
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    inputs = {name.removeprefix(INPUT): array for name, array in arrays.items() if name.startswith(INPUT)}
    if not inputs or min(counts.values()) == 0 or len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
        raise PackageError(f"{path}: expected input.NAME arrays, each with as many cases along its first axis: {shown}")
    return inputs, {name.removeprefix(EXPECTED): a for name, a in arrays.items() if name.startswith(EXPECTED)}
